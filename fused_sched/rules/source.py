"""A rule's two functions, read from their source text and checked.

``coefficients(lr, ..., step)`` turns a group's hyperparameters into the numbers that every element
shares; ``rule(p, g, *states, c)`` updates one element. Both are straight lines of arithmetic:
assignments to names, operators, comparisons, the functions of ``arithmetic.py``, one ``return``.
Coefficients that depend on what they were before take such numbers, the *recurrences*, before
``step`` and return their new values last; those of a group come after those of a param.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .reader import FUNCTIONS, MODULE, Function, Reader, RuleError


@dataclass(frozen=True)
class RuleSource:
    """Both functions of the class ``name``.

    Attributes:
        recurrences: the numbers of a param that the coefficients carry on from step to step.
        group_recurrences: those of a group, which come after them.
        native_cuda: the class says that it has CUDA C++ as well.
        text: the functions' source.
    """

    name: str
    coefficients: Function
    rule: Function
    recurrences: tuple[str, ...]
    group_recurrences: tuple[str, ...]
    native_cuda: bool
    text: str

    @property
    def carried(self) -> tuple[str, ...]:
        """All recurrences, as the coefficients take them."""
        return (*self.recurrences, *self.group_recurrences)

    @property
    def columns(self) -> tuple[str, ...]:
        """The hyperparameters that the coefficients are made of."""
        return self.coefficients.parameters[: -1 - len(self.carried)]

    @property
    def states(self) -> tuple[str, ...]:
        """The rule's own names for its states."""
        return self.rule.parameters[2:-1]


def from_text(text: str, file: str) -> list[RuleSource]:
    """Every rule that a file states: its classes with both functions."""
    found = []
    for node in ast.walk(ast.parse(text, file)):
        if isinstance(node, ast.ClassDef):
            methods = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
            if {"coefficients", "rule"} <= methods.keys():
                lines = text.splitlines()
                reader = Reader(file, lines, 0)
                names = ("recurrences", "group_recurrences", "native_cuda")
                stated = {name: _stated(node, name) for name in names}
                found.append(_paired(node.name, reader, reader, methods, **stated))
    return found


def from_functions(
    name: str,
    coefficients: Callable[..., Any],
    rule: Callable[..., Any],
    recurrences: Sequence[str],
    group_recurrences: Sequence[str],
) -> RuleSource:
    """The rule of a class that was defined at run time.

    Args:
        recurrences, group_recurrences: the names that the class states.

    Raises:
        RuleError: the source of a function cannot be read, or is no arithmetic.
    """
    readers: list[Reader] = []
    methods: dict[str, ast.FunctionDef] = {}
    for key, function in (("coefficients", coefficients), ("rule", rule)):
        try:
            lines, first = inspect.getsourcelines(function)
        except (OSError, TypeError) as error:
            raise RuleError(
                f"{name}.{key}: its source cannot be read ({error}); "
                "define the class in a file or a notebook"
            ) from error
        text = textwrap.dedent("".join(lines))
        node = next(n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef))
        file = inspect.getsourcefile(function) or key
        reader = Reader(file, text.splitlines(), first - 1)
        readers.append(reader)
        _check_imports(reader, node, function)
        methods[key] = node
    return _paired(name, readers[0], readers[1], methods, recurrences, group_recurrences)


def _check_imports(reader: Reader, node: ast.FunctionDef, function: Callable[..., Any]) -> None:
    """Refuse a function of the arithmetic's names that is another library's, or is not imported."""
    called = {n.func for n in ast.walk(node) if isinstance(n, ast.Call)}
    for name in {n.id for n in called if isinstance(n, ast.Name)} & FUNCTIONS.keys() - {"abs"}:
        found = getattr(function, "__globals__", {}).get(name)
        if getattr(found, "__module__", None) != MODULE:
            reader.refuse(node, f"write `from {MODULE} import {name}` above the class")


def _stated(node: ast.ClassDef, attribute: str) -> Any:
    """What a class gives an attribute, () without such a line."""
    for part in node.body:
        if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == attribute:
            return ast.literal_eval(part.value)
    return ()


def _paired(
    name: str,
    first: Reader,
    second: Reader,
    methods: dict[str, ast.FunctionDef],
    recurrences: Sequence[str],
    group_recurrences: Sequence[str],
    native_cuda: bool | tuple[()] = False,
) -> RuleSource:
    coefficients = first.read(methods["coefficients"], unpacks=False)
    rule = second.read(methods["rule"], unpacks=True)
    text = f"{first.text_of(methods['coefficients'])}\n{second.text_of(methods['rule'])}"
    carried = tuple(recurrences), tuple(group_recurrences)
    source = RuleSource(name, coefficients, rule, *carried, bool(native_cuda), text)
    if coefficients.parameters[:1] != ("lr",) or coefficients.parameters[-1] != "step":
        first.refuse(
            methods["coefficients"], "coefficients(lr, ..., step) takes lr first and step last"
        )
    if len(rule.parameters) < 3:
        second.refuse(methods["rule"], "rule(p, g, *states, c) takes the param, its gradient, "
                      "each state, and the coefficients")  # fmt: skip
    if len(rule.results) != len(source.states) + 1:
        second.refuse(
            methods["rule"],
            f"it must return p and its {len(source.states)} states, in their order",
        )
    count = len(source.carried)
    if coefficients.parameters[-1 - count : -1] != source.carried:
        first.refuse(
            methods["coefficients"],
            f"coefficients(lr, ..., {', '.join(source.carried)}, step) takes the recurrences, in "
            "their order, right before step",
        )
    if len(rule.unpacked) + count != len(coefficients.results):
        more = f" and carries {count} recurrences on" if count else ""
        second.refuse(
            methods["rule"],
            f"coefficients() returns {len(coefficients.results)} values; "
            f"the rule unpacks {len(rule.unpacked)}{more}",
        )
    return source
