"""``python -m fused_sched rule``: an optimizer's arithmetic, as Python or as C++."""

from __future__ import annotations

import argparse
from pathlib import Path

from fused_sched.engines import native_sources
from fused_sched.rules.cpp import struct
from fused_sched.rules.source import RuleSource, from_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "name", help="an optimizer of fused_sched.optim, or a class of your own as lion.py:Lion"
    )
    parser.add_argument(
        "--as", dest="form", choices=("python", "cpp"), default="python", help="(python)"
    )
    parser.set_defaults(run=show)


def show(arguments: argparse.Namespace) -> None:
    """Print it.

    Raises:
        ValueError: there is no such rule.
        OSError: there is no such file.
    """
    found = _find(arguments.name)
    print(struct(found) if arguments.form == "cpp" else found.text, end="")


def _find(name: str) -> RuleSource:
    file, _, wanted = name.rpartition(":")
    if file:
        rules = from_text(Path(file).read_text(encoding="utf-8"), file)
    else:
        rules = [rule for _, rule in native_sources.built_in()]
    for rule in rules:
        if rule.name == wanted:
            return rule
    known = ", ".join(rule.name for rule in rules) or "none"
    raise ValueError(f"no class {wanted!r} with coefficients() and rule(); there are: {known}")
