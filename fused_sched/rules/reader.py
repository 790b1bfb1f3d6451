"""Reads one function of a rule, and refuses what no kernel computes.

A function is a straight line of arithmetic: assignments to names, operators, comparisons, the
functions of ``arithmetic.py``, one ``return``.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

FUNCTIONS = {
    "where": 3,
    "sqrt": 1,
    "exp": 1,
    "log": 1,
    "abs": 1,
    "maximum": 2,
    "minimum": 2,
    "bias_correction": 2,
}
"""The functions of ``arithmetic.py``, and how many arguments each takes."""

NUMBER, TRUTH = "number", "truth value"

MODULE = "fused_sched.rules.arithmetic"

ALLOWED = (
    f"names, numbers, + - * /, comparisons, & | ~ of them, and {', '.join(FUNCTIONS)} of {MODULE}"
)

_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitAnd, ast.BitOr)
_SIGNS = (ast.USub, ast.Invert)
_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)


class RuleError(TypeError):
    """A rule uses what its arithmetic does not know; the message names the line."""


@dataclass(frozen=True)
class Assignment:
    """``name = value``; ``comment`` is what stands above it, or behind it, without the ``#``."""

    name: str
    value: ast.expr
    comment: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    """One of the two functions.

    Attributes:
        unpacked: the names that ``a, b = c`` at the start of a rule gives to the coefficients.
        results: what is returned, one expression for each value.
    """

    name: str
    doc: str
    parameters: tuple[str, ...]
    unpacked: tuple[str, ...]
    body: tuple[Assignment, ...]
    results: tuple[ast.expr, ...]

    @property
    def used(self) -> set[str]:
        """Every name that an expression takes."""
        nodes = [*(part.value for part in self.body), *self.results]
        return {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}


