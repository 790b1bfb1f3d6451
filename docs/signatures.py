"""The constructors as Python's help() shows them: most are torch's, which griffe does not read."""

import inspect
from typing import Any

from griffe import Class, Extension, Function, Object, Parameter, ParameterKind, Parameters

from fused_sched import lr_scheduler, optim

CLASSES = {
    f"{found.__module__}.{name}": found
    for module in (optim, lr_scheduler)
    for name, found in vars(module).items()
    if name in module.__all__ and found is not optim.FusedOptimizer
}

STEP = optim.FusedOptimizer.step
"""Takes its arguments as they come, and shows those that it has."""

KINDS = {
    inspect.Parameter.POSITIONAL_OR_KEYWORD: ParameterKind.positional_or_keyword,
    inspect.Parameter.KEYWORD_ONLY: ParameterKind.keyword_only,
}


class Signatures(Extension):
    """Gives each optimizer and scheduler an ``__init__`` with all its arguments."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if isinstance(obj, Class) and obj.path in CLASSES:
            parameters = Parameters(Parameter("self"), *parameters_of(CLASSES[obj.path]))
            obj.set_member("__init__", Function("__init__", parameters=parameters))
        if isinstance(obj, Function) and obj.path == STEP.__module__ + "." + STEP.__qualname__:
            obj.parameters = Parameters(*parameters_of(STEP))


def parameters_of(found: Any) -> list[Parameter]:
    """A function's parameters, or a constructor's without self."""
    return [
        Parameter(
            name,
            annotation=annotation(one),
            kind=KINDS[one.kind],
            default=None if one.default is one.empty else repr(one.default),
        )
        for name, one in inspect.signature(found).parameters.items()
    ]


def annotation(one: inspect.Parameter) -> str | None:
    """As it stands in the source; None without one."""
    if one.annotation is one.empty:
        return None
    text = one.annotation
    return text if isinstance(text, str) else inspect.formatannotation(text)
