"""Schedules without an opcode: run ahead on a copy, into a table that the device reads."""

from __future__ import annotations

import copy
import math
import time
import types
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fused_sched.runtime.fused_schedule import NO_FORM
from fused_sched.tables import layout
from fused_sched.tables.program import Row, Segments

COLUMNS = {"momentum": "momentum", "betas": "beta1"}
"""Keys of a param group that torch's schedulers write beside lr, and their columns."""


WRITTEN = ("torch.optim.", "fused_sched.")
"""Modules of schedulers that are known; other classes are users' own."""

FIRST_SECONDS = 0.25
"""Time to spend on a table before it is known that a graph needs all of it."""

PROBE = 1000
"""Steps after which a schedule that never looked at lr is taken for one that does not."""


@dataclass
class Table:
    """What a schedule gives in its next steps.

    Attributes:
        epoch: the position from which it was run.
        recursive: the keys whose values depend on those that the groups had then.
        values: key of a param group -> float64 [steps + 1, groups], the first row that of
            ``epoch`` itself.
        tables: key -> the rows after the first, as the device gets them.
        complete: whether it has ``horizon`` steps, or ends where the schedule does.
    """

    epoch: int
    recursive: list[str]
    values: dict[str, Tensor]
    tables: dict[str, Tensor]
    complete: bool

    def holds(self, epoch: int, now: dict[str, Tensor]) -> bool:
        """Whether its values are those of the steps after ``epoch``, from the present values."""
        passed = epoch - self.epoch
        return all(
            0 <= passed < len(values) - 1
            and (key not in self.recursive or torch.equal(values[passed], now[key]))
            for key, values in self.values.items()
        )


def tabulate(scheduler: Any) -> Segments:
    """Rows that read the scheduler's next ``horizon`` values from a table.

    Raises:
        ValueError: the values of a user's class depend on ``group["lr"]``, so that a table
            would be wrong after any edit.
    """
    groups = scheduler.__dict__["optimizer"].param_groups
    hypers = hypers_of(scheduler)
    keys = dict.fromkeys([*hypers, *(key for key in COLUMNS if key in groups[0])])
    epoch = position(scheduler)
    now = {key: values_now(groups, key) for key in keys}
    table = scheduler.__dict__.get("_ahead")
    if table is None or not table.holds(epoch, now):
        table = scheduler.__dict__["_ahead"] = _run_ahead(scheduler, epoch, now, FIRST_SECONDS)
    cycling = any(getattr(one, "cycle_momentum", False) for one in inside(scheduler))
    segments: Segments = {}
    for key, values in table.values.items():
        if key in hypers or cycling or (values != values[0]).any():
            row = Row(
                layout.TABLE_VALUE,
                words={layout.AUX_EPOCH: table.epoch + 1, layout.AUX_LENGTH: len(values) - 1},
                aux=table.tables[key],
                ends=table.epoch + len(values) - 1 - epoch,
                ahead=True,
                recursive=key in table.recursive,
            )
            placed = scheduler._placed(row, child=False, source=key == hypers[0])
            placed.epoch = epoch
            segments[COLUMNS.get(key, key)] = [placed]
    return segments


def complete(scheduler: Any) -> bool:
    """Run a table that was cut short to its end; whether there was one."""
    table = scheduler.__dict__.get("_ahead")
    if table is None or table.complete:
        return False
    groups = scheduler.__dict__["optimizer"].param_groups
    now = {key: values_now(groups, key) for key in table.values}
    scheduler.__dict__["_ahead"] = _run_ahead(scheduler, position(scheduler), now, None)
    return True


def refuse_recursive(scheduler: Any) -> None:
    """Raise for a scheduler, or one inside it, that cannot be tabulated; see ``tabulate``."""
    for one in inside(scheduler):
        written = type(one).__module__.startswith(WRITTEN)
        if not written and _depends_on_lr(one):
            raise ValueError(
                f'{type(one).__name__} computes lr from group["lr"], so its values cannot be '
                "tabulated ahead; compute them from base_lrs and last_epoch, or call "
                "scheduler.step() outside the graph, without fuse()"
            )


