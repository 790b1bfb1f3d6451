"""A rule as C++: the struct that ``csrc/cpu_update.h`` and ``csrc/cuda.cu`` launch.

The text keeps the Python's names, order and comments, so that one can be read beside the other.
In ``apply`` a value is an element (``V``: a number, or a vector of the compiler's) or a number that
all elements share (``C``); the constructor computes in double.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

from .reader import Assignment, Function
from .source import RuleSource

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
_CHOICE, _SIGN = 1, 7  # a ? b : c binds less than all of these, a sign more

_TAKEN = """
C V h carried count next apply kStates negate spread spread_truth size_of and_eq bitand bitor
compl not_eq or_eq
xor xor_eq nullptr decltype noexcept static_assert static_cast const_cast dynamic_cast typeid
reinterpret_cast thread_local wchar_t char8_t char16_t char32_t alignas alignof asm auto bool case
catch char const constexpr default delete do double enum explicit export extern false float friend
goto inline int long mutable namespace new operator private protected public register short signed
sizeof static struct switch template this throw true typedef typename union unsigned using virtual
void volatile
"""
"""Names of Python's that C++ or the struct around them uses for something else."""


def struct(source: RuleSource) -> str:
    """``template <class C> struct LionRule``, with its coefficients and ``apply``."""
    name = f"{source.name}Rule"
    p, g, *states = (_spelled(name) for name in source.rule.parameters[:-1])
    parameters = ", ".join([f"V& {p}", f"V {g}", *(f"V& {state}" for state in states)])
    lines = [
        "template <class C>",
        f"struct {name} {{",
        f"  static constexpr int kStates = {len(states)};",
        f"  static constexpr int kRecurrences = {len(source.carried)};",
        f"  static constexpr int kOfGroup = {len(source.group_recurrences)};  // the last of them",
        "",
        *_members(source),
        "",
        *_documented(source.coefficients),
        f"  FS_INLINE {name}({_inputs(source)}) {{",
        *(f"    {line}" for line in _constructor(source)),
        "  }",
        "",
        *_documented(source.rule),
        "  template <class V>",
        f"  FS_INLINE void apply({parameters}) const {{",
        *(f"    {line}" for line in _apply(source)),
        "  }",
        "};",
    ]
    return "\n".join(lines) + "\n"


def _inputs(source: RuleSource) -> str:
    """Parameters of the constructor; ``carried`` has a param's recurrences."""
    carried = "const Numbers& carried, " if source.carried else ""
    function = source.coefficients
    count = " count" if function.parameters[-1] in function.used else ""
    return f"const Numbers& h, {carried}int64_t{count}"


def _members(source: RuleSource) -> list[str]:
    """The coefficients, as many to a line as it holds; what goes on to the next step."""
    lines = ["  C"]
    for name in source.rule.unpacked:
        if len(lines[-1]) + len(name) > 96:
            lines.append("   ")
        lines[-1] += f" {_spelled(name)},"
    lines[-1] = f"{lines[-1].removesuffix(',')};"
    if not source.rule.unpacked:
        lines = []
    if source.carried:
        lines.append(f"  double next[kRecurrences];  // {', '.join(source.carried)}")
    return lines


def _documented(function: Function) -> list[str]:
    return [f"  // {line}".rstrip() for line in function.doc.splitlines()]


def _constructor(source: RuleSource) -> list[str]:
    function = source.coefficients
    body = _Body(function, elements=(), number="double")
    values = [f"h[{column}]" for column in range(len(source.columns))]
    values += [f"carried[{number}]" for number in range(len(source.carried))]
    values.append("static_cast<double>(count)")
    lines = [
        f"{body.const(name)}double {_spelled(name)} = {value};"
        for name, value in zip(function.parameters, values, strict=True)
        if name in function.used
    ]
    lines += body.statements()
    members = source.rule.unpacked
    for member, result in zip(members, function.results, strict=False):
        lines.append(f"this->{_spelled(member)} = static_cast<C>({body.text(result)});")
    for number, result in enumerate(function.results[len(members) :]):
        lines.append(f"next[{number}] = {body.text(result)};")
    return lines


def _apply(source: RuleSource) -> list[str]:
    rule = source.rule
    body = _Body(rule, elements=rule.parameters[:-1], number="C")
    changed = [
        (_spelled(name), body.value(result, element=True))
        for name, result in zip([rule.parameters[0], *source.states], rule.results, strict=True)
        if not (isinstance(result, ast.Name) and result.id == name)
    ]
    if len(changed) < 2:
        return body.statements() + [f"{name} = {value};" for name, value in changed]
    return [  # all are computed before the first of them is replaced
        *body.statements(),
        *(f"const V {name}__ = {value};" for name, value in changed),
        *(f"{name} = {name}__;" for name, _ in changed),
    ]


