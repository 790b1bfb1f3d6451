"""The account of steps: what a launch changed, as far as the host can know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from fused_sched.tables.local import local

from .plan import Plan, capturing

if TYPE_CHECKING:
    from .ledger import Ledger


def check_end(ledger: Ledger) -> None:
    """Before a fused step: renew a table that ends, raise where torch's schedule raises."""
    if not ledger.schedules.fused or ledger.captured:
        return
    if not ledger.blocks():
        ledger.refresh()
    program = ledger.programs[0]
    grown = program.lanes.shape[2] != len(ledger.optimizer.param_groups)
    if grown or (program.ends is not None and ledger.since_upload >= program.ends):
        ledger.refresh()
        with ledger.host_only():
            ledger.schedules.rehearse()
        ledger.upload()


def steps_left(ledger: Ledger) -> int | None:
    """Steps that can be made before a fused schedule must be looked at; None if it never is."""
    ends = ledger.programs[0].ends if ledger.schedules.fused else None
    return None if ends is None else max(ends - ledger.since_upload, 0)


def is_probe(ledger: Ledger) -> bool:
    """Whether the step is one of those by which torch's checkpoints fill an empty state.

    ``torch.distributed.checkpoint`` assigns lr 0 to every group, and gradients of zeros, and steps
    once; neither the params nor the schedule may move.
    """
    if not ledger.zeroed or ledger.stepped or ledger.keeper.state or capturing():
        return False
    if ledger.zeroed != {id(group) for group in ledger.optimizer.param_groups}:
        return False
    return not any(map(_pulls, ledger.stepper.params))


def _pulls(param: Tensor) -> bool:
    """Whether a gradient has other values than 0; of shards nobody knows, for all must agree."""
    grad = param.grad
    return grad is not None and local(grad) is grad and bool(grad.any())


def count(
    ledger: Ledger,
    plans: Sequence[Plan],
    grads: Sequence[Sequence[int]],
    moved: bool,
    scaled: bool,
    advance: bool,
) -> None:
    """After a launch.

    Args:
        grads: addresses of the gradients, by plan and member.
        moved: whether the params of the eager engine moved.
        scaled: whether only the device knows if the step was made.
        advance: whether the fused schedules were to advance.
    """
    ledger.keeper.behind = True
    ledger.zeroed.clear()
    ledger.stepped = ledger.stepped or advance
    if any(capturing(plan.device) for plan in plans):
        ledger.captured = True
        return
    if scaled:
        ledger.clock_ahead = True
    else:
        for plan, addresses in zip(plans, grads, strict=True):
            plan.count_step(addresses)
        if ledger.keeper.shown and not ledger.clock_ahead:
            ledger.keeper.write_steps(plans)  # somebody holds the dict and may read it
    if ledger.schedules.fused and advance:
        rates = bool(ledger.rates())
        _count_advance(ledger, moved, unknown=bool(plans) and (scaled or rates))
        if rates and not plans:
            ledger.refresh()  # the user reads the tensor without asking us


def _count_advance(ledger: Ledger, moved: bool, unknown: bool) -> None:
    """The account of the fused schedules, which only the device knows if ``unknown``."""
    ledger.since_upload += 1
    if unknown:
        ledger.values_ahead = True
        return
    for fused in ledger.schedules.fused:
        fused.steps += moved or fused.on_skip
    if moved:
        ledger.pending += 1
    else:
        ledger.refresh()
        with ledger.host_only():
            ledger.schedules.advance_on_skip()


def count_lean(ledger: Ledger, steps: int, missed: Mapping[int, int]) -> None:
    """After steps made alone: each moved the params, since none had a scaler.

    Args:
        missed: by number of a param, the steps in which it had no gradient.
    """
    if not steps:
        return
    ledger.keeper.behind = True
    for plan in ledger.plans.values():
        plan.clock += steps
        for index, number in missed.items():
            plan.offsets[index] += number
    if ledger.schedules.fused:
        ledger.since_upload += steps
        ledger.pending += steps
        for fused in ledger.schedules.fused:
            fused.steps += steps
