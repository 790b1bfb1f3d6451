"""``scheduler.step()``: on the host, on the device, or already done by the optimizer's launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .lean_steps import keep_schedule
from .mirror import Mirror
from .plan import capturing
from .schedules import Fused
from .stepper import Stepper


def step_scheduler(
    mirror: Mirror, stepper: Stepper, scheduler: Any, *args: Any, **kwargs: Any
) -> None:
    """``scheduler.step()`` of one of our schedulers."""
    fused = mirror.schedules.find(scheduler)
    if mirror.hosting:
        scheduler._host_step(*args, **kwargs)
    elif fused is not None and not args and not kwargs:
        _answer(mirror, fused)
    elif not _advance_on_device(mirror, stepper, scheduler, args, kwargs):
        mirror.refresh()
        try:
            with mirror.host_only():
                scheduler._host_step(*args, **kwargs)
        finally:
            mirror.follow(scheduler)  # torch may raise when it has written a part
        keep_schedule(mirror, scheduler)


def _answer(mirror: Mirror, fused: Fused) -> None:
    """A ``step()`` call for a schedule that has already moved: only check the cadence."""
    if capturing():
        return
    mirror.settle()
    advances = fused.steps // fused.interval
    unsure = mirror.captured or mirror.values_ahead
    if advances - fused.answered >= 2 and not unsure:
        steps = (advances - fused.answered) * fused.interval
        raise RuntimeError(
            f"{type(fused.scheduler).__name__}.step() was called once in {steps} optimizer "
            f"steps, but the schedule is fused to advance every {fused.interval}. Pass the "
            "interval that you mean to fused_sched.fuse(), or do not fuse it."
        )
    fused.answered = min(fused.answered + 1, advances)


def _advance_on_device(
    mirror: Mirror, stepper: Stepper, scheduler: Any, args: Any, kwargs: Any
) -> bool:
    """Launch the scheduler's own program where the host cannot run it; False if it can."""
    metric = scheduler._device_metric(*args, **kwargs)
    inside = capturing()
    on_device = metric is not None and metric.device in mirror.plans
    if not (inside or mirror.captured or mirror.values_ahead or on_device):
        return False
    number = mirror.schedules.program_of(scheduler)
    if number is None and not inside and not mirror.captured and on_device:
        stepper.prepare()
        number = mirror.schedules.program_of(scheduler)
    if number is None or (metric is None and (args or kwargs)):
        if inside:
            reason = mirror.schedules.refused.get(
                id(scheduler), "call optimizer.prepare() before the capture"
            )
            raise RuntimeError(f"{type(scheduler).__name__}.step() cannot be captured: {reason}")
        return False
    _launch(mirror, number, metric)
    if inside:
        mirror.captured = True
        mirror.schedules.in_graphs.append(scheduler)
    mirror.values_ahead = True
    return True


def _launch(mirror: Mirror, number: int, metric: Tensor | None) -> None:
    """Advance program ``number`` on every device."""
    for plan in mirror.plans.values():
        if plan.block is not None:
            plan.join_stream()
            mirror.read_rates()
            place = None if metric is None else metric.to(plan.device, torch.float64).reshape(1)
            plan.engine.advance(plan.block, plan.block.programs[number], metric=place)
    mirror.write_rates()
