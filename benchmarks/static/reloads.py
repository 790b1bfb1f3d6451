"""A static check of Rule 5 of Note [One launch], on the kernels' source."""

import ast
from pathlib import Path

from fused_sched import kernels


def reloads() -> list[str]:
    """Rule 5 of Note [One launch]: a load of what the same function has stored, without a barrier.

    Triton stores a scalar from one thread and loads it in all, with nothing between. Compared are
    the address expressions of ``tl.store`` and ``tl.load`` as they are written, in the order of a
    function's source: an alias under another name is not seen.
    """
    found = []
    for file in sorted(Path(kernels.__path__[0]).glob("*.py")):
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                found += [f"{file.name}:{line}" for line in reloads_in(function)]
    return found


def reloads_in(function: ast.FunctionDef) -> list[int]:
    calls = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    stored: set[str] = set()
    lines = []
    for call in sorted(calls, key=lambda node: (node.end_lineno, node.end_col_offset)):
        name = call.func.attr  # type: ignore[attr-defined]
        if name == "debug_barrier":
            stored.clear()
        elif any(keyword.arg == "mask" for keyword in call.keywords):
            continue
        elif name == "store":
            stored.add(ast.unparse(call.args[0]))
        elif name == "load" and ast.unparse(call.args[0]) in stored:
            lines.append(call.lineno)
    return lines
