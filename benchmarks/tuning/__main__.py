"""The command: settle, write, print."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.command import new_parser, stem_of
from benchmarks.measure import Effort
from benchmarks.result import suffixed
from benchmarks.tables.markdown import caption, format_time, markdown_table
from benchmarks.tuning.cases import Row
from benchmarks.tuning.knobs import PARTS, lines_to_write
from benchmarks.tuning.search import CHOSEN, Search
from fused_sched.engines import triton_engine

EFFORT = Effort(rounds=7, batch_seconds=0.02, max_steps=200)
QUICK = Effort(rounds=2, batch_seconds=0.0, max_steps=1)
SIZES = (25_000_000, 124_000_000, 1_000_000_000)
SECONDS = 230


def text(search: Search, rows: Sequence[Row]) -> str:
    """The choice, then these rows."""
    result = search.result()
    header = (
        *("part", "case", "elements", "choice", "time", "to what held"),
        *("GB/s", "of the copy"),
    )
    lines = [
        (
            *(row.part, f"{row.task}, {row.dtype}", f"{row.elements:,}", row.choice),
            *(format_time(row.us), f"{row.to_present:.3f}"),
            *(f"{row.gb_per_s:,.0f}", f"{row.gb_per_s / row.copy_gb_per_s:.0%}"),
        )
        for row in rows
    ]
    absent = "".join(f"* not measured: {name}: {why}\n" for name, why in result.left_out.items())
    chosen = lines_to_write(search.chosen, search.device)
    return (
        f"# Tuning\n\n{caption(result)}\n\n```python\n{chosen}```\n\n{absent}\n"
        f"{markdown_table(header, lines, texts=4)}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Settle part after part, write the files, print the choice and the last table."""
    options = parse(arguments)
    device = torch.device(options.device)
    if (why := triton_engine.unavailable(device)) is not None:
        print(f"benchmarks.tuning: nothing measured, {why}")
        return 0
    effort = QUICK if options.quick else EFFORT
    search = Search(device, options.elements, effort, time.monotonic() + options.seconds)
    stem = stem_of("tuning", options)
    for part in PARTS:
        search.settle(part)
        write(search, stem)
    search.confirm()
    write(search, stem)
    print(text(search, [row for row in search.rows if row.part == CHOSEN]))
    return 0


def write(search: Search, stem: Path) -> None:
    """CSV, JSON and markdown of what there is so far."""
    if search.rows:
        search.result().save(stem)
        suffixed(stem, ".md").write_text(text(search, search.rows))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser("Choose the knobs of the Triton launch for this GPU.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="begin nothing after these")
    parser.add_argument("--elements", type=int, nargs="+", default=SIZES, help="sizes of a model")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
