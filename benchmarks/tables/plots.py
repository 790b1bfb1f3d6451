"""What every question's plot shares. Matplotlib is imported only to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.result import Result
from benchmarks.tables.markdown import unique

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = Any


def new_axes(figure: Figure, result: Result) -> Axes:
    """Axes under the device's name, with room for a legend at their right."""
    axes = figure.subplots()
    axes.set_title(result.record["device"])
    return axes


def color(index: int) -> Any:
    """A provider's own, by its place in the table."""
    from matplotlib import colormaps

    return colormaps["tab20"](index)


def draw_bars(figure: Figure, result: Result, ratio: str, label: str) -> None:
    """For each model a bar of each provider, from the 1.0 line to the row's field `ratio`."""
    providers, models = unique(row.provider for row in result.rows), list(result.models)
    thickness = 0.8 / len(providers)
    figure.set_size_inches(9, 1 + 0.16 * len(models) * len(providers))
    axes = new_axes(figure, result)
    for index, provider in enumerate(providers):
        rows = [row for row in result.rows if row.provider == provider]
        places = [models.index(row.model) + (index + 0.5) * thickness - 0.4 for row in rows]
        middles = [getattr(row, ratio) for row in rows]
        below = [getattr(row, ratio) - getattr(row, f"{ratio}_low") for row in rows]
        above = [getattr(row, f"{ratio}_high") - getattr(row, ratio) for row in rows]
        axes.barh(
            places,
            [middle - 1 for middle in middles],
            height=thickness,
            left=1,
            xerr=(below, above),
            color=color(index),
            error_kw={"linewidth": 0.8},
            label=provider,
        )
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(models)), models)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlabel(label)


def draw_curve(
    axes: Axes, label: str, index: int, points: Sequence[tuple[float, float, float, float]]
) -> None:
    """Medians over a count, with the band of the 20th to the 80th percentile, log-log.

    `points` are (count, 20 %, median, 80 %).
    """
    counts, lows, middles, highs = zip(*points, strict=True)
    axes.plot(counts, middles, "o-", color=color(index), markersize=3, label=label)
    axes.fill_between(counts, lows, highs, color=color(index), alpha=0.2)
    axes.set_xscale("log")
    axes.set_yscale("log")


def finish(figure: Figure) -> None:
    """The legend, outside of the data."""
    for axes in figure.axes:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
