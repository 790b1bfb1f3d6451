"""The tables of `benchmarks.schedule`: what a schedule costs, alone and inside the launch."""

from dataclasses import dataclass

from benchmarks.result import Result
from benchmarks.tables.markdown import (
    caption,
    document,
    format_difference,
    format_time,
    markdown_table,
    unique,
)
from benchmarks.tables.plots import Figure, draw_curve, new_axes

ALONE, INSIDE = "alone", "inside"


@dataclass(frozen=True)
class Row:
    """One provider's schedule on so many param groups.

    `us` are microseconds: alone of `scheduler.step()`; inside what `opt.step(); sched.step()` takes
    more than the provider's step without a schedule. `ratio` is alone to torch's scheduler with a
    float lr; inside that of the provider's two steps. `_low` and `_high` are the 20th and 80th
    percentile over the rounds; differences and ratios are of one round each.
    """

    part: str
    schedule: str
    groups: int
    provider: str
    us: float
    us_low: float
    us_high: float
    ratio: float
    ratio_low: float
    ratio_high: float


TITLE = "Schedules"

NOTE = """\
What a schedule costs, by the number of param groups. Left of the arrow: torch's `scheduler.step()`.
Right of it: how much longer our fused step takes with the schedule in it than without; a difference
below 0.1 us is within the noise.
"""


def full(result: Result) -> str:
    """Every number of a run."""
    text = (
        "AdamW; each group has one tensor of 64 elements. Alone is `scheduler.step()` by itself, "
        "its ratio to torch's with a float lr. Inside is `opt.step(); sched.step()` less the same "
        "provider's step without a schedule in the same round, and the ratio of the two. Times and "
        "ratios are medians over interleaved rounds; a difference below 0.1 us is within the noise."
    )
    header = (
        *("part", "schedule", "groups", "provider"),
        *("time", "20 % ... 80 %", "ratio", "20 % ... 80 %"),
    )
    return document(TITLE, result, text, markdown_table(header, map(cells, result.rows), texts=4))


def cells(row: Row) -> tuple[str, ...]:
    """A line of the full table."""
    show = format_difference if row.part == INSIDE else format_time
    return (
        row.part,
        row.schedule,
        str(row.groups),
        row.provider,
        show(row.us),
        f"{show(row.us_low)} ... {show(row.us_high)}",
        f"{row.ratio:.2f}",
        f"{row.ratio_low:.2f} ... {row.ratio_high:.2f}",
    )


SHOWN = ("CosineAnnealingLR", "OneCycleLR", "SequentialLR")


def summary(result: Result) -> str:
    """A few schedules down, groups across: torch's scheduler.step() -> ours inside the launch."""
    engine = launch_engine(result)
    found = {(row.part, row.schedule, row.groups, row.provider): row for row in result.rows}
    groups = unique(row.groups for row in result.rows)

    def cell(schedule: str, count: int) -> str:
        theirs = found[ALONE, schedule, count, "torch"]
        ours = found[INSIDE, schedule, count, f"{engine} fused"]
        return f"{format_time(theirs.us)} -> {format_difference(ours.us)}"

    lines = [
        [schedule, *(cell(schedule, count) for count in groups)]
        for schedule in SHOWN
        if any(row.schedule == schedule for row in result.rows)
    ]
    header = [
        f"torch -> {engine} fused",
        *(f"{count} group{'s' * (count > 1)}" for count in groups),
    ]
    return f"{caption(result)}\n\n{markdown_table(header, lines)}\n{losses(result, engine)}\n"


def losses(result: Result, engine: str) -> str:
    """The schedules whose `scheduler.step()`, called by itself, takes us longer than torch."""
    mine = [row for row in result.rows if (row.part, row.provider) == (ALONE, engine)]
    slower = unique(row.schedule for row in mine if round(row.ratio, 2) > 1)
    names = [
        f"{name} ({max(row.ratio for row in mine if row.schedule == name):.0f} times at worst)"
        for name in slower
    ]
    return f"Slower than torch's when called by itself: {', '.join(names) or 'none'}."


def launch_engine(result: Result) -> str:
    """The engine of ours that a step takes by default: the first in the table."""
    providers = [row.provider for row in result.rows if row.part == INSIDE]
    return next(p for p in providers if p.endswith(" fused") and p != "torch fused").split()[0]


def draw(result: Result, figure: Figure) -> None:
    """scheduler.step() alone over the number of groups, a line for each provider and schedule."""
    figure.set_size_inches(9, 6)
    axes = new_axes(figure, result)
    rows = [row for row in result.rows if row.part == ALONE and row.schedule in SHOWN]
    for index, key in enumerate(unique((row.provider, row.schedule) for row in rows)):
        mine = [row for row in rows if (row.provider, row.schedule) == key]
        points = [(row.groups, row.us_low, row.us, row.us_high) for row in mine]
        draw_curve(axes, ", ".join(key), index, points)
    axes.set_xlabel("param groups")
    axes.set_ylabel("scheduler.step(), us")
