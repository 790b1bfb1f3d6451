"""Results as files and as tables, and the README's copy of them.

    python -m benchmarks.report [--check] [RESULT.json ...]

writes the results (by default those the README already names, else all in benchmarks/results) into
README.md between its markers; `--check` only compares.
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
START, END = "<!-- bench:start -->", "<!-- bench:end -->"
SOURCE = re.compile(r"<!-- bench:source (\S+) -->")


@dataclass(frozen=True)
class Row:
    """One provider on one model.

    Times are microseconds per step; `_low` and `_high` are the 20th and 80th percentile over the
    rounds. `to_default` and `to_fused` are this provider's time over torch default's and torch
    fused's in the same round, `to_limit` over that of a loop over the same bytes (on a CPU).
    `bytes` are those that a step has to move.
    """

    model: str
    provider: str
    us: float
    us_low: float
    us_high: float
    to_default: float
    to_default_low: float
    to_default_high: float
    to_fused: float
    to_fused_low: float
    to_fused_high: float
    bytes: int
    gb_per_s: float
    to_limit: float | None
    copy_gb_per_s: float
    launches: int | None


@dataclass(frozen=True)
class Result:
    """The rows of one run, and where and with what it ran."""

    record: dict[str, Any]
    models: dict[str, str]
    left_out: dict[str, str]
    rows: list[Row]

    def save(self, stem: Path) -> None:
        """Write `stem`.csv (the rows), .json (the rest) and .md (a table of both)."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        with stem.with_name(stem.name + ".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)
        rest = {"record": self.record, "models": self.models, "left_out": self.left_out}
        stem.with_name(stem.name + ".json").write_text(json.dumps(rest, indent=2) + "\n")
        stem.with_name(stem.name + ".md").write_text(full_report(self))

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Read what `save` wrote; `path` is the .json."""
        with path.with_suffix(".csv").open(newline="") as file:
            rows = [parse_row(cells) for cells in csv.DictReader(file)]
        return cls(**json.loads(path.read_text()), rows=rows)

    def at(self, model: str, provider: str) -> Row | None:
        """The row of a provider on a model, if it was measured."""
        found = (row for row in self.rows if (row.model, row.provider) == (model, provider))
        return next(found, None)


def parse_row(cells: dict[str, str]) -> Row:
    """A Row from the strings of a CSV line."""
    names = {"model", "provider"}
    counts = {"bytes", "launches"}
    values: dict[str, Any] = {
        key: cell if key in names else int(cell) if key in counts and cell else float(cell or "nan")
        for key, cell in cells.items()
    }
    for key in ("launches", "to_limit"):
        values[key] = values[key] if cells[key] else None
    return Row(**values)


# ---------------------------------------------------------------------------- tables


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table whose first `texts` columns are text and whose others are numbers."""
    lines = [header, ["---"] * texts + ["---:"] * (len(header) - texts), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def format_time(us: float) -> str:
    """Three digits: 12.3 us, 1.23 ms, 1.23 s."""
    for unit, size in (("us", 1.0), ("ms", 1e3), ("s", 1e6)):
        if us < 999.5 * size or unit == "s":
            break
    digits = f"{us / size:#.3g}".rstrip(".")
    return f"{digits} {unit}"


def caption(result: Result) -> str:
    """Where and with what the result was measured, in one line."""
    record = result.record
    triton = f", triton {record['triton']}" if record["triton"] else ""
    return (
        f"{record['device']}; torch {record['torch']}{triton}, Python {record['python']}, "
        f"{record['threads']} CPU threads, load average {record['load_average']}; "
        f"commit {record['commit']}, {record['date']}."
    )


def task(result: Result) -> str:
    """What was trained, for example `AdamW and CosineAnnealingLR, float32`."""
    return f"{result.record['optimizer']} and CosineAnnealingLR, {result.record['dtype']}"


def full_report(result: Result) -> str:
    """Every number of a run."""
    header = (
        *("model", "provider", "time", "20 % ... 80 %"),
        *("to torch default", "to torch fused", "20 % ... 80 %", "to limit"),
        *("GB/s", "copy GB/s", "launches"),
    )
    table = markdown_table(header, (full_cells(row) for row in result.rows), texts=2)
    models = "".join(f"* {name}: {text}\n" for name, text in result.models.items())
    absent = "".join(f"* not measured: {name}: {why}\n" for name, why in result.left_out.items())
    return (
        f"# opt.step(); sched.step()\n\n{caption(result)}\n\n"
        f"{task(result)}. Times are medians over interleaved rounds, ratios are medians of the "
        "ratios within a round. To limit: over the time of a loop on the same threads that moves "
        "the same bytes and computes next to nothing. GB/s counts the bytes a step has to move; "
        "copy GB/s is this machine's own rate, measured in the same rounds (on a CPU a step may "
        "exceed it: a copy also reads what it overwrites, uncounted).\n\n"
        f"{models}{absent}\n{table}"
    )


def full_cells(row: Row) -> tuple[str, ...]:
    """A line of the full table."""
    return (
        row.model,
        row.provider,
        format_time(row.us),
        f"{format_time(row.us_low)} ... {format_time(row.us_high)}",
        f"{row.to_default:.2f}",
        f"{row.to_fused:.2f}",
        f"{row.to_fused_low:.2f} ... {row.to_fused_high:.2f}",
        "" if row.to_limit is None else f"{row.to_limit:.2f}",
        f"{row.gb_per_s:.1f}",
        f"{row.copy_gb_per_s:.1f}",
        "" if row.launches is None else str(row.launches),
    )


def compact_table(result: Result) -> str:
    """Providers down, models across; in each cell the time and its ratio to torch fused."""
    providers = list(dict.fromkeys(row.provider for row in result.rows))
    lines = [
        [provider, *(compact_cell(result.at(model, provider)) for model in result.models)]
        for provider in providers
    ]
    copies = [compact_copy(result, model) for model in result.models]
    return markdown_table(["", *result.models], [*lines, ["*copy rate*", *copies]])


def compact_cell(row: Row | None) -> str:
    """For example `1.23 ms (0.41) 612 GB/s`; bandwidth only where memory is what limits."""
    if row is None:
        return ""
    cell = f"{format_time(row.us)} ({row.to_fused:.2f})"
    return f"{cell} {row.gb_per_s:.0f} GB/s" if limited_by_memory(row) else cell


def compact_copy(result: Result, model: str) -> str:
    """The machine's copy rate beside the bandwidths."""
    row = next((row for row in result.rows if row.model == model), None)
    return f"{row.copy_gb_per_s:.0f} GB/s" if row and limited_by_memory(row) else ""


def limited_by_memory(row: Row) -> bool:
    """Whether a step moves more than caches hold (the bound is the copy's size, 256 MiB)."""
    return row.bytes > 256 * 2**20


# ---------------------------------------------------------------------------- the README


def readme_block(results: dict[str, Result]) -> str:
    """The text between the markers; `results` by the name of their JSON file."""
    sections = [
        f"<!-- bench:source {name} -->\n**{task(result)}.** {caption(result)}\n\n"
        f"{compact_table(result)}"
        for name, result in results.items()
    ]
    note = (
        "Time of `opt.step(); sched.step()`, its ratio to torch fused in the same round, and where "
        "memory limits the GB/s of counted bytes. All numbers: `benchmarks/results/`.\n"
    )
    return "\n".join([START, note, *sections]) + END


def replace_block(readme: str, block: str) -> str:
    """The README with `block` in place of the old one."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"expected the markers {START} and {END} in the README")
    return before + block + after


def result_paths(readme: str, results: Path) -> list[Path]:
    """The result files that the README names, else all there are."""
    named = [results / name for name in SOURCE.findall(readme)]
    return named or sorted(results.glob("step-*.json"))


def updated_readme(readme: str, paths: Sequence[Path]) -> str:
    """The README as it should read, given these result files."""
    return replace_block(readme, readme_block({path.name: Result.load(path) for path in paths}))


def readme_agrees(readme: Path = README, results: Path = RESULTS) -> bool:
    """Whether the README's numbers are those of the result files it names."""
    text = readme.read_text()
    return updated_readme(text, result_paths(text, results)) == text


def main(arguments: list[str] | None = None) -> int:
    """Write the README's table, or check it (1 if it is stale)."""
    parser = argparse.ArgumentParser(description="Put benchmark results into the README.")
    parser.add_argument("results", nargs="*", type=Path, help="JSON files of benchmarks.step")
    parser.add_argument("--check", action="store_true", help="compare only")
    options = parser.parse_args(arguments)
    text = README.read_text()
    wanted = updated_readme(text, options.results or result_paths(text, RESULTS))
    if options.check:
        return int(wanted != text)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
