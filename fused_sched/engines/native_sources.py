"""The C++ that is written from Python: each optimizer's rule, the list of them, the layout.

``setup.py`` imports this where neither torch nor Triton is installed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from fused_sched.rules.cpp import struct
from fused_sched.rules.source import RuleSource, from_text
from fused_sched.tables import layout

from .native_structs import STRUCTS

_TOGETHER = 6
"""Rules that the compiler takes at once. The headers, and what no rule changes, cost it as much as
three rules: with one rule a file a build takes over twice as long (g++ 12). More than these would
leave too few files for many cores, and too much to compile again after a change of one rule."""

_HEAD = "// Written by fused_sched/engines/native_sources.py from {0}; do not edit.\n"


def built_in() -> list[tuple[str, RuleSource]]:
    """(file, rule) of every optimizer of the package."""
    folder = Path(__file__).resolve().parent.parent / "optim"
    return [
        (f"fused_sched/optim/{path.name}", rule)
        for path in sorted(folder.glob("*.py"))
        for rule in from_text(path.read_text(encoding="utf-8"), str(path))
    ]


@functools.cache
def cuda_rules() -> tuple[str, ...]:
    """Those with kernels in csrc/cuda.cu, in the order of their numbers."""
    return tuple(rule.name for _, rule in built_in() if rule.native_cuda)


def generated(rules: Sequence[tuple[str, RuleSource]]) -> dict[str, str]:
    """Name -> text of every file that is written beside ``csrc/``.

    ``<Rule>.h`` has the struct; ``<Rule>.cpp`` its launch on the CPU, for one instruction set;
    ``rules_0.cpp`` and so on the launches of some rules (:func:`units`); ``rules.h`` all structs;
    ``rule_list.h`` ``FS_RULES(X)``, which is ``X(Adam) X(SGD) ...``, and ``FS_CUDA_RULES(X)``. And
    those of :func:`shared`.
    """
    names = [rule.name for _, rule in rules]
    on_cuda = [rule.name for _, rule in rules if rule.native_cuda]
    every = _HEAD.format("fused_sched/optim") + "#pragma once\n\n"
    files = shared() | {
        "rule_list.h": every + _list("FS_RULES", names) + _list("FS_CUDA_RULES", on_cuda),
        "rules.h": every + "".join(f'#include "{name}.h"\n' for name in names),
    }
    for file, rule in rules:
        files[f"{rule.name}.h"] = header(file, rule)
        files[f"{rule.name}.cpp"] = launch(file, rule, f"void update_{rule.name}")
    for unit, together in units(names).items():
        includes = "".join(f'#include "{name}.cpp"\n' for name in together)
        files[f"{unit}.cpp"] = _HEAD.format("fused_sched/optim") + includes
    return files


def units(names: Sequence[str]) -> dict[str, Sequence[str]]:
    """Which rules are compiled together, by the name of the file that has them."""
    starts = range(0, len(names), _TOGETHER)
    return {f"rules_{i}": names[start : start + _TOGETHER] for i, start in enumerate(starts)}


def shared() -> dict[str, str]:
    """``layout.h`` has the integers of tables/layout.py, ``structs.h`` what Python passes."""
    numbers = [(name, value) for name, value in vars(layout).items() if type(value) is int]
    lines = "".join(f"  {name} = {value},\n" for name, value in numbers)
    enum = f"namespace fused_sched {{\n\nenum Layout {{\n{lines}}};\n\n}}  // fused_sched\n"
    structs = "#include <cstdint>\n\n" + "\n".join(one.text() for one in STRUCTS)
    head = _HEAD + "#pragma once\n\n"
    return {
        "layout.h": head.format("fused_sched/tables/layout.py") + enum,
        "structs.h": head.format("fused_sched/engines/native_structs.py") + structs,
    }


def _list(macro: str, names: Sequence[str]) -> str:
    return f"#define {macro}(X) {' '.join(f'X({name})' for name in names)}\n"


def header(file: str, rule: RuleSource) -> str:
    """``<Rule>.h``."""
    return (
        f'{_HEAD.format(file)}#pragma once\n\n#include "arithmetic.h"\n\n'
        f"namespace fused_sched {{\n\n{struct(rule)}\n}}  // namespace fused_sched\n"
    )


def launch(file: str, rule: RuleSource, function: str) -> str:
    """``<Rule>.cpp``, whose ``function`` updates every tensor of a launch."""
    return (
        f'{_HEAD.format(file)}#include "cpu_update.h"\n#include "{rule.name}.h"\n\n'
        "namespace fused_sched {\n\n"
        f"{function}(const UpdateArgs& args, const Threads& threads) {{\n"
        f"  Launch<{rule.name}Rule>(args).run(threads);\n"
        "}\n\n}  // namespace fused_sched\n"
    )


def write(files: Mapping[str, str], folder: Path) -> None:
    """Write what is not there yet: a file that stays as it is compiles nothing anew."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def digest(csrc: Path, files: Mapping[str, str]) -> str:
    """A name for what the library is made of."""
    snapshot = hashlib.sha256()
    for path in sorted(csrc.glob("*.[ch]*")):
        snapshot.update(path.read_bytes())
    for name in sorted(files):
        snapshot.update(files[name].encode())
    return snapshot.hexdigest()[:32]
