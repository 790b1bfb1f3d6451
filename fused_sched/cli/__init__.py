"""The command line: ``python -m fused_sched doctor``, ``plot`` or ``bench``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import bench, doctor, plot

_COMMANDS = (
    (
        "doctor",
        doctor.add_arguments,
        "say which engines are here and why another is not, and check each against stock torch",
        "Exit status 1 if one is off.",
    ),
    (
        "plot",
        plot.add_arguments,
        "draw schedules, in the terminal or into a picture",
        "Nothing is trained; lr, and momentum where the schedule drives it.",
    ),
    (
        "bench",
        bench.add_arguments,
        "time a step of this package beside stock torch's, on this machine",
        "Interleaved pairs; takes about ten seconds.",
    ),
)


def parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    top = argparse.ArgumentParser(
        prog="python -m fused_sched", description="fused_sched from the command line."
    )
    commands = top.add_subparsers(required=True, metavar="command")
    for name, add_arguments, what, more in _COMMANDS:
        description = f"{what[0].upper()}{what[1:]}. {more}"
        add_arguments(commands.add_parser(name, help=what, description=description))
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status, 2 for what was asked for and cannot be done."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (ValueError, ImportError, OSError) as error:
        print(f"python -m fused_sched: {error}", file=sys.stderr)
        return 2
