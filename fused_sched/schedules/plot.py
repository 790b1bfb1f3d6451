"""``scheduler.plot(n)``: the next values as curves; needs matplotlib, which is optional."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import Tensor

from .table import position

_DASHES = ("-", "--")


def plot(scheduler: Any, values: Mapping[str, Tensor]) -> list[Any]:
    """One scheduler's values in a new pyplot figure; returns its axes, from top to bottom."""
    figure = matplotlib("pyplot").figure(layout="constrained")
    return draw(figure, {type(scheduler).__name__: values}, position(scheduler))


def matplotlib(module: str) -> Any:
    """A module of matplotlib.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise ImportError(
            "matplotlib draws the plot and is not installed: pip install matplotlib. "
            "scheduler.values(n) gives the numbers without it."
        ) from error


def draw(figure: Any, curves: Mapping[str, Mapping[str, Tensor]], start: int = 0) -> list[Any]:
    """A panel for each hyperparameter, in it a line for each schedule and param group.

    Args:
        figure: a ``matplotlib.figure.Figure``.
        curves: schedule -> hyperparameter -> float64 ``[n, groups]``.
        start: the step of the first value.
    """
    names = list(dict.fromkeys(name for values in curves.values() for name in values))
    panels = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    drawn: dict[str, Any] = {}
    for name, axes in zip(names, panels):
        for label, line in lines(curves, name).items():
            number = list(drawn).index(label) if label in drawn else len(drawn)
            steps = range(start, start + len(line))
            # Every other one dashed: groups with the same values lie on one another.
            style = {"linestyle": _DASHES[number % 2], "color": f"C{number}"}
            # A step has one value: nothing slants from one step to the next.
            (drawn[label],) = axes.plot(steps, line, drawstyle="steps-post", **style)
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    figure.legend(drawn.values(), drawn, loc="outside upper left")  # beside no curve
    return list(panels)


def lines(curves: Mapping[str, Mapping[str, Tensor]], name: str) -> dict[str, Tensor]:
    """Label -> ``[n]``: every schedule's every group that drives a hyperparameter."""
    found = {}
    for schedule, values in curves.items():
        groups = values[name].t() if name in values else ()
        for number, line in enumerate(groups):
            found[schedule if len(groups) == 1 else f"{schedule}, group {number}"] = line
    return found
