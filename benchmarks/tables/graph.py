"""The tables of `benchmarks.graph`: training iterations per second."""

from dataclasses import dataclass

from benchmarks.result import Result
from benchmarks.tables.markdown import caption, document, markdown_table, optional, unique
from benchmarks.tables.plots import Figure, draw_bars

BASELINE = "torch fused"
"""Eager: the provider that every device and every optimizer has."""


@dataclass(frozen=True)
class Row:
    """One provider's iterations of one network.

    `per_second` are iterations; `speedup` is over eager torch fused in the same round; `_low` and
    `_high` are the 20th and 80th percentile. `launches` are the kernels, copies and fills that one
    iteration puts on the GPU, by the profiler.
    """

    model: str
    provider: str
    per_second: float
    per_second_low: float
    per_second_high: float
    speedup: float
    speedup_low: float
    speedup_high: float
    launches: int | None


TITLE = "Training iterations"

NOTE = """\
Whole iterations a second: forward, backward, `opt.step()`, `sched.step()`. *graph*: a replayed CUDA
graph, with torch's scheduler on the host between replays. *launches*: kernels, copies and fills of
one iteration.
"""


def full(result: Result) -> str:
    """Every number of a run."""
    text = (
        f"AdamW and CosineAnnealingLR, float32. Iterations a second are medians over interleaved "
        f"rounds; speed-up is over eager {BASELINE} in the same round. Launches are the kernels, "
        "copies and fills of one iteration."
    )
    header = (
        *("model", "provider", "iterations/s", "20 % ... 80 %"),
        *("speed-up", "20 % ... 80 %", "launches"),
    )
    table = markdown_table(header, map(cells, result.rows), texts=2)
    return document(TITLE, result, text, table)


def cells(row: Row) -> tuple[str, ...]:
    """A line of the full table."""
    return (
        row.model,
        row.provider,
        f"{row.per_second:,.0f}",
        f"{row.per_second_low:,.0f} ... {row.per_second_high:,.0f}",
        f"{row.speedup:.2f}",
        f"{row.speedup_low:.2f} ... {row.speedup_high:.2f}",
        optional(row.launches),
    )


def summary(result: Result) -> str:
    """Providers down, networks across."""
    found = {(row.model, row.provider): row for row in result.rows}

    def cell(model: str, provider: str) -> str:
        row = found[model, provider]
        launches = "" if row.launches is None else f", {row.launches} launches"
        return f"{row.per_second:,.0f}/s{launches}"

    lines = [
        [provider, *(cell(model, provider) for model in result.models)]
        for provider in unique(row.provider for row in result.rows)
    ]
    return f"{caption(result)}\n\n{markdown_table(['', *result.models], lines)}\n"


def draw(result: Result, figure: Figure) -> None:
    """Iterations a second over eager torch fused's."""
    draw_bars(
        figure, result, "speedup", f"iterations a second over eager {BASELINE}'s (right is faster)"
    )
