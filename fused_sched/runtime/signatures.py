"""What help(), editors and scripts see as the arguments of a class."""

from __future__ import annotations

import inspect


def constructor(cls: type, *more: inspect.Parameter) -> inspect.Signature:
    """The arguments of the first class in line that names them; after torch's come ``more``."""
    for owner in cls.__mro__:
        if "__init__" in vars(owner):
            shown = inspect.signature(vars(owner)["__init__"])
            _, *parameters = shown.parameters.values()
            if all(one.kind is not one.VAR_POSITIONAL for one in parameters):
                after = more if owner.__module__.startswith("torch.optim") else ()
                return shown.replace(parameters=[*parameters, *after])
    return inspect.Signature()
