"""The command line: ``python -m fused_sched``, which lists its commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fused_sched import __version__

from . import bench, doctor, plot, rule, run

_COMMANDS = (
    (
        "doctor",
        doctor.add_arguments,
        "list the engines, say why one is missing, and check each against stock torch",
        "Exit status 1 if one differs, or if a step would raise.",
    ),
    (
        "plot",
        plot.add_arguments,
        "draw schedules, in the terminal or as a picture",
        "Draws lr, and momentum where the schedule changes it; trains nothing.",
    ),
    (
        "bench",
        bench.add_arguments,
        "time a step of this package beside stock torch's, on this machine",
        "The ways take turns; takes about ten seconds.",
    ),
    (
        "rule",
        rule.add_arguments,
        "print an optimizer's arithmetic, as it is written or as the C++ that is compiled",
        "Reads the source; runs nothing of it.",
    ),
    (
        "run",
        run.add_arguments,
        "run a training script as it stands, with torch's names meaning this package's classes",
        "Options of this command stand before the script. Exit status: the script's.",
    ),
)


def parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    top = argparse.ArgumentParser(
        prog="python -m fused_sched", description="fused_sched from the command line."
    )
    top.add_argument("--version", action="version", version=f"fused_sched {__version__}")
    top.set_defaults(run=lambda _: top.print_help())
    commands = top.add_subparsers(metavar="command")
    for name, add_arguments, what, more in _COMMANDS:
        description = f"{what[0].upper()}{what[1:]}. {more}"
        add_arguments(commands.add_parser(name, help=what, description=description))
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; without one, list them.

    Returns:
        The exit status: 0 if all is well, 2 if the command cannot be run as given, else the
        command's own.
    """
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except (ValueError, ImportError, OSError) as error:
        print(f"python -m fused_sched: {error}", file=sys.stderr)
        return 2
