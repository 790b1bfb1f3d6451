"""A report on the compiled kernels: registers, accesses, instructions, and a roofline estimate.

    python -m benchmarks.static [--out DIR]

compiles every rule for every target, writes static-report.md (by default
into benchmarks/results), and fails where a kernel is beyond a limit. `--json --quick` prints the
figures of those variants that are nearest to one, for tests/test_static.py. Needs Triton, no GPU.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "0"  # before Triton's import: decides what @triton.jit makes

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.record import commit, installed_version
from benchmarks.result import RESULTS
from benchmarks.static.figures import as_data, examine
from benchmarks.static.limits import broken
from benchmarks.static.reloads import reloads
from benchmarks.static.report import text
from benchmarks.static.targets import TARGETS
from benchmarks.static.variants import QUICK, VARIANTS, Variant, examined

NAME = "static-report"


def report(variants: Sequence[Variant], targets: Sequence[str]) -> dict[str, Any]:
    """Every variant, and the schedule's kernel, on every target."""
    jobs = [*examined(variants, targets), *((None, target) for target in targets)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(examine, *zip(*jobs, strict=True)))
    return {
        "record": {"triton": installed_version("triton"), "commit": commit()},
        "figures": [as_data(row) for row in rows],
        "reloads": reloads(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Compile everything, and write or print what was found."""
    parser = argparse.ArgumentParser(description="Examine the compiled kernels.")
    parser.add_argument("--json", action="store_true", help="print JSON, write nothing")
    parser.add_argument("--quick", action="store_true", help="only the variants nearest to limits")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the report")
    options = parser.parse_args(arguments)
    data = report(QUICK if options.quick else VARIANTS, options.targets)
    if options.json:
        print(json.dumps(data))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{NAME}.md").write_text(text(data))
    print(text(data))
    beyond = broken(data["figures"])
    print(*beyond, sep="\n")
    return int(bool(beyond))


if __name__ == "__main__":
    sys.exit(main())
