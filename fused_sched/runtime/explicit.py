"""``scheduler.step()``: on the host, on the device, or already done by the optimizer's launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_sched.runtime.users_line import warn

from .cached_steps import keep_schedule
from .device_state import RELEASE, capturing
from .mirror import Mirror
from .schedules import FusedSchedule
from .stepper import Stepper


def step_scheduler(
    mirror: Mirror, stepper: Stepper, scheduler: Any, *args: Any, **kwargs: Any
) -> None:
    """``scheduler.step()`` of one of our schedulers."""
    with mirror.lock:
        _step_scheduler(mirror, stepper, scheduler, *args, **kwargs)


def _step_scheduler(
    mirror: Mirror, stepper: Stepper, scheduler: Any, *args: Any, **kwargs: Any
) -> None:
    fused = mirror.schedules.find(scheduler)
    if not mirror.sync_suspended:
        mirror.end_captures()
    if mirror.sync_suspended:
        scheduler._host_step(*args, **kwargs)
    elif fused is not None and not args and not kwargs:
        _step_fused(mirror, stepper, fused)
    elif not _advance_on_device(mirror, stepper, scheduler, args, kwargs):
        _step_on_host(mirror, scheduler, *args, **kwargs)
        keep_schedule(mirror, scheduler)


def _step_on_host(mirror: Mirror, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """torch's own step; then the device gets the values."""
    mirror.refresh()
    try:
        with mirror.suspend_sync():
            scheduler._host_step(*args, **kwargs)
    finally:
        mirror.follow(scheduler)  # torch may raise when it has written a part


# -- a fused scheduler ---------------------------------------------------------------------------


def _step_fused(mirror: Mirror, stepper: Stepper, fused: FusedSchedule) -> None:
    """A call for a schedule that rides in the launch of ``optimizer.step()``."""
    if capturing():
        return  # the captured launch advances it
    stepper.adopt()  # the groups may be others than those that the launch has moved
    fused.calls += 1
    if mirror.captured:
        _warn_once(fused, _MOVED_BY_REPLAYS.format(type(fused.scheduler).__name__))
    elif fused.interval is not None:
        _warn_once(fused, _moved_by_interval(mirror, fused))
    elif not mirror.cadence.confirm(number := mirror.schedules.fused.index(fused)):
        _step_unexpected(mirror, fused)
        if number == 0:
            mirror.cadence.called()


def _step_unexpected(mirror: Mirror, fused: FusedSchedule) -> None:
    """A call whose step no launch has made ahead: by a launch of its own, or on the host."""
    if mirror.can_advance_alone():
        mirror.take_back()
        for device_state in mirror.with_buffer():
            assert device_state.buffer is not None
            device_state.join_stream()
            device_state.engine.advance(device_state.buffer, device_state.buffer.programs[0])
        mirror.cadence.made_alone()
    else:
        _step_on_host(mirror, fused.scheduler)


_MOVED_BY_REPLAYS = (
    "{}.step() was called while a captured graph moves the schedule: each replay of "
    f"optimizer.step() advances it by one, and the call does nothing. Leave it out, or {RELEASE}."
)


def _moved_by_interval(mirror: Mirror, fused: FusedSchedule) -> str:
    name, interval = type(fused.scheduler).__name__, fused.interval
    mirror.settle()
    return (
        f"{name}.step() was called {fused.calls} times in {fused.steps} optimizer steps, but it "
        f"is fused with interval={interval}: it advances by itself after every {interval} of them, "
        "and the call does nothing. Drop the call, or fuse without an interval to let the calls "
        "govern."
    )


def _warn_once(fused: FusedSchedule, message: str) -> None:
    if not fused.warned:
        fused.warned = True
        warn(message)


# -- on the device -------------------------------------------------------------------------------


def _advance_on_device(
    mirror: Mirror, stepper: Stepper, scheduler: Any, args: Any, kwargs: Any
) -> bool:
    """Launch the scheduler's own program where the host cannot run it; False if it can."""
    metric = scheduler._device_metric(*args, **kwargs)
    inside = capturing()
    on_device = metric is not None and metric.device in mirror.device_states
    if not (inside or mirror.captured or mirror.values_ahead or on_device):
        return False
    number = mirror.schedules.program_of(scheduler)
    if number is None and not inside and not mirror.captured and on_device:
        stepper.prepare(scaled=False)
        number = mirror.schedules.program_of(scheduler)
    if number is None or (metric is None and (args or kwargs)):
        if inside:
            reason = mirror.schedules.refused.get(
                id(scheduler), "call optimizer.prepare() before the capture"
            )
            raise RuntimeError(f"{type(scheduler).__name__}.step() cannot be captured: {reason}")
        return False
    mirror.take_back()
    if not inside:
        mirror.send_rows()
    _launch(mirror, number, metric)
    if not inside:
        mirror.values_ahead = True
        return True
    schedules = mirror.schedules
    schedules.in_graphs.append(scheduler)
    # Two that move one value, or one with a step between, the host could not make in their order.
    alone = not schedules.fused and all(one is scheduler for one in schedules.in_graphs)
    known = alone and metric is None and not mirror.lr_tensors()
    mirror.note_capture(number if known else None)
    return True


def _launch(mirror: Mirror, number: int, metric: Tensor | None) -> None:
    """Advance program ``number`` on every device."""
    for device_state in mirror.device_states.values():
        if device_state.buffer is not None:
            device_state.join_stream()
            mirror.read_lr_tensors()
            place = (
                None if metric is None else metric.to(device_state.device, torch.float64).reshape(1)
            )
            device_state.engine.advance(
                device_state.buffer, device_state.buffer.programs[number], metric=place
            )
    mirror.write_lr_tensors()
