"""The tables of `benchmarks.scaling`: the step's time and rate by the number of elements."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

from benchmarks.result import Result
from benchmarks.tables import step
from benchmarks.tables.markdown import caption, document, format_time, markdown_table, unique
from benchmarks.tables.plots import Figure, draw_curve, new_axes

Row = step.Row
"""As for the step; `model` is the number of elements."""

TITLE = "A step by the number of elements"

NOTE = """\
Time of `opt.step(); sched.step()` on 10 equal tensors with so many elements together. *GB/s* and
*copy rate* as above. *doubled*: the number of elements at which a
step takes twice as long as on the smallest size; below it, their number hardly matters.
"""


@dataclass(frozen=True)
class Curve:
    """One provider's (elements, row), in order of size."""

    provider: str
    rows: Sequence[Row]

    def doubled(self) -> float | None:
        """Elements at which a step first takes twice the smallest size's time; None if never.

        Between two sizes by a line through the logarithms.
        """
        times = [row.us / (2 * self.rows[0].us) for row in self.rows]
        above = next((i for i, time in enumerate(times) if time >= 1), None)
        if above is None:
            return None
        x0, x1 = (log(float(row.model)) for row in self.rows[above - 1 : above + 1])
        y0, y1 = (log(time) for time in times[above - 1 : above + 1])
        return exp(x0 - y0 * (x1 - x0) / (y1 - y0))


def curves(result: Result) -> list[Curve]:
    """One for each provider."""
    return [
        Curve(name, [row for row in result.rows if row.provider == name])
        for name in unique(row.provider for row in result.rows)
    ]


def full(result: Result) -> str:
    """Every number of a run, after the sizes at which the time has doubled."""
    header = ("provider", "time doubled at, elements")
    table = markdown_table(header, map(doubled_line, curves(result)))
    text = f"{step.task(result)}. {step.EXPLAINED}\n\n{NOTE}\n{table}"
    return document(TITLE, result, text, step.rows(result))


def doubled_line(curve: Curve) -> tuple[str, str]:
    """With two digits: it lies between two sizes."""
    doubled = curve.doubled()
    return curve.provider, "never" if doubled is None else format_elements(doubled)


def format_elements(elements: float) -> str:
    """Two digits, for example 1.2e5."""
    mantissa, _, exponent = f"{elements:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def summary(result: Result) -> str:
    """Providers down; a few sizes across, with the machine's copy rate, and where time doubles."""
    sizes = list(result.models)[:: max(1, len(result.models) // 4)]
    header = ["", *(format_elements(float(size)) for size in sizes), "doubled"]
    lines = []
    for curve in curves(result):
        at = {row.model: cell(row) for row in curve.rows}
        shown = [at.get(size, "") for size in sizes]
        lines.append([curve.provider, *shown, doubled_line(curve)[1]])
    lines.append(["*copy rate*", *(step.compact_copy(result, size) for size in sizes), ""])
    table = markdown_table(header, lines)
    return f"**{step.task(result)}.** {caption(result)}\n\n{table}\n"


def cell(row: Row) -> str:
    """For example `2.83 ms 99 GB/s`; a rate only where no cache holds the tensors."""
    time = format_time(row.us)
    return f"{time} {row.gb_per_s:.0f} GB/s" if row.bytes > step.CACHES else time


def draw(result: Result, figure: Figure) -> None:
    """Time over elements, log-log; beyond the caches also that of a copy of the same bytes."""
    axes = new_axes(figure, result)
    found = curves(result)
    for index, curve in enumerate(found):
        points = [(float(row.model), row.us_low, row.us, row.us_high) for row in curve.rows]
        draw_curve(axes, curve.provider, index, points)
    rows = [row for row in found[0].rows if row.bytes > step.CACHES]
    copies = [row.bytes / row.copy_gb_per_s / 1e3 for row in rows]
    axes.plot([float(row.model) for row in rows], copies, "D--", color="0.5", label="copy rate")
    axes.set_xlabel("elements, in 10 tensors")
    axes.set_ylabel("opt.step(); sched.step(), us")
