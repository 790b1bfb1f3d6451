"""``scheduler.values(n)``: a schedule's next values, evaluated on a copy of it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_sched import stock
from fused_sched.engines import engine_for, native_engine
from fused_sched.runtime.device_state import capturing
from fused_sched.runtime.fused_schedule import NO_FORM, is_tabulated
from fused_sched.tables.device_buffer import DeviceBuffer
from fused_sched.tables.program import Entry, Segments, assemble

from .plot import plot
from .table import COLUMNS, detached, hypers_of, inside, values_now

_CPU = torch.device("cpu")
_KEYS = {column: key for key, column in COLUMNS.items()}


class LookAhead:
    """A schedule's next values, as numbers or as a plot."""

    def values(self, n: int, *, metrics: Sequence[float] | None = None) -> dict[str, Tensor]:
        """The next ``n`` values of this schedule; nothing is stepped or changed.

        Evaluated on a copy, from the current position: also in the middle of a run, in fused mode,
        after loading a checkpoint. Where the device is ahead of the host (after a capture, a
        skipped step) it is read once, as when ``group["lr"]`` is read.

        Args:
            n: how many values, at least 1. The first is the current one, which the next optimizer
                step uses; each further one is a ``scheduler.step()`` later (fused with an
                ``interval``: as many optimizer steps later).
            metrics: what ReduceLROnPlateau will be stepped with, the first one after the first
                value: at least ``n - 1`` numbers. Other schedules take none.

        Returns:
            float64 ``[n, groups]`` on the CPU, by name: ``"lr"`` (or the schedule's ``hyper``),
            and ``"momentum"`` or ``"beta1"`` where the schedule drives it.

        Raises:
            ValueError: the schedule ends sooner (OneCycleLR past its ``total_steps``); ``n`` is
                below 1; ``metrics`` are missing, too few or not wanted; or it cannot be copied.
            RuntimeError: a CUDA graph is being captured.

        A function of yours is called as often as needed, with its side effects (callable objects
        are copied). Other schedules on the same optimizer do not move: where several multiply one
        lr, wrap them in a ChainedScheduler and use that one's ``values()``.
        """
        return values_of(self, n, metrics)

    def plot(self, n: int, *, metrics: Sequence[float] | None = None) -> list[Any]:
        """Plot the next ``n`` values against the step, a panel for each hyperparameter.

        Args:
            n: as for :meth:`values`.
            metrics: as for :meth:`values`.

        Returns:
            The ``matplotlib`` axes, from top to bottom, in a new ``pyplot`` figure:
            ``axes[0].figure.savefig("lr.png")``.

        Raises:
            ImportError: matplotlib is not installed; says how to.
            ValueError, RuntimeError: as :meth:`values`.
        """
        return plot(self, self.values(n, metrics=metrics))


def values_of(scheduler: Any, n: int, metrics: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The next ``n`` values by name, float64 ``[n, groups]``; see :meth:`LookAhead.values`."""
    _check(scheduler, n, metrics)
    scheduler._refresh()
    try:
        clone, groups = detached(scheduler)
    except TypeError as error:  # a callable that holds a generator, a lock ...
        raise ValueError(
            f"values() evaluates a copy, and this {type(scheduler).__name__} cannot be copied: "
            f"{error}"
        ) from error
    segments = _segments(clone, n) if metrics is None else None
    if segments is None:
        return _stepped(clone, groups, n, metrics)
    return _traced(segments, groups, n)


def _check(scheduler: Any, n: int, metrics: Sequence[float] | None) -> None:
    name = type(scheduler).__name__
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"Expected positive integer n, but got {n}")
    if not isinstance(scheduler, stock.ReduceLROnPlateau):
        if metrics is not None:
            raise ValueError(f"{name} follows no metric; leave metrics out")
    elif metrics is None:
        raise ValueError(
            f"{name} follows a metric, so its values depend on those to come; say what to assume: "
            f"values({n}, metrics=[...]) with {n - 1} numbers"
        )
    elif len(metrics) < n - 1:
        raise ValueError(f"{n} values take {n - 1} metrics, but got {len(metrics)}")
    if capturing():
        raise RuntimeError(
            "values() reads where the schedule is now, which a CUDA graph's capture does not "
            "allow; call it before or after"
        )


# -- by the compiled engine ----------------------------------------------------------------------


def _segments(clone: Any, n: int) -> Segments | None:
    """The rows to run; None where torch's own code must: no opcode, no engine, an end before n."""
    if not _compiled() or is_tabulated(clone):
        return None
    try:
        segments = clone._lower(child=False)
    except NO_FORM:
        return None
    ends = Entry(segments).ends() if segments else 0
    return segments if ends is None or ends >= n - 1 else None


def _compiled() -> bool:
    """Whether the CPU's engine is the compiled one, which takes a million steps in no time."""
    try:
        return engine_for(_CPU) is native_engine
    except RuntimeError:  # the engine forced serves no CPU
        return False


def _traced(segments: Segments, groups: Sequence[dict[str, Any]], n: int) -> dict[str, Tensor]:
    """A trace of ``n - 1`` advances, in a buffer of its own."""
    program = assemble([Entry(segments)], list(segments), len(groups))
    size = program.aux.numel()
    buffer = DeviceBuffer(_CPU, len(segments), len(groups), 0, [program.ops.shape[0]], [size])
    start = torch.stack([values_now(groups, _KEYS.get(name, name)) for name in segments])
    buffer.send_values(start, [(program.ops, program.lanes)])
    buffer.programs[0].aux[:size].copy_(program.aux)
    shape = n, len(segments), len(groups)
    trace = torch.empty(shape, dtype=torch.float64, device="cpu")
    trace[0] = start
    if n > 1:
        native_engine.advance(buffer, buffer.programs[0], n - 1, trace=trace[1:])
    return {name: trace[:, column].clone() for column, name in enumerate(segments)}


# -- by torch's code -----------------------------------------------------------------------------


def _stepped(
    clone: Any, groups: Sequence[dict[str, Any]], n: int, metrics: Sequence[float] | None
) -> dict[str, Tensor]:
    """What torch's own recurrence gives in ``n - 1`` steps of the copy."""
    hypers = hypers_of(clone)
    keys = dict.fromkeys([*hypers, *(key for key in COLUMNS if key in groups[0])])
    steps = {key: [values_now(groups, key)] for key in keys}
    for number in range(n - 1):
        _step(clone, n, number, () if metrics is None else (metrics[number],))
        for key in keys:
            steps[key].append(values_now(groups, key))
    values = {key: torch.stack(rows) for key, rows in steps.items()}
    cycling = any(getattr(one, "cycle_momentum", False) for one in inside(clone))
    return {
        COLUMNS.get(key, key): value
        for key, value in values.items()
        if key in hypers or cycling or (value != value[0]).any()
    }


def _step(clone: Any, n: int, number: int, metric: tuple[float, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            clone.step(*metric)
        except NO_FORM as error:
            raise ValueError(
                f"{type(clone).__name__} gives {number + 1} more values, not {n}: {error}"
            ) from error