class Reader:
    """Reads functions of one file; ``offset`` is the line number before its first line."""

    def __init__(self, file: str, lines: list[str], offset: int) -> None:
        self.file = file
        self.lines = lines
        self.offset = offset
        self._elements = False  # whether the function that is read is a rule

    def refuse(self, node: ast.AST, what: str) -> NoReturn:
        line = self.offset + getattr(node, "lineno", 0)
        raise RuleError(f"{self.file}:{line}: {what}")

    def text_of(self, function: ast.FunctionDef) -> str:
        """The function as it is written."""
        return textwrap.dedent(
            "\n".join([*self.lines[function.lineno - 1 : function.end_lineno], ""])
        )

    def read(self, function: ast.FunctionDef, unpacks: bool) -> Function:
        """A function's parts.

        Args:
            unpacks: its last parameter is a tuple, which the first line takes apart.
        """
        arguments = function.args
        if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.defaults:
            self.refuse(function, f"{function.name}() takes plain positional parameters alone")
        parameters = tuple(a.arg for a in [*arguments.posonlyargs, *arguments.args])
        statements = list(function.body)
        doc = ast.get_docstring(function) or ""
        if doc:
            statements.pop(0)
        unpacked: tuple[str, ...] = ()
        self._elements = unpacks
        if parameters[:1] == ("self",):
            self.refuse(function, f"{function.name}() takes no self: put @staticmethod above it")
        known = dict.fromkeys(parameters, NUMBER)
        if unpacks and statements and self._takes_apart(statements[0], parameters[-1]):
            first = statements.pop(0)
            unpacked = _names(first.targets[0])  # type: ignore[attr-defined]
            if len(set(unpacked)) < len(unpacked):
                self.refuse(first, "each coefficient has a name of its own")
            del known[parameters[-1]]
            known |= dict.fromkeys(unpacked, NUMBER)
        if not statements or not isinstance(statements[-1], ast.Return):
            self.refuse(function, f"{function.name}() must end with a return")
        last = statements.pop()
        body = [part for s in statements for part in self._assignments(s, known, unpacked)]
        value = last.value  # type: ignore[attr-defined]
        if not isinstance(value, ast.Tuple):
            self.refuse(last, f"{function.name}() must return a tuple: (x,) for one value")
        results = tuple(value.elts)
        for result in results:
            if self._check(result, known) != NUMBER and unpacks:
                self.refuse(result, "a rule returns numbers: write where(condition, 1.0, 0.0)")
        return Function(function.name, doc, parameters, unpacked, tuple(body), results)

    @staticmethod
    def _takes_apart(statement: ast.stmt, name: str) -> bool:
        return (
            isinstance(statement, ast.Assign)
            and isinstance(statement.value, ast.Name)
            and statement.value.id == name
            and isinstance(statement.targets[0], ast.Tuple | ast.List | ast.Name)
        )

    def _assignments(
        self, statement: ast.stmt, known: dict[str, str], fixed: tuple[str, ...]
    ) -> list[Assignment]:
        if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            here = ast.copy_location(ast.Name(statement.target.id), statement)
            value: ast.expr = ast.copy_location(
                ast.BinOp(here, statement.op, statement.value), statement
            )
            pairs = [(statement.target.id, value)]
        elif (
            isinstance(statement, ast.Assign)
            and len(statement.targets) == 1
            and isinstance(statement.targets[0], ast.Name)
        ):
            pairs = [(statement.targets[0].id, statement.value)]
        elif (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value is not None
        ):
            pairs = [(statement.target.id, statement.value)]
        else:
            self.refuse(
                statement,
                f"{ast.unparse(statement).splitlines()[0]!r} is no assignment to one name; "
                "a rule has no branches or loops: write where(condition, a, b)",
            )
        comment = self._comment(statement)
        for name, value in pairs:
            if name in fixed:
                self.refuse(statement, f"{name!r} is a coefficient; assign to another name")
            kind = self._check(value, known)
            if known.get(name, kind) != kind:
                self.refuse(statement, f"{name!r} is a {known[name]} already; use another name")
            known[name] = kind
        return [Assignment(name, value, comment) for name, value in pairs]

    def _comment(self, statement: ast.stmt) -> tuple[str, ...]:
        """The comment lines above a statement, and the comment behind it."""
        found: list[str] = []
        at = statement.lineno - 2
        while at >= 0 and self.lines[at].strip().startswith("#"):
            found.insert(0, self.lines[at].strip().lstrip("# "))
            at -= 1
        last = (statement.end_lineno or statement.lineno) - 1
        behind = self.lines[last][statement.end_col_offset or 0 :].strip()
        if behind.startswith("#") and not behind.startswith("# fmt"):
            found.append(behind.lstrip("# "))
        return tuple(found)

    def _check(self, node: ast.expr, known: Mapping[str, str]) -> str:
        """``NUMBER`` or ``TRUTH``, what an expression is; refuse what no kernel computes."""
        if isinstance(node, ast.Name):
            if node.id not in known:
                self.refuse(
                    node,
                    f"{node.id!r} is not known here: assign it in the function, or pass it through "
                    "a param group",
                )
            return known[node.id]
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            if not abs(node.value) < 1e300:  # type: ignore[arg-type]
                self.refuse(node, f"{node.value!r} is no number that a kernel holds")
            return NUMBER
        if isinstance(node, ast.BinOp) and isinstance(node.op, _OPERATORS):
            kind = TRUTH if isinstance(node.op, ast.BitAnd | ast.BitOr) else NUMBER
            return self._asked([node.left, node.right], [kind, kind], kind, known)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, _SIGNS):
            kind = TRUTH if isinstance(node.op, ast.Invert) else NUMBER
            return self._asked([node.operand], [kind], kind, known)
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], _COMPARISONS):
            if len(node.ops) == 1:
                parts = [node.left, *node.comparators]
                return self._asked(parts, [NUMBER, NUMBER], TRUTH, known)
            self.refuse(node, "write two comparisons with & between them")
        if isinstance(node, ast.Call) and self._is_known(node):
            if ast.unparse(node.func) == "bias_correction" and self._elements:
                self.refuse(
                    node, "bias_correction() is for coefficients(): its step is the group's"
                )
            kinds = [NUMBER] * len(node.args)
            if ast.unparse(node.func) == "where":
                kinds[0] = TRUTH
            return self._asked(node.args, kinds, NUMBER, known)
        self.refuse(node, f"{ast.unparse(node)!r} is not known here; allowed are {ALLOWED}")

    def _asked(
        self, parts: list[ast.expr], kinds: list[str], result: str, known: Mapping[str, str]
    ) -> str:
        for part, kind in zip(parts, kinds, strict=True):
            found = self._check(part, known)
            if found != kind:
                cure = "compare it, as x != 0" if kind == TRUTH else "write where(it, 1.0, 0.0)"
                self.refuse(part, f"{ast.unparse(part)!r} is a {found}, not a {kind}: {cure}")
        return result

    def _is_known(self, call: ast.Call) -> bool:
        return (
            isinstance(call.func, ast.Name)
            and FUNCTIONS.get(call.func.id) == len(call.args)
            and not call.keywords
        )


def _names(target: ast.expr) -> tuple[str, ...]:
    parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
    return tuple(part.id for part in parts if isinstance(part, ast.Name))
