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
    gone: set[int] = set()
    counted = False
    for row in device_state.table.rows:
        moved = row.states_moved
        replaced = moved or keeper.replaced(row)
        step = keeper.external_step(row, replaced)
        if step is not None:
            device_state.offsets[row.index] = device_state.clock - step
            keeper.note_step(row)
            counted = True
        if (
            replaced
            and in_place
            and not moved
            and (mirror.account.captured or keeper.same_dtypes(row))
        ):
            with mirror.host.suspend_sync:
                group = mirror.host.optimizer.param_groups[row.group]
                keeper.restore(row, group, mirror.account.captured)
            device_state.state_clock = -1  # the state dict does not show it yet
        elif replaced:
            gone.add(row.index)
    if counted and device_state.buffer is not None:
        device_state.send_clock()
    return gone


def show_state(mirror: Mirror, keeper: StateKeeper) -> Any:
    """``optimizer.state``, brought up to date."""
    if not keeper.state_exposed:
        mirror.account.drop_cached()  # the next one watches the state
    keeper.state_exposed = True
    if not mirror.host.suspend_sync.is_entered and not capturing():
        mirror.account.refresh_clock()
        if any(
            device_state.clock != device_state.state_clock
            for device_state in mirror.host.device_states.values()
        ):
            keeper.write_steps(mirror.host.device_states.values())
    return keeper.state
