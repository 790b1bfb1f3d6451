"""When a launch may be cached: one device, every gradient where the table expects it, no hooks.

A full step leaves a cached one behind where it finds nothing out of the ordinary. The cached launch
checks that this still holds and launches; the mirror counts its steps before any read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fused_sched.engines.choose import FORCED
from fused_sched.engines.native_library import LaunchSnapshot
from fused_sched.tables import layout

from .cached import CACHED
from .cached_host import CachedHostStep
from .device_state import DeviceState
from .exposed_state import can_watch, watch
from .fused_schedule import is_tabulated
from .mirror import Mirror
from .state import StateKeeper


def keep_step(mirror: Mirror, keeper: StateKeeper, params: Sequence[Tensor]) -> None:
    """After a full step: make the next ones cached, if they can be."""
    device_states = list(mirror.host.device_states.values())
    if len(device_states) != 1 or not _is_ordinary(mirror, keeper, device_states[0]):
        mirror.account.drop_cached()
        return
    (device_state,) = device_states
    cached, key = mirror.account.cached, launch_key(device_state, keeper)
    launch, known = cached.launch, key == cached.key
    if launch is not None and known:
        launch.renew(mirror.account.steps_left())
        keep_calls(mirror, device_state)
        return
    mirror.account.drop_cached()
    cached.note_key(key)
    if known:  # for the second time: where every step changes something it would never pay
        snapshot = _snapshot(mirror, keeper, device_state, params)
        launch = device_state.engine.cached_launch(
            device_state.buffer,
            device_state.table,
            device_state.fused_program(),
            device_state.rule,
            snapshot,
        )
        if launch is not None and keeper.state_exposed:
            watch(launch, keeper, device_state.table.rows)
        cached.keep_launch(launch)
        keep_calls(mirror, device_state)


def launch_key(device_state: DeviceState, keeper: StateKeeper) -> tuple[Any, ...]:
    """What a cached launch is made for: it serves the next step that finds the same."""
    replacements = keeper.counts.replacements if keeper.state_exposed else None
    return (
        device_state.engine,
        device_state.table,
        id(device_state.table.info),
        len(keeper.waiting),
        replacements,
    )


def keep_schedule(mirror: Mirror, scheduler: Any) -> None:
    """After a step of the only scheduler, on the host: make the next ones cached."""
    device_states = list(mirror.host.device_states.values())
    schedules = mirror.host.schedules
    only = list(schedules.roots()) == [scheduler] and not schedules.fused
    if not only or len(device_states) > 1 or mirror.account.captured or mirror.host.lr_tensors():
        return
    if _asks_users_only(mirror, scheduler):
        buffer = device_states[0].buffer if device_states else None
        mirror.account.cached.keep_schedule(scheduler, CachedHostStep(mirror, scheduler, buffer))
        return
    number = schedules.program_of(scheduler)
    if number is None or not device_states:
        return
    if scheduler._TAKES_METRIC or is_tabulated(scheduler):
        return  # the host must look at each step
    (device_state,) = device_states
    make = getattr(device_state.engine, "cached_schedule", None)
    if make is None or device_state.buffer is None or device_state.device.type != "cpu":
        return
    mirror.sender.send_rows()
    program, ends = device_state.buffer.programs[number], mirror.sender.programs[number].ends
    mirror.account.cached.keep_schedule(
        scheduler, make(device_state.buffer, program, mirror.host.optimizer, ends)
    )


def _asks_users_only(mirror: Mirror, scheduler: Any) -> bool:
    """Whether a step asks users' functions for lr and does nothing else, all of it on the CPU."""
    return (
        hasattr(scheduler, "_next_values")
        and is_tabulated(scheduler)
        and not scheduler._changed()
        and scheduler.hyper == "lr"
        and not mirror.host.schedules.tables
        and all(
            device_state.device.type == "cpu" for device_state in mirror.host.device_states.values()
        )
    )


def keep_calls(mirror: Mirror, device_state: DeviceState) -> None:
    """The calls of fused schedulers that only confirm what the launches have made."""
    if not mirror.host.schedules.governed or mirror.account.hosted():
        return
    for number, fused in enumerate(mirror.host.schedules.fused):
        if CACHED not in fused.scheduler.__dict__:
            fused.scheduler.__dict__[CACHED] = device_state.engine.cached_call(
                mirror.account.cadence.words, number, mirror.host.optimizer
            )


def _snapshot(
    mirror: Mirror, keeper: StateKeeper, device_state: DeviceState, params: Sequence[Tensor]
) -> LaunchSnapshot:
    reached = {m.index for m in device_state.table.rows if keeper.reached(m)}
    governed = bool(mirror.host.schedules.fused) and mirror.host.schedules.governed
    cadence = mirror.account.cadence.words if governed else None
    return LaunchSnapshot(
        mirror.host.optimizer,
        params,
        reached,
        FORCED,
        mirror.account.steps_left(),
        layout.COUNTED,
        cadence,
        vars(device_state),
    )


def _is_ordinary(mirror: Mirror, keeper: StateKeeper, device_state: DeviceState) -> bool:
    """Whether nothing is unreplayed, staged or watched."""
    return (
        device_state.buffer is not None
        and device_state.engine.can_cache(device_state.buffer, device_state.table)
        and all([row.plain for row in device_state.table.rows])
        and not (mirror.account.device_leads or keeper.counts.held)
        and not (
            keeper.state_exposed and mirror.account.clock_unknown
        )  # the counts that it shows are behind
        and (not keeper.state_exposed or can_watch(keeper, device_state.table.rows))
        and not (
            mirror.probe.may_come or mirror.host.lr_tensors() or mirror.account.counts_intervals()
        )
    )