def position(scheduler: Any) -> int:
    """Steps behind a scheduler: its last_epoch, or that of the first one inside it."""
    if "last_epoch" in scheduler.__dict__:
        return int(scheduler.__dict__["last_epoch"])
    children = getattr(scheduler, "_schedulers", ())
    return position(children[0]) if children else 0


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
    for one in inside(scheduler):
        memo[id(one.__dict__.get("optimizer"))] = shadow
        for call in one.__dict__.get("lr_lambdas", ()):
            memo[id(call)] = copied(call)
    return copy.deepcopy(scheduler, memo), groups


def copied(call: Any) -> Any:
    """A copy of a callable with its state; of a bound method not its owner, a model perhaps."""
    return call if isinstance(call, types.MethodType) else copy.deepcopy(call)


def _already_stepped() -> None:
    """Stands for a stepped optimizer's ``step``."""


_already_stepped._wrapped_by_lr_sched = True  # type: ignore[attr-defined]


def inside(scheduler: Any) -> list[Any]:
    """A scheduler and all those in it."""
    children = getattr(scheduler, "_schedulers", ())
    return [scheduler, *(one for child in children for one in inside(child))]


def hypers_of(scheduler: Any) -> list[str]:
    """The hyperparameters that a scheduler and those in it move, the first its own."""
    return list(dict.fromkeys(getattr(one, "hyper", "lr") for one in inside(scheduler)))


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Tensor) else value


def values_now(groups: Sequence[Any], key: str) -> Tensor:
    """[groups] float64: a key's values, of betas the first."""
    values = [dict.__getitem__(group, key) for group in groups]
    values = [value[0] if key == "betas" else value for value in values]
    return torch.tensor([float(value) for value in values], dtype=torch.float64, device="cpu")


def _run(
    scheduler: Any,
    keys: Iterable[str],
    steps: int,
    edited: Sequence[str] = (),
    seconds: float | None = None,
) -> dict[str, list[Tensor]]:
    """Every key's values after each of the steps; shorter if the schedule raises.

    Args:
        edited: keys that get another value before each step.
        seconds: after which to stop, None for never.
    """
    stop = math.inf if seconds is None else time.monotonic() + seconds
    clone, groups = detached(scheduler)
    values: dict[str, list[Tensor]] = {key: [] for key in keys}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for number in range(steps):
            if number and time.monotonic() >= stop:
                break
            for group in groups:
                group.update({key: 0.5 + 0.25 * group[key] for key in edited})
            try:
                clone.step()
            except NO_FORM:
                if number == 0:
                    raise
                break
            for key in keys:
                values[key].append(values_now(groups, key))
    return values


def _run_ahead(scheduler: Any, epoch: int, now: dict[str, Tensor], seconds: float | None) -> Table:
    start = time.monotonic()
    recursive = list(now)
    if _depends_on_lr(scheduler, seconds):
        refuse_recursive(scheduler)
    else:  # what is cycled beside it is not known
        recursive = [key for key in recursive if key not in hypers_of(scheduler)]
    ahead = _run(scheduler, now, scheduler.horizon, seconds=seconds)
    in_time = seconds is None or time.monotonic() < start + seconds
    values = {key: torch.stack([now[key], *steps]) for key, steps in ahead.items()}
    tables = {key: rows[1:].reshape(-1) for key, rows in values.items()}
    return Table(epoch, recursive, values, tables, in_time)


def _depends_on_lr(scheduler: Any, seconds: float | None = None) -> bool:
    """Probe: does an edit of lr before each step change what the step makes of it?"""
    hypers = hypers_of(scheduler)
    steps = min(getattr(scheduler, "horizon", PROBE), PROBE)
    start = time.monotonic()
    plain = _run(scheduler, hypers, steps, seconds=seconds)
    if seconds is not None and time.monotonic() >= start + seconds:
        steps = len(plain[hypers[0]])
    edited = _run(scheduler, hypers, steps, edited=hypers)
    return any(
        len(plain[key]) != len(edited[key]) or not all(map(torch.equal, plain[key], edited[key]))
        for key in hypers
    )
