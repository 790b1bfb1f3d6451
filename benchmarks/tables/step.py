"""The tables of `benchmarks.step`: every provider on every model."""

from dataclasses import dataclass

from benchmarks.result import Result
from benchmarks.tables.markdown import (
    caption,
    document,
    format_span,
    format_time,
    markdown_table,
    optional,
    unique,
)
from benchmarks.tables.plots import Figure, draw_bars

CACHES = 256 * 2**20
"""Bytes that no machine's caches hold; as many as the copy moves that a rate stands beside. A step
that moves fewer has no rate in the tables: it would be that of the caches."""

TORCH, ENGINES = "torch", ("triton", "native", "eager")


@dataclass(frozen=True)
class Row:
    """One provider on one model.

    Times are microseconds per step; `_low` and `_high` are the 20th and 80th percentile over the
    rounds. `to_default` and `to_fused` are this provider's time over torch default's and torch
    fused's in the same round (None where memory holds no torch default beside it; torch foreach's
    where torch has no fused step: see `baseline`), `to_limit` over that of a loop over the same
    bytes (on a CPU). `bytes` are those that a step has to move.
    """

    model: str
    provider: str
    us: float
    us_low: float
    us_high: float
    to_default: float | None
    to_default_low: float | None
    to_default_high: float | None
    to_fused: float
    to_fused_low: float
    to_fused_high: float
    bytes: int
    gb_per_s: float
    to_limit: float | None
    copy_gb_per_s: float
    launches: int | None


TITLE = "A step"

NOTE = """\
Time of `opt.step(); sched.step()`, in brackets its ratio to torch fused: the median of the ratios
within a round. *explicit*: `sched.step()` is a step of its own. *fused*: the same loop after
`fuse(opt, sched)`, where `sched.step()` confirms what the launch of `opt.step()` has computed.

* *GB/s*: the bytes that a step has to move, over its time; only where they exceed 256 MiB, since
  fewer may come from a cache.
* *copy rate*: this machine's own, measured in the same rounds. On a CPU a step may exceed it: a
  copy also reads what it overwrites, which is not counted.
"""


def baseline(result: Result) -> str:
    """What `to_fused` refers to: torch foreach where torch has no fused step of the optimizer."""
    return "torch foreach" if "torch fused" in result.left_out else "torch fused"


def task(result: Result) -> str:
    """What was trained, for example `AdamW and CosineAnnealingLR, float32`."""
    return f"{result.record['optimizer']} and CosineAnnealingLR, {result.record['dtype']}"


def full(result: Result) -> str:
    """Every number of a run."""
    return document(TITLE, result, f"{task(result)}. {EXPLAINED}", rows(result))


EXPLAINED = (
    "Times are medians over interleaved rounds, ratios are medians of the ratios within a round. "
    "To limit: over the time of a loop on the same threads that moves the same bytes and computes "
    "next to nothing. GB/s counts the bytes a step has to move, where they exceed 256 MiB; copy "
    "GB/s is this machine's own rate, measured in the same rounds (on a CPU a step may exceed it: "
    "a copy also reads what it overwrites, uncounted)."
)


def rows(result: Result) -> str:
    """The table of all rows."""
    header = (
        *("model", "provider", "time", "20 % ... 80 %"),
        *("to torch default", f"to {baseline(result)}", "20 % ... 80 %", "to limit"),
        *("GB/s", "copy GB/s", "launches"),
    )
    return markdown_table(header, map(cells, result.rows), texts=2)


def cells(row: Row) -> tuple[str, ...]:
    """A line of the full table."""
    return (
        row.model,
        row.provider,
        format_time(row.us),
        format_span(row.us_low, row.us_high),
        optional(row.to_default, ".2f"),
        f"{row.to_fused:.2f}",
        f"{row.to_fused_low:.2f} ... {row.to_fused_high:.2f}",
        optional(row.to_limit, ".2f"),
        f"{row.gb_per_s:.1f}" if row.bytes > CACHES else "",
        f"{row.copy_gb_per_s:.1f}" if row.bytes > CACHES else "",
        optional(row.launches),
    )


def summary(result: Result) -> str:
    """Providers down, models across; in each cell the time and its ratio to the baseline."""
    found = {(row.model, row.provider): row for row in result.rows}
    lines = [
        [provider, *(cell(found.get((model, provider))) for model in result.models)]
        for provider in unique(row.provider for row in result.rows)
    ]
    copies = [compact_copy(result, model) for model in result.models]
    table = markdown_table(["", *result.models], [*lines, ["*copy rate*", *copies]])
    base = baseline(result)
    other = f" Ratios are to {base}: torch has no fused step." if base != "torch fused" else ""
    return f"**{task(result)}.**{other} {caption(result)}\n\n{table}\n{losses(result)}\n"


def cell(row: Row | None) -> str:
    """For example `1.23 ms (0.41) 612 GB/s`; a rate only where no cache holds the model."""
    rate = f" {row.gb_per_s:.0f} GB/s" if row and row.bytes > CACHES else ""
    return timed(row) + rate


def timed(row: Row | None) -> str:
    """For example `1.23 ms (0.41)`."""
    return "" if row is None else f"{format_time(row.us)} ({row.to_fused:.2f})"


def compact_copy(result: Result, model: str) -> str:
    """The machine's copy rate beside the bandwidths."""
    row = next((row for row in result.rows if row.model == model), None)
    return f"{row.copy_gb_per_s:.0f} GB/s" if row and row.bytes > CACHES else ""


def losses(result: Result) -> str:
    """Where an engine of ours takes longer than the baseline, as the table rounds it."""
    slower: dict[str, list[str]] = {}
    for row in result.rows:
        if row.provider.startswith(ENGINES) and round(row.to_fused, 2) > 1:
            slower.setdefault(row.provider, []).append(row.model)
    named = [
        f"{provider} on {'every model' if len(models) == len(result.models) else ', '.join(models)}"
        for provider, models in slower.items()
    ]
    return f"Slower than {baseline(result)}: {'; '.join(named) or 'none of ours'}."


def draw(result: Result, figure: Figure) -> None:
    """Time over the baseline's."""
    draw_bars(
        figure,
        result,
        "to_fused",
        f"time of opt.step(); sched.step() over {baseline(result)}'s (left is faster)",
    )
