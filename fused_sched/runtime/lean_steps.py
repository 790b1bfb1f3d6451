"""When a step may be lean: one device, every gradient where the table expects it, nobody watching.

A whole step leaves a lean one behind where it finds nothing out of the ordinary. The lean step
checks that this still holds and launches; the mirror counts what it did before anybody reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fused_sched.engines.choose import FORCED
from fused_sched.engines.native_library import Found
from fused_sched.tables import layout

from .lean import LEAN
from .lean_host import LeanHost
from .mirror import Mirror
from .plan import Plan
from .schedules import is_tabulated
from .shown import can_watch, watch
from .state import StateKeeper


def keep_step(mirror: Mirror, keeper: StateKeeper, params: Sequence[Tensor]) -> None:
    """After a whole step: make the next ones lean, if they can be."""
    plans = list(mirror.plans.values())
    if len(plans) != 1 or not _is_ordinary(mirror, keeper, plans[0]):
        mirror.drop_lean()
        return
    (plan,) = plans
    made_for = found_by(plan, keeper)
    here = mirror.lean.step
    known = made_for == mirror.lean.made_for
    if here is not None and known:
        here.renew(mirror.steps_left())
        keep_calls(mirror, plan)
        return
    mirror.drop_lean()
    mirror.lean.made_for = made_for
    if known:  # for the second time: where every step changes something it would never pay
        found = _found(mirror, keeper, plan, params)
        make = plan.engine.lean_step
        step = make(plan.block, plan.table, plan.fused_program(), plan.rule, found)
        if step is not None and keeper.shown:
            watch(step, keeper, plan.table.members)
        mirror.lean.keep_step(step)
        keep_calls(mirror, plan)


def found_by(plan: Plan, keeper: StateKeeper) -> tuple[Any, ...]:
    """What a lean step is made for: it serves the next step that finds the same."""
    shown = keeper.counts.replacements if keeper.shown else None
    return plan.engine, plan.table, id(plan.table.info), len(keeper.waiting), shown


def keep_schedule(mirror: Mirror, scheduler: Any) -> None:
    """After a step of the only scheduler, on the host: make the next ones lean."""
    plans = list(mirror.plans.values())
    schedules = mirror.schedules
    alone = list(schedules.roots()) == [scheduler] and not schedules.fused
    if not alone or len(plans) > 1 or mirror.captured or mirror.rates():
        return
    if _asks_alone(mirror, scheduler):
        block = plans[0].block if plans else None
        mirror.lean.keep_schedule(scheduler, LeanHost(mirror, scheduler, block))
        return
    number = schedules.program_of(scheduler)
    if number is None or not plans:
        return
    if scheduler._TAKES_METRIC or is_tabulated(scheduler):
        return  # the host must look at each step
    (plan,) = plans
    make = getattr(plan.engine, "lean_schedule", None)
    if make is None or plan.block is None or plan.device.type != "cpu":
        return
    mirror.send_rows()
    program, ends = plan.block.programs[number], mirror.programs[number].ends
    mirror.lean.keep_schedule(scheduler, make(plan.block, program, mirror.optimizer, ends))


def _asks_alone(mirror: Mirror, scheduler: Any) -> bool:
    """Whether a step asks users' functions for lr and does nothing else, all of it on the CPU."""
    return (
        hasattr(scheduler, "_next_values")
        and is_tabulated(scheduler)
        and not scheduler._changed()
        and scheduler.hyper == "lr"
        and not mirror.schedules.tables
        and all(plan.device.type == "cpu" for plan in mirror.plans.values())
    )


def keep_calls(mirror: Mirror, plan: Plan) -> None:
    """The calls of fused schedulers that only confirm what the launches have made."""
    if not mirror.schedules.governed or mirror.hosted():
        return
    for number, fused in enumerate(mirror.schedules.fused):
        if LEAN not in fused.scheduler.__dict__:
            fused.scheduler.__dict__[LEAN] = plan.engine.lean_call(
                mirror.cadence.words, number, mirror.optimizer
            )


def _found(mirror: Mirror, keeper: StateKeeper, plan: Plan, params: Sequence[Tensor]) -> Found:
    reached = {m.index for m in plan.table.members if keeper.reached(m)}
    governed = bool(mirror.schedules.fused) and mirror.schedules.governed
    cadence = mirror.cadence.words if governed else None
    return Found(
        mirror.optimizer,
        params,
        reached,
        FORCED,
        mirror.steps_left(),
        layout.COUNTED,
        cadence,
        vars(plan),
    )


def _is_ordinary(mirror: Mirror, keeper: StateKeeper, plan: Plan) -> bool:
    """Whether nothing is pending, staged or watched."""
    return (
        plan.block is not None
        and plan.engine.can_lean(plan.block, plan.table)
        and all(member.plain for member in plan.table.members)
        and not (mirror.captured or mirror.values_ahead or keeper.counts.held)
        and not (keeper.shown and mirror.clock_ahead)  # the counts that it shows are behind
        and (not keeper.shown or can_watch(keeper, plan.table.members))
        and not (mirror.zeroed or mirror.rates() or mirror.counts_intervals())
    )
