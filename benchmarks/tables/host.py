"""The tables of `benchmarks.host`: time on the host by the number of tensors, and its fit."""

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.result import Result
from benchmarks.tables.markdown import (
    caption,
    document,
    format_difference,
    format_span,
    format_time,
    markdown_table,
    optional,
    unique,
)
from benchmarks.tables.plots import Figure, draw_curve, new_axes


@dataclass(frozen=True)
class Row:
    """One provider on so many tensors of one element.

    `us` are microseconds per step on the host; `_low` and `_high` the 20th and 80th percentile.
    `first_us` is a new optimizer's construction and first step in a process that has stepped
    others: state, tables, for a compiled step its compilation. `cold_us` is the same in a new
    process whose compilers' caches are empty (for one number of tensors, and not in quick runs).
    """

    tensors: int
    provider: str
    us: float
    us_low: float
    us_high: float
    first_us: float
    cold_us: float | None


@dataclass(frozen=True)
class Fit:
    """us = fixed + per_tensor * tensors; `worst` is the largest relative residual."""

    fixed: float
    per_tensor: float
    worst: float


def fit(points: Iterable[tuple[float, float]]) -> Fit:
    """Least squares of the relative residuals over (tensors, us), with no time below zero.

    Relative, since absolute ones would be those of the largest number alone: it minimises
    sum (fixed / t + per_tensor n / t - 1)^2, two normal equations; one, where fixed would be
    negative and is 0.
    """
    points = list(points)
    aa = sum(1 / t**2 for _, t in points)
    ab = sum(n / t**2 for n, t in points)
    bb = sum((n / t) ** 2 for n, t in points)
    a, b = sum(1 / t for _, t in points), sum(n / t for n, t in points)
    determinant = aa * bb - ab * ab
    fixed, per_tensor = (a * bb - b * ab) / determinant, (aa * b - ab * a) / determinant
    if fixed < 0:
        fixed, per_tensor = 0.0, b / bb
    return Fit(fixed, per_tensor, max(abs(fixed + per_tensor * n - t) / t for n, t in points))


def fits(result: Result) -> dict[str, Fit]:
    """Of every provider that was measured on more than one number of tensors."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in result.rows:
        points.setdefault(row.provider, []).append((row.tensors, row.us))
    return {provider: fit(mine) for provider, mine in points.items() if len(mine) > 1}


TITLE = "Time on the host"

NOTE = """\
What a step costs before any arithmetic: tensors of one element, n of them. On a GPU the host's
clock runs without waiting for the device.

* *fixed* and *per tensor*: the fit time = fixed + n × per tensor, by least squares of the relative
  residuals, fixed at least 0.
* *first step*: a new optimizer's construction and first step.
"""


def full(result: Result) -> str:
    """Every number of a run, after the fits."""
    text = (
        "AdamW and CosineAnnealingLR on n tensors of one element: what is left is the host's "
        "work. On a GPU the host's clock runs without waiting for the device. The fit is us = "
        "fixed + n * per tensor, least squares of relative residuals. First step: with the "
        "optimizer's construction; in a new process: with empty compilers' caches too.\n\n"
        + fit_table(result)
    )
    header = ("tensors", "provider", "time", "20 % ... 80 %", "first step", "in a new process")
    table = markdown_table(header, map(cells, result.rows), texts=2)
    return document(TITLE, result, text, table)


def cells(row: Row) -> tuple[str, ...]:
    """A line of the full table."""
    return (
        str(row.tensors),
        row.provider,
        format_time(row.us),
        format_span(row.us_low, row.us_high),
        format_time(row.first_us),
        optional(row.cold_us and format_time(row.cold_us)),
    )


def fit_table(result: Result) -> str:
    """The fits, a line for each provider."""
    lines = [
        [
            name,
            format_difference(one.fixed),
            format_time(one.per_tensor),
            f"{100 * one.worst:.0f} %",
        ]
        for name, one in fits(result).items()
    ]
    return markdown_table(("provider", "fixed", "per tensor", "largest residual"), lines)


def summary(result: Result) -> str:
    """The fits, and the first step for the largest number of tensors; providers across."""
    largest = max(row.tensors for row in result.rows)
    firsts = {row.provider: row.first_us for row in result.rows if row.tensors == largest}
    found = fits(result)
    lines = [
        ["fixed", *(format_difference(one.fixed) for one in found.values())],
        ["per tensor", *(format_time(one.per_tensor) for one in found.values())],
        [
            f"first step, {largest:,} tensors",
            *(format_time(firsts[name]) if name in firsts else "" for name in found),
        ],
    ]
    return f"{caption(result)}\n\n{markdown_table(['', *found], lines)}\n"


def draw(result: Result, figure: Figure) -> None:
    """Time over the number of tensors, log-log."""
    axes = new_axes(figure, result)
    for index, provider in enumerate(unique(row.provider for row in result.rows)):
        mine = [row for row in result.rows if row.provider == provider]
        points = [(row.tensors, row.us_low, row.us, row.us_high) for row in mine]
        draw_curve(axes, provider, index, points)
    axes.set_xlabel("tensors of one element")
    axes.set_ylabel("opt.step(); sched.step() on the host, us")
