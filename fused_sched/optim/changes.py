"""What others have put into ``optimizer.state`` since the tables were built from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .plan import Plan

if TYPE_CHECKING:
    from .ledger import Ledger


def take_changes(ledger: Ledger, plan: Plan, in_place: bool) -> set[int]:
    """Take the step counts and tensors that the state dict holds now.

    Returns:
        The members whose tensors are others now; with ``in_place`` only those that cannot be
        copied into the table's own without being rounded.
    """
    keeper = ledger.keeper
    ledger.refresh_clock()
    gone: set[int] = set()
    told = False
    for member in plan.table.members:
        moved = member.states_moved
        replaced = moved or keeper.replaced(member)
        step = keeper.told_step(member, replaced)
        if step is not None:
            plan.offsets[member.index] = plan.clock - step
            keeper.note_step(member, step)
            told = True
        if replaced and in_place and not moved and (ledger.captured or keeper.same_dtypes(member)):
            with ledger.host_only():
                keeper.restore(member, ledger.optimizer.param_groups[member.group])
        elif replaced:
            gone.add(member.index)
    if told and plan.block is not None:
        plan.send_clock()
    return gone
