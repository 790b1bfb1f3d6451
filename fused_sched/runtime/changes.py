"""What others have put into ``optimizer.state`` since the tables were built from it."""

from __future__ import annotations

from typing import Any

from .mirror import Mirror
from .plan import Plan, capturing
from .state import StateKeeper


def take_changes(mirror: Mirror, keeper: StateKeeper, plan: Plan, in_place: bool) -> set[int]:
    """Take the step counts and tensors that the state dict holds now.

    Returns:
        The members whose tensors are others now; with ``in_place`` only those that cannot be
        copied into the table's own without being rounded.
    """
    mirror.refresh_clock()
    gone: set[int] = set()
    told = False
    for member in plan.table.members:
        moved = member.states_moved
        replaced = moved or keeper.replaced(member)
        step = keeper.told_step(member, replaced)
        if step is not None:
            plan.offsets[member.index] = plan.clock - step
            keeper.note_step(member)
            told = True
        if replaced and in_place and not moved and (mirror.captured or keeper.same_dtypes(member)):
            with mirror.host_only():
                group = mirror.optimizer.param_groups[member.group]
                keeper.restore(member, group, mirror.captured)
            plan.shown_clock = -1  # what is shown of it is yet to be written
        elif replaced:
            gone.add(member.index)
    if told and plan.block is not None:
        plan.send_clock()
    return gone


def show_state(mirror: Mirror, keeper: StateKeeper) -> Any:
    """``optimizer.state`` as of now."""
    if not keeper.shown:
        mirror.drop_lean()  # the next one watches the state
    keeper.shown = True
    if not mirror.hosting and not capturing():
        mirror.refresh_clock()
        if any(plan.clock != plan.shown_clock for plan in mirror.plans.values()):
            keeper.write_steps(mirror.plans.values())
    return keeper.state
