"""``fuse``: let a schedule ride inside the optimizer's launch; convert a stock torch pair."""

from __future__ import annotations

import functools
import weakref
from typing import Any

from fused_sched import stock
from fused_sched.runtime.base import FusedOptimizer
from fused_sched.runtime.ledger import Ledger
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.schedules.live import ledger_of
from fused_sched.swap import OPTIMIZERS, SCHEDULERS


def fuse(
    optimizer: stock.Optimizer,
    scheduler: stock.LRScheduler,
    interval: int | None = None,
    *,
    advance_on_skip: bool = False,
) -> tuple[Any, Any]:
    """Compute ``scheduler``'s values inside ``optimizer.step()``'s launch.

    Fusing changes how a schedule is computed, never what. In eager training the calls of
    ``scheduler.step()`` govern, as with stock torch: the launch computes the next values ahead, and
    a call that comes as the last ones did only confirms them. A call that comes otherwise, or does
    not come, costs a small upload or launch; no call, no advance. In a CUDA graph each replay of a
    captured ``optimizer.step()`` advances the schedule by one, and ``scheduler.step()`` between
    replays does nothing but warn once.

    Several schedulers on one optimizer are fused by one call each, in the order in which they step.
    One that only this package still holds is replaced.

    Args:
        optimizer: one of ``fused_sched.optim``, or one of torch's of the same name, which becomes
            one in place, with its state.
        scheduler: built on ``optimizer``; a stock torch scheduler becomes one of
            ``fused_sched.lr_scheduler`` in place. A class of your own is tabulated ``horizon``
            steps ahead. ReduceLROnPlateau is converted and stays explicit: it advances when its
            metric comes.
        interval: for loops that do not call ``scheduler.step()``: the schedule advances by itself
            after every ``interval`` optimizer steps, at least 1. A call that comes all the same
            does nothing but warn once.
        advance_on_skip: whether a replay, or a step of an interval, also advances the schedule
            when GradScaler's ``found_inf`` makes the optimizer stand still. Calls always do.

    Returns:
        The optimizer and the scheduler given.

    Raises:
        TypeError: an optimizer that cannot carry a device schedule, or not a scheduler.
        ValueError: the scheduler belongs to another optimizer or to a composite; ``interval`` is
            below 1; or a class of your own overrides ``step()``. Nothing has been converted then.
        RuntimeError: a captured graph uses the present schedule.
    """
    if interval is not None and (not isinstance(interval, int) or interval < 1):
        raise ValueError(f"Expected positive integer interval, but got {interval}")
    if not isinstance(scheduler, stock.LRScheduler):
        raise TypeError(f"{type(scheduler).__name__} is not an LRScheduler")
    _check_pair(optimizer, scheduler)
    ledger = _ledger(optimizer)
    convert_scheduler(scheduler)
    if not isinstance(scheduler, stock.ReduceLROnPlateau):
        ledger.fuse(scheduler, interval, advance_on_skip)
    return optimizer, scheduler


def unfuse(optimizer: stock.Optimizer, scheduler: stock.LRScheduler | None = None) -> None:
    """Take a schedule out of the launch again: its ``step()`` is a step of its own from here on.

    Args:
        optimizer: one of ``fused_sched.optim``.
        scheduler: a fused one; None stands for all of them. One that is not fused stays as it is.

    Raises:
        TypeError: the optimizer is not one of ``fused_sched.optim``.
        RuntimeError: a captured graph uses the schedule, or a CUDA graph is being captured.
    """
    ledger = ledger_of(optimizer)
    if ledger is None:
        raise TypeError(
            f"{type(optimizer).__name__} has no fused schedule; expected an optimizer of "
            "fused_sched.optim"
        )
    ledger.unfuse(scheduler)


