"""The tables of `benchmarks.cases`: ordinary uses, each beside torch's fused step."""

from dataclasses import dataclass

from benchmarks.result import Result
from benchmarks.tables.markdown import (
    caption,
    document,
    format_span,
    format_time,
    markdown_table,
    unique,
)
from benchmarks.tables.plots import Figure, draw_bars

STOCK = ("torch default", "torch fused")


@dataclass(frozen=True)
class Row:
    """One provider's turn of a loop.

    `us` are microseconds; `to_fused` is the ratio to torch fused's turn of the same round; `_low`
    and `_high` are the 20th and 80th percentile over the rounds.
    """

    use: str
    provider: str
    us: float
    us_low: float
    us_high: float
    to_fused: float
    to_fused_low: float
    to_fused_high: float

    @property
    def model(self) -> str:
        """What the plot has a bar for."""
        return self.use


TITLE = "Ordinary uses"

NOTE = """\
What ordinary uses cost beside torch's fused step: one turn of a training loop without forward and
backward, of AdamW with CosineAnnealingLR on a small MLP (6 tensors, 84,060 params) where a line
does not say otherwise.

* *explicit*: the loop calls `sched.step()`, as with stock torch. *fused*: after `fuse(opt, sched)`,
  and it goes on calling `sched.step()`.
* in each cell the time of a turn, and in brackets its ratio to torch fused's in the same round: 0.5
  is half of its time. An empty cell has no loop of its own.
"""


def full(result: Result) -> str:
    """Every number of a run."""
    text = (
        "AdamW and, where nothing else is said, CosineAnnealingLR on an MLP of 6 tensors and "
        "84,060 params. A turn is a loop's without forward and backward. Times are medians over "
        "interleaved rounds, ratios are medians of the ratios within a round."
    )
    header = ("use", "provider", "time", "20 % ... 80 %", "to torch fused", "20 % ... 80 %")
    table = markdown_table(header, map(cells, result.rows), texts=2)
    return document(TITLE, result, text, table)


def cells(row: Row) -> tuple[str, ...]:
    """A line of the full table."""
    return (
        row.use,
        row.provider,
        format_time(row.us),
        format_span(row.us_low, row.us_high),
        f"{row.to_fused:.2f}",
        f"{row.to_fused_low:.2f} ... {row.to_fused_high:.2f}",
    )


def summary(result: Result) -> str:
    """Uses down, providers across; in each cell the time and its ratio to torch fused."""
    found = {(row.use, row.provider): row for row in result.rows}
    providers = unique(row.provider for row in result.rows)
    lines = [
        [f"{use}: {about}", *(cell(found.get((use, provider))) for provider in providers)]
        for use, about in result.models.items()
    ]
    return f"{caption(result)}\n\n{markdown_table(['', *providers], lines)}\n{losses(result)}\n"


def cell(row: Row | None) -> str:
    """For example `12.3 us (0.41)`; nothing where the provider has no such loop."""
    return "" if row is None else f"{format_time(row.us)} ({row.to_fused:.2f})"


def losses(result: Result) -> str:
    """The cells in which we take longer than torch fused, as the table rounds them."""
    slower = [
        f"{row.provider}, {row.use} ({row.to_fused:.2f})"
        for row in result.rows
        if row.provider not in STOCK and round(row.to_fused, 2) > 1
    ]
    return f"Slower than torch fused: {'; '.join(slower) or 'none of ours'}."


def draw(result: Result, figure: Figure) -> None:
    """Time over torch fused's."""
    draw_bars(figure, result, "to_fused", "time of a turn over torch fused's (left is faster)")
