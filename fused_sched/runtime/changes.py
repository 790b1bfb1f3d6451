"""What user code has put into ``optimizer.state`` since the tables were built from it."""

from __future__ import annotations

from typing import Any

from .device_state import DeviceState, capturing
from .mirror import Mirror
from .state import StateKeeper


def take_changes(
    mirror: Mirror, keeper: StateKeeper, device_state: DeviceState, in_place: bool
) -> set[int]:
    """Take the step counts and tensors that the state dict holds now.

    Returns:
        Numbers of the params whose state tensors were replaced; with ``in_place`` only those that
        cannot be copied into the table's own without being rounded.
    """
    mirror.account.refresh_clock()
    device_state.take_carried()
    gone: set[int] = set()
    counted = False
    for row in device_state.table.rows:
        moved = row.states_moved
        replaced = moved or keeper.replaced(row)
        step = keeper.external_step(row, replaced)
        if step is not None:
            device_state.set_step(row.index, step)
            keeper.note_step(row)
            counted = True
        with mirror.host.suspend_sync:
            group = mirror.host.optimizer.param_groups[row.group]
            numbers = keeper.external_recurrences(row, replaced, group)
        if numbers is not None:
            device_state.set_carried(row.index, numbers)
            counted = True
        kept = in_place and not moved and (mirror.account.captured or keeper.same_dtypes(row))
        if replaced and kept:
            with mirror.host.suspend_sync:
                keeper.restore(row, group, mirror.account.captured)
            device_state.note_unwritten()
        elif replaced:
            gone.add(row.index)
    if counted and device_state.buffer is not None:
        device_state.send_clock()
    return gone


def show_state(mirror: Mirror, keeper: StateKeeper) -> Any:
    """``optimizer.state``, brought up to date."""
    if not keeper.state_exposed:
        mirror.account.drop_cached()  # the next one watches the state
    keeper.expose()
    if not mirror.host.suspend_sync.is_entered and not capturing():
        mirror.account.refresh_clock()
        device_states = mirror.host.device_states.values()
        if any(one.clock != one.state_clock for one in device_states):
            keeper.write_steps(device_states)
    return keeper.state
