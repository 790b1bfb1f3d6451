"""Schedules without an opcode: run ahead on a copy, into a table that the device reads."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from fused_sched.tables import layout
from fused_sched.tables.program import Row, Segments

_MOVED = {"lr": "lr", "momentum": "momentum", "betas": "beta1"}
"""Keys of a param group that torch's schedulers write, and their columns."""


def _already_stepped() -> None:
    """Stands for a stepped optimizer's ``step``."""


_already_stepped._wrapped_by_lr_sched = True  # type: ignore[attr-defined]


def detached(scheduler: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A copy of a scheduler that moves groups of its own, and those groups."""
    optimizer = scheduler.__dict__["optimizer"]
    groups = [
        {key: _plain(value) for key, value in dict.items(group) if key != "params"}
        for group in optimizer.param_groups
    ]
    shadow = SimpleNamespace(
        param_groups=groups,
        defaults=dict(optimizer.defaults),
        step=_already_stepped,
        _opt_called=True,
    )
    memo = {id(optimizer): shadow}
    for child in getattr(scheduler, "_schedulers", ()):
        memo[id(child.__dict__.get("optimizer"))] = shadow
    return copy.deepcopy(scheduler, memo), groups


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Tensor) else value


def _value(group: dict[str, Any], key: str) -> float:
    value = group[key]
    return float(value[0] if key == "betas" else value)


def _run(clone: Any, groups: list[dict[str, Any]], steps: int) -> dict[str, list[list[float]]]:
    """Every moved key's values after each of the steps; shorter if the schedule raises."""
    keys = [key for key in _MOVED if key in groups[0]]
    table: dict[str, list[list[float]]] = {key: [] for key in keys}
    step = getattr(clone, "_host_step", clone.step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for number in range(steps):
            try:
                step()
            except (ArithmeticError, LookupError, ValueError):
                if number == 0:
                    raise
                break
            for key in keys:
                table[key].append([_value(group, key) for group in groups])
    return table


def _depends_on_lr(scheduler: Any) -> bool:
    """Probe: does another lr in the groups change the schedule's next values?"""
    results = []
    for factor in (1.0, 0.5):
        clone, groups = detached(scheduler)
        for group in groups:
            group["lr"] = group["lr"] * factor + (1.0 - factor)
        results.append(_run(clone, groups, 3)["lr"])
    return results[0] != results[1]


def tabulate(scheduler: Any) -> Segments:
    """Rows that read the scheduler's next ``horizon`` values from a table.

    Raises:
        ValueError: an unknown scheduler's values depend on ``group["lr"]``, so that a table would
            be wrong after any edit.
    """
    recursive = _depends_on_lr(scheduler)
    known = type(scheduler).__module__.startswith("fused_sched.")
    if recursive and not known:
        raise ValueError(
            f'{type(scheduler).__name__} computes lr from group["lr"], so its values cannot be '
            "tabulated ahead; compute them from base_lrs and last_epoch, or call scheduler.step() "
            "outside the graph, without fuse()"
        )
    cached = None if recursive else _cached(scheduler)
    table = cached or _run(*detached(scheduler), scheduler.horizon)
    epoch = int(scheduler.__dict__.get("last_epoch", _position(scheduler)))
    first = epoch + 1
    if cached:
        first = scheduler.__dict__["_table_cache"][0]
    elif not recursive:
        scheduler.__dict__["_table_cache"] = (first, _fingerprint(scheduler), table)
    segments: Segments = {}
    for key, column in _MOVED.items():
        values = table.get(key, [])
        if key == "lr" or _moves(scheduler, values, key):
            row = Row(
                layout.TABLE_VALUE,
                words={layout.AUX_EPOCH: first, layout.AUX_LENGTH: len(values)},
                aux=[lane for step in values for lane in step],
                ends=first + len(values) - 1 - epoch,
                recursive=recursive,
            )
            place = getattr(scheduler, "_placed", None)
            segments[column] = [place(row, child=False, source=key == "lr") if place else row]
            segments[column][0].epoch = epoch
    return segments


def _position(scheduler: Any) -> int:
    return 0


def _moves(scheduler: Any, values: list[list[float]], key: str) -> bool:
    """Whether a schedule moves a key other than lr at all."""
    groups = scheduler.__dict__["optimizer"].param_groups
    now = [_value({key: dict.__getitem__(group, key)}, key) for group in groups if key in group]
    return any(step != now for step in values)


def _fingerprint(scheduler: Any) -> Any:
    """What the table was computed from, beside the epoch."""
    attributes = scheduler.__dict__
    moving = ("optimizer", "_table_cache", "last_epoch", "_step_count", "_last_lr")
    return {key: value for key, value in attributes.items() if key not in moving}.copy()


def _cached(scheduler: Any) -> dict[str, list[list[float]]] | None:
    """The last table, while its epochs last and nothing it came from has changed."""
    cache = scheduler.__dict__.get("_table_cache")
    if cache is None or "last_epoch" not in scheduler.__dict__:
        return None
    first, fingerprint, table = cache
    covered = first <= scheduler.__dict__["last_epoch"] + 1 < first + len(table["lr"])
    return table if covered and fingerprint == _fingerprint(scheduler) else None
