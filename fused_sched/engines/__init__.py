"""Who executes a step: the engines and the choice between them."""

from .choose import available, engine_for, use_engine

__all__ = ["available", "engine_for", "use_engine"]
