"""What help() and editors show as the arguments of a class."""

from __future__ import annotations

import inspect


def constructor(cls: type, *more: inspect.Parameter) -> inspect.Signature:
    """A class's own constructor; else that of the torch class it derives from, with ``more``."""
    if "__init__" in cls.__dict__:
        _, *parameters = inspect.signature(cls.__dict__["__init__"]).parameters.values()
        return inspect.Signature(parameters)
    stock = next(c for c in cls.__mro__ if c.__module__.startswith("torch.optim"))
    shown = inspect.signature(stock)
    return shown.replace(parameters=[*shown.parameters.values(), *more])
