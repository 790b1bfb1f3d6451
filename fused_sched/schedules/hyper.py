"""``hyper``: torch's recurrences on another hyperparameter than lr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_KEYS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
"""What torch's schedulers keep in a param group; initial_lr -> initial_<hyper>, and so on."""

_MISSING = object()

_active: list[tuple[int, str]] = []  # (optimizer, hyper) of the recurrences that run now


@contextmanager
def in_place_of_lr(optimizer: Any, hyper: str) -> Iterator[None]:
    """Within, the groups' lr is their ``hyper``, and what torch's code does to lr it does to that.

    Nothing is sent to the device: the caller runs on the host's account.
    """
    here = (id(optimizer), hyper)
    if hyper == "lr" or here in _active:
        yield
        return
    _active.append(here)
    _exchange(optimizer, hyper)
    try:
        yield
    finally:
        _exchange(optimizer, hyper)
        _active.remove(here)


def _exchange(optimizer: Any, hyper: str) -> None:
    for group in optimizer.param_groups:
        for key in _KEYS:
            other = key.replace("lr", hyper)
            mine, theirs = dict.get(group, key, _MISSING), dict.get(group, other, _MISSING)
            _put(group, key, theirs)
            _put(group, other, mine)


def _put(group: dict[str, Any], key: str, value: Any) -> None:
    if value is _MISSING:
        dict.pop(group, key, None)
    else:
        dict.__setitem__(group, key, value)


def check_hyper(optimizer: Any, hyper: str, columns: Any) -> None:
    """Refuse a ``hyper`` that is not a number in every group.

    Args:
        columns: those of the device record; None for an optimizer without one.
    """
    for number, group in enumerate(optimizer.param_groups):
        numbers = [key for key in group if _is_number(group, key)]
        known = [key for key in numbers if columns is None or key in columns]
        if hyper not in known:
            raise ValueError(
                f"hyper={hyper!r} is not a number that a schedule can move in param group "
                f"{number}; expected one of {known}"
            )


def _is_number(group: Mapping[str, Any], key: str) -> bool:
    return isinstance(group[key], (int, float)) and not isinstance(group[key], bool)