class _Body:
    """The statements and expressions of one function.

    Args:
        elements: names of its parameters that are elements.
        number: the type of what all elements share.
    """

    def __init__(self, function: Function, elements: Iterable[str], number: str) -> None:
        self._function = function
        self._number = number
        self._elements = set(elements)
        self._truths: set[str] = set()
        self._assigned = [part.name for part in function.body]
        before = -1
        while before != len(self._elements) + len(self._truths):
            before = len(self._elements) + len(self._truths)
            for part in function.body:  # a name is an element if anything assigned to it is one
                if self._is_element(part.value):
                    self._elements.add(part.name)
                if self._is_truth(part.value):
                    self._truths.add(part.name)

    def const(self, name: str) -> str:
        """``const``, if a parameter never changes or a name is assigned once."""
        allowed = 0 if name in self._function.parameters else 1
        return "const " if self._assigned.count(name) <= allowed else ""

    def statements(self) -> list[str]:
        """The body but for what is returned."""
        declared = set(self._function.parameters)
        lines = []
        for part in self._function.body:
            lines += [f"// {line}" for line in part.comment]
            declaration = "" if part.name in declared else self._declaration(part)
            value = self.value(part.value, part.name in self._elements)
            lines.append(f"{declaration}{_spelled(part.name)} = {value};")
            declared.add(part.name)
        return lines

    def _declaration(self, part: Assignment) -> str:
        kind = "V" if part.name in self._elements else self._number
        return f"{self.const(part.name)}{'auto' if part.name in self._truths else kind} "

    def value(self, node: ast.expr, element: bool) -> str:
        """An expression; one that all elements share is spread where an element is asked for."""
        text = self.text(node)
        if not element or self._is_element(node):
            return text
        return f"{'spread_truth' if self._is_truth(node) else 'spread'}<V>({text})"

    def text(self, node: ast.expr, least: int = 0) -> str:
        """An expression, in parentheses if it binds less tightly than ``least``."""
        if isinstance(node, ast.Name):
            return _spelled(node.id)
        if isinstance(node, ast.Constant):
            number = repr(float(node.value))  # type: ignore[arg-type]
            return number if self._number == "double" else f"C({number})"
        if isinstance(node, ast.Call):
            return self._call(node, least)
        if isinstance(node, ast.UnaryOp):
            if isinstance(node.op, ast.Invert):
                return f"negate({self.text(node.operand)})"
            operand = self.text(node.operand, _SIGN)
            return f"-({operand})" if operand.startswith("-") else f"-{operand}"
        return self._pair(node, least)

    def _pair(self, node: ast.expr, least: int) -> str:
        left, operator, right = _parts(node)
        level, spelled = _PRECEDENCE[operator]
        if operator in (ast.BitOr, ast.BitAnd):
            # Truths of one shape; compilers warn of `a < b & c < d`.
            element = self._is_element(node)
            text = f" {spelled} ".join(self._operand(side, element) for side in (left, right))
        else:
            text = f"{self.text(left, level)} {spelled} {self.text(right, level + 1)}"
        return f"({text})" if level < least else text

    def _operand(self, node: ast.expr, element: bool) -> str:
        spread = element and not self._is_element(node)
        return self.value(node, element) if spread else self.text(node, _SIGN)

    def _call(self, node: ast.Call, least: int) -> str:
        name, values = ast.unparse(node.func), node.args
        element = self._is_element(node)
        if name != "where":
            return f"{name}({', '.join(self.value(value, element) for value in values)})"
        condition, *both = values
        a, b = (self.value(v, element) if element else self.text(v, _CHOICE) for v in both)
        text = f"{self.text(condition, _CHOICE)} ? {a} : {b}"
        return f"({text})" if least else text

    def _is_element(self, node: ast.expr) -> bool:
        return any(isinstance(n, ast.Name) and n.id in self._elements for n in ast.walk(node))

    def _is_truth(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            return node.id in self._truths
        if isinstance(node, ast.BinOp):
            return isinstance(node.op, ast.BitAnd | ast.BitOr)
        return isinstance(node, ast.Compare) or (
            isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert)
        )


def _spelled(name: str) -> str:
    return f"{name}_" if name in _TAKEN.split() else name


def _parts(node: ast.expr) -> tuple[ast.expr, type[ast.AST], ast.expr]:
    if isinstance(node, ast.Compare):
        return node.left, type(node.ops[0]), node.comparators[0]
    assert isinstance(node, ast.BinOp)
    return node.left, type(node.op), node.right
