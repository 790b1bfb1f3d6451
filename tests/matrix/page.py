"""docs/versions.md, from what became of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .rows import LONG, QUICK, ROWS, Row


@dataclass
class Result:
    """What became of a row: its counts, or in `note` why there are none."""

    row: str
    date: str
    commit: str
    form: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    builder: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    note: str = ""


HEADER = ("Python", "torch", "Triton", "numpy", "form", "passed", "skipped", "failed", "seen")


def page(results: Mapping[str, Result]) -> str:
    """docs/versions.md; a row without a result says so."""
    lines = [cells(row, results.get(row.name)) for row in ROWS]
    table = [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
    table += [f"| {' | '.join(line)} |" for line in lines]
    known = [results[row.name] for row in ROWS if row.name in results]
    failed = [f"* {one.row}: `{name}`" for one in known for name in one.failed]
    builders = ", ".join(sorted({one.builder for one in known if one.counts})) or "none yet"
    left_out = LONG.partition("::")[2]
    modules = ", ".join(f"`{Path(name).stem}`" for name in QUICK)
    return (
        "# Versions\n\n"
        "What passed where; `make matrix` wrote this page. Every row is an environment of its own "
        "with exactly these versions. The tests run on the CPU, Triton's kernels in its "
        f"interpreter. All rows install one wheel (cp310-abi3), built by Python {builders} without "
        "torch; before the tests the default engine makes a step from it, with warnings as "
        "errors.\n\n"
        f"The quick form of the suite is {modules}, but for `{left_out}...]`. `make matrix FULL=1` "
        'runs the whole suite, `make matrix ONLY="3.10- torch2.15"` the rows whose names hold one '
        "of the words.\n\n"
        + "\n".join(table)
        + "\n"
        + ("\nFailed:\n\n" + "\n".join(failed) + "\n" if failed else "")
    )


def cells(row: Row, result: Result | None) -> list[str]:
    """A line of the table: what was asked for where there is nothing better."""
    if result is None:
        result = Result(row.name, "", "", note="not run")
    asked = asdict(row)
    versions = [result.versions.get(name, number) for name, number in asked.items()]
    seen = f"{result.date}, {result.commit}".strip(", ")
    if result.note:
        return [*versions, result.form, "–", "–", "–", f"{result.note}; {seen}".strip("; ")]
    counts = [f"{result.counts[name]:,}" for name in ("passed", "skipped", "failed")]
    return [*versions, result.form, *counts, seen]
