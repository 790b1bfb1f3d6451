"""Who executes a step: the engines and the choice between them."""

from .choose import available, choose, use_engine

__all__ = ["available", "choose", "use_engine"]
