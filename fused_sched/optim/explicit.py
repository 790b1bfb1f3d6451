"""``scheduler.step()``: on the host, on the device, or already done by the optimizer's launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .plan import capturing
from .schedules import Fused

if TYPE_CHECKING:
    from .ledger import Ledger


def step_scheduler(ledger: Ledger, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """``scheduler.step()`` of one of our schedulers."""
    fused = ledger.schedules.find(scheduler)
    if ledger.hosting:
        scheduler._host_step(*args, **kwargs)
    elif fused is not None and not args and not kwargs:
        _answer(ledger, fused)
    elif not _advance_on_device(ledger, scheduler, args, kwargs):
        ledger.refresh()
        try:
            with ledger.host_only():
                scheduler._host_step(*args, **kwargs)
        finally:
            ledger.follow(scheduler)  # torch may raise when it has written a part
        ledger.lean.keep_schedule(ledger, scheduler)


def _answer(ledger: Ledger, fused: Fused) -> None:
    """A ``step()`` call for a schedule that has already moved: only check the cadence."""
    if capturing():
        return
    ledger.lean.settle(ledger)
    advances = fused.steps // fused.interval
    unsure = ledger.captured or ledger.values_ahead
    if advances - fused.answered >= 2 and not unsure:
        steps = (advances - fused.answered) * fused.interval
        raise RuntimeError(
            f"{type(fused.scheduler).__name__}.step() was called once in {steps} optimizer "
            f"steps, but the schedule is fused to advance every {fused.interval}. Pass the "
            "interval that you mean to fused_sched.fuse(), or do not fuse it."
        )
    fused.answered = min(fused.answered + 1, advances)


def _advance_on_device(ledger: Ledger, scheduler: Any, args: Any, kwargs: Any) -> bool:
    """Launch the scheduler's own program where the host cannot run it; False if it can."""
    metric = scheduler._device_metric(*args, **kwargs)
    inside = capturing()
    on_device = metric is not None and metric.device in ledger.plans
    if not (inside or ledger.captured or ledger.values_ahead or on_device):
        return False
    number = ledger.schedules.program_of(scheduler)
    if number is None and not inside and not ledger.captured and on_device:
        ledger.stepper.prepare()
        number = ledger.schedules.program_of(scheduler)
    if number is None or (metric is None and (args or kwargs)):
        if inside:
            reason = ledger.schedules.refused.get(
                id(scheduler), "call optimizer.prepare() before the capture"
            )
            raise RuntimeError(f"{type(scheduler).__name__}.step() cannot be captured: {reason}")
        return False
    _launch(ledger, number, metric)
    if inside:
        ledger.captured = True
        ledger.schedules.in_graphs.append(scheduler)
    ledger.values_ahead = True
    return True


def _launch(ledger: Ledger, number: int, metric: Tensor | None) -> None:
    """Advance program ``number`` on every device."""
    for plan in ledger.plans.values():
        if plan.block is not None:
            plan.join_stream()
            ledger.read_rates()
            place = None if metric is None else metric.to(plan.device, torch.float64).reshape(1)
            plan.engine.advance(plan.block, plan.block.programs[number], metric=place)
    ledger.write_rates()
