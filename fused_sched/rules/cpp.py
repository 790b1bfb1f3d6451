"""A rule as C++: the struct that ``csrc/update.h`` and ``csrc/cuda.cu`` launch.

The text keeps the Python's names, order and comments, so that one can be read beside the other.
In ``apply`` a value is an element (``V``: a number, or a vector of the compiler's) or a number that
all elements share (``C``); the constructor computes in double.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

from .source import Assignment, Function, RuleSource

IsElement = Callable[[ast.expr], bool]

_PRECEDENCE: dict[type[ast.AST], tuple[int, str]] = {
    ast.BitOr: (1, "|"),
    ast.BitAnd: (2, "&"),
    ast.Eq: (3, "=="),
    ast.NotEq: (3, "!="),
    ast.Lt: (4, "<"),
    ast.LtE: (4, "<="),
    ast.Gt: (4, ">"),
    ast.GtE: (4, ">="),
    ast.Add: (5, "+"),
    ast.Sub: (5, "-"),
    ast.Mult: (6, "*"),
    ast.Div: (6, "/"),
}
_SIGN = 7

_TAKEN = frozenset(
    [
        "C",
        "V",
        "h",
        "count",
        "alignas",
        "alignof",
        "asm",
        "auto",
        "bool",
        "case",
        "catch",
        "char",
        "const",
        "constexpr",
        "default",
        "delete",
        "do",
        "double",
        "enum",
        "explicit",
        "export",
        "extern",
        "false",
        "float",
        "friend",
        "goto",
        "inline",
        "int",
        "long",
        "mutable",
        "namespace",
        "new",
        "operator",
        "private",
        "protected",
        "public",
        "register",
        "short",
        "signed",
        "sizeof",
        "static",
        "struct",
        "switch",
        "template",
        "this",
        "throw",
        "true",
        "typedef",
        "typename",
        "union",
        "unsigned",
        "using",
        "virtual",
        "void",
        "volatile",
    ]
)
"""Names of Python's that C++ or the struct around them uses for something else."""


def struct(source: RuleSource) -> str:
    """``template <class C> struct LionRule``, with its coefficients and ``apply``."""
    name, members = f"{source.name}Rule", source.rule.unpacked
    lines = [
        "template <class C>",
        f"struct {name} {{",
        f"  static constexpr int kStates = {len(source.states)};",
        "",
    ]
    if members:
        lines += _wrapped("  C ", [_spelled(member) for member in members])
    lines += ["", *_documented(source.coefficients)]
    lines += [f"  FS_INLINE {name}(const Hyper& h, int64_t count) {{"]
    lines += [f"    {line}" for line in _constructor(source)]
    lines += ["  }", "", *_documented(source.rule)]
    parameters = ["V& p", "V g", *(f"V& {_spelled(state)}" for state in source.states)]
    names = [_spelled(parameter) for parameter in source.rule.parameters[:2]]
    parameters[:2] = [f"V& {names[0]}", f"V {names[1]}"]
    lines += ["  template <class V>"]
    lines += [f"  FS_INLINE void apply({', '.join(parameters)}) const {{"]
    lines += [f"    {line}" for line in _Body(source).lines()]
    lines += ["  }", "};"]
    return "\n".join(lines) + "\n"


def _documented(function: Function) -> list[str]:
    return [f"  // {line}".rstrip() for line in function.doc.splitlines()]


def _wrapped(start: str, names: list[str]) -> list[str]:
    lines, line = [], start
    for i, name in enumerate(names):
        part = name + (";" if i == len(names) - 1 else ", ")
        if len(line) + len(part) > 100:
            lines.append(line.rstrip())
            line = " " * len(start)
        line += part
    return [*lines, line]


def _spelled(name: str) -> str:
    return f"{name}_" if name in _TAKEN else name


def _constructor(source: RuleSource) -> list[str]:
    function = source.coefficients
    used = _names_in(function)
    lines = [
        f"const double {_spelled(name)} = h[{column}];"
        for column, name in enumerate(source.columns)
        if name in used
    ]
    if "step" in used:
        lines.append("const double step = static_cast<double>(count);")
    assigned = [part.name for part in function.body]
    seen = set(function.parameters)
    # A member of the same name is another variable: what is computed gets its own name here.
    for part in function.body:
        lines += [f"// {line}" for line in part.comment]
        value = _expression(part.value, _double)
        if part.name in seen:
            lines.append(f"{_spelled(part.name)} = {value};")
        else:
            const = "const " if assigned.count(part.name) == 1 else ""
            lines.append(f"{const}double {_spelled(part.name)} = {value};")
            seen.add(part.name)
    reassigned = seen & set(function.parameters) & set(assigned)
    lines = [line.removeprefix("const ") if _declares(line, reassigned) else line for line in lines]
    for member, result in zip(source.rule.unpacked, function.results, strict=True):
        value = _expression(result, _double)
        lines.append(f"this->{_spelled(member)} = static_cast<C>({value});")
    return lines