def _check_pair(optimizer: Any, scheduler: Any) -> None:
    """Raise, before anything is converted, for a pair that cannot be fused."""
    ledger = ledger_of(optimizer)
    if ledger is None:
        _check_stock(optimizer)
    theirs = scheduler.optimizer
    if theirs is not optimizer and (ledger is None or ledger_of(theirs) is not ledger):
        raise ValueError(
            f"{type(scheduler).__name__} belongs to another optimizer; build it on the "
            f"{type(optimizer).__name__} that it is fused with"
        )
    if ledger is not None and ledger.mirror.host.schedules.is_inside(scheduler):
        raise ValueError(
            f"{type(scheduler).__name__} is stepped by another scheduler; fuse that one instead"
        )
    if isinstance(scheduler, DeviceScheduler) and type(scheduler).step is not DeviceScheduler.step:
        raise ValueError(
            f"{type(scheduler).__name__} overrides step(), which a fused schedule does not call; "
            "override get_lr() instead, or call scheduler.step() outside the graph"
        )


def _check_stock(optimizer: Any) -> None:
    if type(optimizer) not in OPTIMIZERS:
        known = ", ".join(cls.__name__ for cls in OPTIMIZERS.values())
        raise TypeError(
            f"{type(optimizer).__name__} cannot carry a device schedule; use {known} of "
            "fused_sched.optim, or leave the scheduler explicit and call scheduler.step()"
        )
    patched = optimizer.__dict__.get("step")
    if patched is not None and not hasattr(patched, "_wrapped_by_lr_sched"):
        raise RuntimeError(
            "optimizer.step() was replaced by a function of your own, which would be lost; "
            "fuse the optimizer first, then replace its step"
        )


def _ledger(optimizer: Any) -> Ledger:
    """The ledger of an optimizer, converted if it is a stock one."""
    ledger = ledger_of(optimizer)
    if ledger is not None:
        return ledger
    state = optimizer.__dict__.pop("state")
    patched = optimizer.__dict__.pop("step", None)
    optimizer.__class__ = OPTIMIZERS[type(optimizer)]
    ledger = optimizer.__dict__[FusedOptimizer._LEDGER] = Ledger(optimizer)
    optimizer.state = state
    optimizer._patch_step_function()
    if patched is not None:
        _track_calls(optimizer)
    ledger.placement.adopt()
    return ledger


def _track_calls(optimizer: Any) -> None:
    """What a torch scheduler does to ``optimizer.step``, for the class that it has now."""
    reference = weakref.ref(optimizer)
    function = type(optimizer).step

    @functools.wraps(function)
    def step(*args: Any, **kwargs: Any) -> Any:
        target = reference()
        assert target is not None
        target._opt_called = True
        return function.__get__(target, type(target))(*args, **kwargs)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = step


def convert_scheduler(scheduler: Any) -> None:
    """Make a torch scheduler, and those inside it, one of ours, in place."""
    for child in getattr(scheduler, "_schedulers", ()):
        convert_scheduler(child)
    if not isinstance(scheduler, DeviceScheduler):
        theirs = type(scheduler)
        scheduler.__class__ = SCHEDULERS.get(theirs) or _with_device(theirs)  # type: ignore[arg-type]
        scheduler._enroll()


@functools.cache
def _with_device(theirs: type) -> type:
    """A user's class with the device's part mixed in."""
    known = (c for c in theirs.__mro__ if c in SCHEDULERS)
    ours = next((SCHEDULERS[c] for c in known), DeviceScheduler)
    rows = {"__module__": theirs.__module__, "__reduce__": _reduce}
    return type(theirs.__name__, (ours, theirs), rows)


def _reduce(scheduler: Any) -> tuple[Any, ...]:
    """Pickled by the class that was converted: the one made from it has no name to be found by."""
    classes = type(scheduler).__mro__
    given = next(c for c in classes[1:] if not c.__module__.startswith("fused_sched."))
    return _rebuild, (given,), scheduler.__getstate__()


def _rebuild(theirs: type) -> Any:
    return object.__new__(_with_device(theirs))
