"""Values of a param group as the numbers that the device's record holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

PLAIN = (float, int, bool)
"""Types that ``float()`` converts as :func:`number` does; ``type(value) in PLAIN`` is no call."""


def number(name: str, value: Any) -> float:
    """A hyperparameter as a float.

    Raises:
        TypeError: it is text, which ``float()`` would take and torch's step does not.
    """
    if isinstance(value, Tensor):
        value = value.detach()  # an lr that is learned requires grad
    elif value is None or isinstance(value, str | bytes | bytearray):
        raise TypeError(f"param_group[{name!r}] is {value!r}; expected a number")
    return float(value)


def keep_ints(
    values: Iterable[float], groups: Iterable[dict[str, Any] | None], name: str
) -> list[Any]:
    """Values of a schedule, those that are an int of the user's in a group as that int.

    torch's schedules hand on what they do not change.
    """
    shown: list[Any] = []
    for value, group in zip(values, groups):
        here = None if group is None else dict.get(group, name)
        shown.append(here if type(here) is int and here == value else value)
    return shown