def _declares(line: str, names: set[str]) -> bool:
    return any(line.startswith(f"const double {_spelled(name)} = ") for name in names)


def _names_in(function: Function) -> set[str]:
    nodes = [*(part.value for part in function.body), *function.results]
    return {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}


def _double(node: ast.expr) -> bool:
    return False


class _Body:
    """The body of ``apply``."""

    def __init__(self, source: RuleSource) -> None:
        self.source = source
        rule = source.rule
        self.elements = set(rule.parameters[:-1])
        # Until nothing changes: a name is an element if anything assigned to it is one.
        before = -1
        while len(self.elements) != before:
            before = len(self.elements)
            self.elements |= {part.name for part in rule.body if self.is_element(part.value)}
        self.assigned = [part.name for part in rule.body]

    def is_element(self, node: ast.expr) -> bool:
        return any(isinstance(n, ast.Name) and n.id in self.elements for n in ast.walk(node))

    def lines(self) -> list[str]:
        rule = self.source.rule
        declared = set(rule.parameters[:-1])
        lines = []
        for part in rule.body:
            lines += [f"// {line}" for line in part.comment]
            lines.append(self._statement(part, declared))
            declared.add(part.name)
        return lines + self._results()

    def _statement(self, part: Assignment, declared: set[str]) -> str:
        name, value = _spelled(part.name), self._value(part.value, part.name in self.elements)
        if part.name in declared:
            return f"{name} = {value};"
        kind = "auto" if _is_mask(part.value) else "V" if part.name in self.elements else "C"
        const = "const " if self.assigned.count(part.name) == 1 else ""
        return f"{const}{kind} {name} = {value};"

    def _value(self, node: ast.expr, element: bool) -> str:
        """An expression; one that all elements share is spread where an element is asked for."""
        text = _expression(node, self.is_element)
        spread = element and not self.is_element(node)
        return f"spread<V>({text})" if spread else text

    def _results(self) -> list[str]:
        rule = self.source.rule
        outputs = [rule.parameters[0], *self.source.states]
        changed = [
            (name, result)
            for name, result in zip(outputs, rule.results, strict=True)
            if not (isinstance(result, ast.Name) and result.id == name)
        ]
        if len(changed) == 1:
            name, result = changed[0]
            return [f"{_spelled(name)} = {self._value(result, True)};"]
        # All are computed before the first of them is replaced.
        lines = [f"const V next_{name} = {self._value(r, True)};" for name, r in changed]
        return lines + [f"{_spelled(name)} = next_{name};" for name, _ in changed]


def _is_mask(node: ast.expr) -> bool:
    """Whether an expression is a truth value."""
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.BitAnd | ast.BitOr)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Invert)
    return isinstance(node, ast.Compare)


def _expression(node: ast.expr, is_element: IsElement, least: int = 0) -> str:
    """C++ for an expression, in parentheses if it binds less tightly than ``least``."""
    return _Expression(is_element).text(node, least)


class _Expression:
    def __init__(self, is_element: IsElement) -> None:
        self.is_element = is_element
        self.type = "" if is_element is _double else "C"

    def text(self, node: ast.expr, least: int = 0) -> str:
        if isinstance(node, ast.Name):
            return _spelled(node.id)
        if isinstance(node, ast.Constant):
            return self._number(node.value)
        if isinstance(node, ast.Call):
            return self._call(node, least)
        if isinstance(node, ast.UnaryOp):
            if isinstance(node.op, ast.Invert):
                return f"negate({self.text(node.operand)})"
            return f"-{self.text(node.operand, _SIGN)}"
        left, operator, right = _parts(node)
        level, spelled = _PRECEDENCE[operator]
        inside = level if operator not in (ast.BitOr, ast.BitAnd) else _SIGN
        text = f"{self.text(left, inside)} {spelled} {self.text(right, inside + 1)}"
        return f"({text})" if level < least else text

    def _number(self, value: object) -> str:
        number = repr(float(value))  # type: ignore[arg-type]
        return f"C({number})" if self.type else number

    def _call(self, node: ast.Call, least: int) -> str:
        name = node.func.id  # type: ignore[attr-defined]
        values = node.args
        if name == "where":
            condition, a, b = values
            text = (
                f"{self.text(condition, 1)} ? {self._spread(a, values)} : {self._spread(b, values)}"
            )
            return f"({text})" if least else text
        return f"{name}({', '.join(self._spread(value, values) for value in values)})"

    def _spread(self, node: ast.expr, values: list[ast.expr]) -> str:
        """An argument; one that all elements share is spread beside one that is an element."""
        text = self.text(node, 1)
        if self.is_element(node) or not any(map(self.is_element, values)):
            return text
        return f"spread<V>({self.text(node)})"


def _parts(node: ast.expr) -> tuple[ast.expr, type[ast.AST], ast.expr]:
    if isinstance(node, ast.Compare):
        return node.left, type(node.ops[0]), node.comparators[0]
    assert isinstance(node, ast.BinOp)
    return node.left, type(node.op), node.right
