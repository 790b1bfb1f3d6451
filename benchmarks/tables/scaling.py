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

NOTE = (
    "Time and rate of counted bytes by the number of elements in 10 tensors. From the knee on a "
    "provider moves bytes at half of the machine's copy rate or faster."
)


@dataclass(frozen=True)
class Curve:
    """One provider's (elements, row), in order of size."""

    provider: str
    rows: Sequence[Row]

    def knee(self) -> float | None:
        """Elements at which the rate first reaches half of the copy's, None if it never does.

        Between two sizes by a line through the logarithms; the smallest size, where that has
        reached it already.
        """
        shares = [2 * row.gb_per_s / row.copy_gb_per_s for row in self.rows]
        above = next((i for i, share in enumerate(shares) if share >= 1), None)
        if above is None:
            return None
        if above == 0:
            return float(self.rows[0].model)
        x0, x1 = (log(float(row.model)) for row in self.rows[above - 1 : above + 1])
        y0, y1 = (log(share) for share in shares[above - 1 : above + 1])
        return exp(x0 - y0 * (x1 - x0) / (y1 - y0))


def curves(result: Result) -> list[Curve]:
    """One for each provider."""
    return [
        Curve(name, [row for row in result.rows if row.provider == name])
        for name in unique(row.provider for row in result.rows)
    ]


def full(result: Result) -> str:
    """Every number of a run, after the knees."""
    knees = markdown_table(("provider", "knee, elements"), map(knee_line, curves(result)))
    text = f"{step.task(result)}. {step.EXPLAINED} {NOTE}\n\n{knees}"
    return document("The step by the number of elements", result, text, step.rows(result))


def knee_line(curve: Curve) -> tuple[str, str]:
    """With two digits: it lies between two sizes."""
    knee = curve.knee()
    return curve.provider, "never" if knee is None else format_elements(knee)


def format_elements(elements: float) -> str:
    """Two digits, for example 1.2e5."""
    mantissa, _, exponent = f"{elements:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def summary(result: Result) -> str:
    """Providers down; a few sizes across, with the machine's copy rate, and the knee."""
    sizes = list(result.models)[:: max(1, len(result.models) // 4)]
    header = ["", *(format_elements(float(size)) for size in sizes), "knee"]
    lines = []
    for curve in curves(result):
        at = {row.model: f"{format_time(row.us)} {row.gb_per_s:.3g} GB/s" for row in curve.rows}
        lines.append([curve.provider, *(at.get(size, "") for size in sizes), knee_line(curve)[1]])
    copy = max(row.copy_gb_per_s for row in result.rows)
    lines.append(["*copy rate*", *[""] * (len(sizes) - 1), f"{copy:.0f} GB/s", ""])
    table = markdown_table(header, lines)
    return f"**{step.task(result)}.** {caption(result)}\n\n{table}\n"


def draw(result: Result, figure: Figure) -> None:
    """Time over elements, log-log, with the time of a copy of the same bytes."""
    axes = new_axes(figure, result)
    found = curves(result)
    for index, curve in enumerate(found):
        points = [(float(row.model), row.us_low, row.us, row.us_high) for row in curve.rows]
        draw_curve(axes, curve.provider, index, points)
    rows = found[0].rows
    copies = [row.bytes / row.copy_gb_per_s / 1e3 for row in rows]
    axes.plot([float(row.model) for row in rows], copies, "--", color="0.5", label="copy rate")
    axes.set_xlabel("elements, in 10 tensors")
    axes.set_ylabel("opt.step(); sched.step(), us")
