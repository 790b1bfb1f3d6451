"""Schedules as text: ``OneCycleLR(max_lr=0.1, total_steps=1000)``, read without evaluating it."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fused_sched import lr_scheduler
from fused_sched.runtime.fused_schedule import NO_FORM

_NOT_TEXT = {
    "LambdaLR": "takes a function, which text cannot give; in Python: scheduler.plot(n)",
    "MultiplicativeLR": "takes a function, which text cannot give; in Python: scheduler.plot(n)",
    "ReduceLROnPlateau": "follows a metric; in Python: scheduler.plot(n, metrics=[...])",
}
NAMES = sorted(set(lr_scheduler.__all__) - {"LRScheduler", *_NOT_TEXT})
_PER_GROUP = ("max_lr", "base_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum")
"""Arguments that may be a list of one value per param group."""


class ExpressionError(ValueError):
    """The text is not a scheduler with literal arguments; says which part is not."""


@dataclass(frozen=True)
class Call:
    """A scheduler's name and its arguments, without the optimizer; schedulers in it are Calls."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __str__(self) -> str:
        shown = [*map(_shown, self.args)]
        shown += [f"{name}={_shown(value)}" for name, value in self.kwargs.items()]
        return f"{self.name}({', '.join(shown)})"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value) if isinstance(value, Call) else repr(value)


def read(text: str) -> Call:
    """Read one scheduler.

    The optimizer may be left out, or be there as in code: ``StepLR(opt, 30)``.

    Raises:
        ExpressionError: not the call of a known scheduler, or an argument that is not a literal.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return _call(tree)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"{text!r} is not a Python expression: {error}") from error
    except ExpressionError:
        raise
    except ValueError as error:  # a null byte
        raise ExpressionError(f"{text!r} cannot be read: {error}") from error


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise ExpressionError(
            f"`{ast.unparse(node)}` is not a scheduler; expected a call, for example "
            "StepLR(step_size=30)"
        )
    name = _name(node.func)
    keywords = [k for k in node.keywords if k.arg != "optimizer" or not _is_optimizer(k.value)]
    twice = [k.arg for i, k in enumerate(keywords) if k.arg in [one.arg for one in keywords[:i]]]
    if twice:
        raise ExpressionError(f"{name}: {twice[0]} is given twice")
    args = [arg for i, arg in enumerate(node.args) if i > 0 or not _is_optimizer(arg)]
    return Call(
        name,
        tuple(_argument(arg, name) for arg in args),
        {_keyword(k, name): _argument(k.value, f"{name}, {k.arg}") for k in keywords},
    )


def _name(node: ast.expr) -> str:
    """The scheduler's name; a module before it, as in code, is passed over."""
    name = node.attr if isinstance(node, ast.Attribute) else ast.unparse(node)
    if name in _NOT_TEXT:
        raise ExpressionError(f"{name} {_NOT_TEXT[name]}")
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(NAMES)}"
        raise ExpressionError(f"Unknown scheduler {name!r}; {hint}")
    return name


def _is_optimizer(node: ast.expr) -> bool:
    """Whether a first argument is what only the optimizer can be: a name."""
    return isinstance(node, (ast.Name, ast.Attribute))


def _keyword(keyword: ast.keyword, name: str) -> str:
    if keyword.arg is None:
        raise ExpressionError(f"{name}: write the arguments out, without **")
    return keyword.arg


def _argument(node: ast.expr, where: str) -> Any:
    """A literal, or a list in which schedulers may stand."""
    if isinstance(node, ast.Call):
        return _call(node)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_argument(element, where) for element in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ExpressionError(
            f"{where}: `{ast.unparse(node)}` is not a literal; expected a number, a string, True, "
            "False, None or a list of those"
        ) from None


# -- from a call to a scheduler ------------------------------------------------------------------


def groups_in(call: Call) -> int:
    """Param groups that a schedule asks for: the length of its per-group arguments, else 1."""
    return max((len(value) for value in _per_group(call)), default=1)


def _per_group(call: Call) -> Iterator[Sequence[Any]]:
    for name, value in _arguments(call).items():
        if name in _PER_GROUP and isinstance(value, list):
            yield value
    for child in _children([*call.args, *call.kwargs.values()]):
        yield from _per_group(child)


def _children(values: Sequence[Any]) -> list[Call]:
    inside = [one for value in values if isinstance(value, list) for one in value]
    return [value for value in [*values, *inside] if isinstance(value, Call)]


def _arguments(call: Call) -> Mapping[str, Any]:
    """The arguments by name; none if they do not fit, which building says better."""
    before = () if call.name == "ChainedScheduler" else (None,)
    try:
        signature = inspect.signature(getattr(lr_scheduler, call.name))
        return signature.bind_partial(*before, *call.args, **call.kwargs).arguments
    except TypeError:
        return {}


def build(call: Call, optimizer: Any) -> Any:
    """The scheduler on an optimizer.

    Raises:
        ExpressionError: torch refuses the arguments; its words.
    """
    args = [_built(value, optimizer) for value in call.args]
    kwargs = {name: _built(value, optimizer) for name, value in call.kwargs.items()}
    before = () if call.name == "ChainedScheduler" else (optimizer,)
    try:
        return getattr(lr_scheduler, call.name)(*before, *args, **kwargs)
    except ExpressionError:
        raise
    except NO_FORM as error:
        raise ExpressionError(f"{call.name}: {error}") from error


def _built(value: Any, optimizer: Any) -> Any:
    if isinstance(value, Call):
        return build(value, optimizer)
    if isinstance(value, list):
        return [_built(one, optimizer) for one in value]
    return value
