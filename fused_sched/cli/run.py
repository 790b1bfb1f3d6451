"""``python -m fused_sched run``: a script as it stands, with torch's names meaning our classes."""

from __future__ import annotations

import argparse
import sys

import fused_sched

from .children import swap_in_children
from .compare import compare
from .made import Made
from .script import execute


def run(arguments: argparse.Namespace) -> int:
    """Run the script; its exit status."""
    if arguments.compare is not None:
        return compare(arguments)
    swap = fused_sched.swap()  # for the rest of the process: the script owns it
    made = Made(keep=arguments.explain, fuse=arguments.fuse)
    swap_in_children(arguments.fuse)
    try:
        return execute(arguments.script, arguments.arguments, arguments.module)
    finally:
        if arguments.explain:
            print(made.report(swap), file=sys.stderr)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options, the script, and what is the script's own."""
    parser.add_argument(
        "--fuse", action="store_true", help="fuse each scheduler that steps by itself"
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--explain",
        action="store_true",
        help="say on stderr at the end what was swapped and made, and what each optimizer does",
    )
    either.add_argument(
        "--compare",
        type=_count,
        metavar="N",
        help="run the script twice, with stock torch and with this package, for N optimizer steps "
        "and N more that are timed; print the largest differences and the time of a step",
    )
    parser.add_argument("-m", dest="module", action="store_true", help="the script is a module")
    parser.add_argument("script", help="a Python file, or a module after -m")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments"
    )
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    steps = int(text)
    if steps < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1 step, but got {steps}")
    return steps
