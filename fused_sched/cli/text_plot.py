"""Curves drawn with characters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 64, 15
MARKS = "*o+x#@%&"
_LABEL = 9  # characters of a value at the left: -1.23e-05


def render(name: str, lines: Mapping[str, Sequence[float]]) -> str:
    """A panel of curves over the step, and below it what each mark is.

    Args:
        name: of the hyperparameter.
        lines: label -> the values from step 0 on, at least one each.
    """
    numbers = [value for line in lines.values() for value in line if math.isfinite(value)]
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    steps = max(map(len, lines.values()))
    canvas = [[" "] * WIDTH for _ in range(HEIGHT)]
    for mark, line in zip(_marks(len(lines)), lines.values()):
        _draw(canvas, line, mark, steps, low, high)
    ticks = _ticks(low, high)
    rows = [f"{ticks.get(i, ''):>{_LABEL}} |{''.join(row)}" for i, row in enumerate(canvas)]
    axis = f"{'':>{_LABEL}} +{'-' * WIDTH}"
    legend = [f"  {mark} {_summary(*one)}" for mark, one in zip(_marks(len(lines)), lines.items())]
    return "\n".join([name, *(row.rstrip() for row in rows), axis, _footer(steps), *legend])


def _marks(count: int) -> str:
    return MARKS * (count // len(MARKS) + 1)


def _ticks(low: float, high: float) -> dict[int, str]:
    """Row -> value; one row alone if all values are the same."""
    if low == high:
        return {HEIGHT // 2: f"{low:.3g}"}
    return {0: f"{high:.3g}", HEIGHT // 2: f"{_value(HEIGHT // 2, low, high):.3g}"} | {
        HEIGHT - 1: f"{low:.3g}"
    }


def _value(row: int, low: float, high: float) -> float:
    return high - (high - low) * row / (HEIGHT - 1)


def _row(value: float, low: float, high: float) -> int:
    if low == high:
        return HEIGHT // 2
    return round((high - value) / (high - low) * (HEIGHT - 1))


def _draw(
    canvas: list[list[str]], line: Sequence[float], mark: str, steps: int, low: float, high: float
) -> None:
    """Each column from the least to the largest value of its steps and the next one's."""
    for column in range(WIDTH):
        first = column * steps // WIDTH
        last = (column + 1) * steps // WIDTH
        shown = [value for value in line[first : max(last, first) + 1] if math.isfinite(value)]
        if first >= len(line) or not shown:
            continue
        for row in range(_row(max(shown), low, high), _row(min(shown), low, high) + 1):
            canvas[row][column] = mark


def _footer(steps: int) -> str:
    last = str(steps - 1)
    return f"{'':>{_LABEL}}  0{'step'.center(WIDTH - 1 - len(last))}{last}"


def _summary(label: str, line: Sequence[float]) -> str:
    peak = max(range(len(line)), key=lambda step: line[step])
    return (
        f"{label}: {line[0]:.3g} at step 0, at most {line[peak]:.3g} at step {peak}, "
        f"{line[-1]:.3g} at step {len(line) - 1}"
    )
