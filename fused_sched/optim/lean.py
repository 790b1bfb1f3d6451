"""Lean steps: what the compiled engine can do alone until something changes.

A whole step leaves one behind where it finds nothing out of the ordinary: one device, every
gradient where the table expects it, nobody who watches. The lean step checks that this still holds
and launches; it counts what it did, and the ledger settles the account before anybody reads.

The optimizer and the scheduler own theirs: owned from here they would be a cyclic reference.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from fused_sched.engines.choose import FORCED
from fused_sched.engines.native_library import Found

from .account import count_lean, steps_left
from .schedules import is_tabulated

if TYPE_CHECKING:
    from .ledger import Ledger
    from .plan import Plan

LEAN = "_lean"
"""The attribute under which optimizer and scheduler have theirs."""


class Lean:
    """The lean step of an optimizer, and the lean advance of its one explicit scheduler."""

    def __init__(self) -> None:
        self._scheduler: weakref.ref[Any] | None = None
        self.owed = 0  # advances of it that the host has yet to replay
        self._made_for: tuple[Any, ...] = ()

    @property
    def scheduler(self) -> Any:
        """The scheduler with a lean advance, None without one."""
        return None if self._scheduler is None else self._scheduler()

    def drop_step(self, ledger: Ledger) -> None:
        """Something changed: the next step must look."""
        self._made_for = ()
        optimizer = ledger.reference()
        if optimizer is not None and optimizer.__dict__.get(LEAN) is not None:
            self.settle(ledger)
            del optimizer.__dict__[LEAN]

    def drop_schedule(self, ledger: Ledger) -> None:
        """Something else may move the schedule: its next step is the host's."""
        self.settle(ledger)
        scheduler = self.scheduler
        if scheduler is not None:
            scheduler.__dict__.pop(LEAN, None)
        if not self.owed:
            self._scheduler = None

    def settle(self, ledger: Ledger) -> None:
        """Take what was done alone into the ledger's account."""
        optimizer = ledger.reference()
        step = None if optimizer is None else optimizer.__dict__.get(LEAN)
        if step is not None:
            count_lean(ledger, *step.take())
        if self._scheduler is not None:
            scheduler = self._scheduler()
            if scheduler is not None:
                lean = scheduler.__dict__.get(LEAN)
                self.owed += 0 if lean is None else lean.take()
            else:
                # It went with its count; the values are on the device.
                self._scheduler, self.owed, ledger.values_ahead = None, 0, True

    def replay(self) -> None:
        """Make the host's scheduler follow."""
        owed, self.owed = self.owed, 0
        scheduler = self.scheduler
        for _ in range(owed):
            scheduler._host_step()

    def keep_step(self, ledger: Ledger) -> None:
        """After a whole step: make the next ones lean, if they can be."""
        plans = list(ledger.plans.values())
        if len(plans) != 1 or not _is_ordinary(ledger, plans[0]):
            self.drop_step(ledger)
            return
        (plan,) = plans
        optimizer, table = ledger.optimizer, plan.table
        here = optimizer.__dict__.get(LEAN)
        made_for = plan.engine, table, id(table.info), len(ledger.keeper.waiting)
        known = made_for == self._made_for
        if here is not None and known:
            here.renew(steps_left(ledger))
            return
        self.drop_step(ledger)
        self._made_for = made_for
        if known:  # for the second time: where every step changes something it would never pay
            lean = plan.engine.lean_step(
                plan.block, table, plan.fused_program(), plan.rule, _found(ledger, plan)
            )
            if lean is not None:
                optimizer.__dict__[LEAN] = lean

    def keep_schedule(self, ledger: Ledger, scheduler: Any) -> None:
        """After a step of the only scheduler, on the host: make the next ones lean."""
        plans = list(ledger.plans.values())
        number = ledger.schedules.program_of(scheduler)
        alone = list(ledger.schedules.roots()) == [scheduler] and not ledger.schedules.fused
        if number is None or not alone or len(plans) != 1 or ledger.captured or ledger.rates():
            return
        if is_tabulated(scheduler):
            return  # somebody's own code decides: it is asked each time
        (plan,) = plans
        make = getattr(plan.engine, "lean_schedule", None)
        if make is None or plan.block is None or plan.device.type != "cpu":
            return
        self._scheduler = weakref.ref(scheduler)
        scheduler.__dict__[LEAN] = make(
            plan.block, plan.block.programs[number], ledger.optimizer, ledger.programs[number].ends
        )


def _found(ledger: Ledger, plan: Plan) -> Found:
    reached = {m.index for m in plan.table.members if ledger.keeper.reached(m)}
    params, limit = ledger.stepper.params, steps_left(ledger)
    return Found(ledger.optimizer, params, reached, FORCED, limit, vars(plan))


def _is_ordinary(ledger: Ledger, plan: Plan) -> bool:
    """Whether nothing is pending, staged or watched."""
    return (
        hasattr(plan.engine, "lean_step")
        and plan.block is not None
        and all(member.plain for member in plan.table.members)
        and not (ledger.captured or ledger.values_ahead or ledger.keeper.shown)
        and not (ledger.zeroed or ledger.rates())
    )
