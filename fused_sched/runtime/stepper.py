"""One optimizer step: adopt what changed, find the engines, launch."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from fused_sched.engines import eager_engine, engine_for
from fused_sched.tables import layout
from fused_sched.tables.local import local
from fused_sched.tables.params import ParamRow, Unreadable
from fused_sched.tables.program import NO_TABLE

from .cached_steps import keep_step
from .changes import show_state, take_changes
from .device_state import RELEASE, DeviceState, capturing, refuse_capture
from .fallback import Fallback, is_odd
from .first_step import make_first_step
from .group import Group
from .held import is_held
from .mirror import Mirror
from .state import StateKeeper


class Stepper:
    """Keeps the device states of an optimizer in step with its params and groups."""

    def __init__(self, mirror: Mirror, keeper: StateKeeper) -> None:
        self.mirror = mirror
        self.keeper = keeper
        self.params: list[Tensor] = []
        self._sizes: list[int] = []  # params of each group
        self._group_of: list[int] = []
        self._moved: set[int] = set()  # params that lie elsewhere than in the tables
        self.fallback = Fallback(mirror, keeper)
        self._stepped = False  # whether a step was ever made

    # -- the adopt pass --------------------------------------------------------------------------

    def adopt(self) -> None:
        """Take over what frameworks put in: plain groups, other params, other tensors."""
        mirror = self.mirror
        groups = mirror.optimizer.param_groups
        plain = {
            number: group
            for number, group in enumerate(groups)
            if type(group) is not Group or group.mirror is not mirror
        }
        if plain:
            self._wrap(groups, plain)
        params = [p for group in groups for p in dict.__getitem__(group, "params")]
        sizes = [len(dict.__getitem__(group, "params")) for group in groups]
        if sizes != self._sizes or not all(map(is_, params, self.params)):
            self._restart(params, sizes)
        elif plain and not mirror.sync_suspended:
            mirror.upload()

    def _wrap(self, groups: list[Any], plain: Mapping[int, dict[str, Any]]) -> None:
        """Make Groups of plain dicts, whose values stand against those of the device."""
        mirror = self.mirror
        if mirror.device_states and capturing():
            raise RuntimeError(
                "The param groups were replaced since the last step, which a capture cannot take "
                "over; call optimizer.prepare() before the capture"
            )
        values = {number: dict(group) for number, group in plain.items()}
        mirror.refresh()
        for number, group in values.items():
            groups[number] = Group(group, mirror)

    def _restart(self, params: list[Tensor], sizes: list[int]) -> None:
        """Other params or groups: the tables start anew, from the state as it is."""
        mirror = self.mirror
        if mirror.captured:
            raise RuntimeError(f"The params or param groups changed, but {RELEASE}.")
        if mirror.device_states:
            mirror.refresh()
            show_state(mirror, self.keeper)
            mirror.leave_device_states()
        mirror.drop_cached_schedule()
        mirror.device_states.clear()
        self.params, self._sizes = params, sizes
        self._group_of = [number for number, size in enumerate(sizes) for _ in range(size)]

    # -- the device states -----------------------------------------------------------------------

    def devices(self) -> list[torch.device]:
        """Where the params lie."""
        self.adopt()
        return self._devices()

    def is_prepared(self) -> bool:
        """Whether every param that may get a gradient has its place in a table."""
        inside = {
            m.index
            for device_state in self.mirror.device_states.values()
            for m in device_state.table.rows
        }
        return all(i in inside for i, p in enumerate(self.params) if p.requires_grad)

    def fallbacks(self) -> dict[str, int]:
        """Why torch's own step updates params, each with their number."""
        self.adopt()
        self._devices()
        return self.fallback.foretold(self.params, self._moved)

    def _by_engine(
        self, everywhere: bool = False
    ) -> tuple[list[Tensor] | None, dict[torch.device, Any]]:
        """(params for the eager engine, None for all; engines of the other devices).

        Args:
            everywhere: look for what no kernel reads among the rows of the tables, too.
        """
        engines = {device: engine_for(device, self.mirror.rule) for device in self._devices()}
        planned = {d: e for d, e in engines.items() if e is not eager_engine}
        if not planned or self.fallback.takes_all:
            return None, {}
        odd = self.fallback.find(self.params, self._moved, everywhere)
        if len(planned) == len(engines) and not odd:
            return [], planned
        return [
            param
            for i, param in enumerate(self.params)
            if i in odd or local(param).device not in planned
        ], planned

    def _arranged(self) -> tuple[list[Tensor] | None, list[DeviceState], list[list[int]]]:
        """(params for the eager engine, None for all; device states; addresses of gradients)."""
        everywhere = False
        while True:
            eager, engines = self._by_engine(everywhere)
            self.fallback.refuse_capture()
            self._retire(engines)
            try:
                device_states = self._fitted(engines, everyone=False)
                return (
                    eager,
                    device_states,
                    [device_state.table.grad_addresses() for device_state in device_states],
                )
            except Unreadable:
                if everywhere:
                    raise
                everywhere = True

    def _devices(self) -> list[torch.device]:
        """Where the params lie; those of the tables, while all are in them, lie where they did."""
        device_states = self.mirror.device_states.values()
        self._moved = {
            index for device_state in device_states for index in device_state.table.moved()
        }
        known = sum(len(device_state.table.rows) for device_state in device_states)
        if known == len(self.params) and not self._moved:
            return [
                device_state.device for device_state in device_states if device_state.table.rows
            ]
        return list(dict.fromkeys(local(param).device for param in self.params))

    def _device_state(self, device: torch.device, engine: Any) -> DeviceState:
        mirror = self.mirror
        device_state = mirror.device_states.get(device)
        if device_state is None:
            name = type(mirror.optimizer).__name__
            refuse_capture(device, name, "nothing is allocated yet")
            device_state = DeviceState(device, engine, mirror.rule, name, len(self.params))
            mirror.device_states[device] = device_state
        device_state.engine = engine
        return device_state

    def _retire(self, devices: Container[torch.device]) -> None:
        """Let go of the device states of devices that no longer have params, or another engine."""
        mirror = self.mirror
        gone = [device for device in mirror.device_states if device not in devices]
        if gone:
            mirror.refuse_if_captured(f"Taking the params from {gone[0]} or its engine")
            mirror.refresh()
            show_state(mirror, self.keeper)
            mirror.leave_device_states()
            for device in gone:
                del mirror.device_states[device]

    def _fit(self, device_state: DeviceState, everyone: bool) -> None:
        """Make the param table hold every param that has a gradient (or could have one)."""
        rows = device_state.table.rows
        asked = self._states_asked() if rows else []
        gone = {m.index for m in rows if any(m.states[s] is None for s in asked[m.group])}
        gone |= self._moved
        gone |= {m.index for m in rows if m.index in self.fallback.why}
        if self.keeper.state_exposed and not capturing(device_state.device):
            gone |= take_changes(
                self.mirror, self.keeper, device_state, in_place=self.mirror.captured
            )
        complete = len(rows) == len(self.params) and not gone
        new = [] if complete else self._entering(device_state, gone, everyone)
        if new or gone:
            stay = {m.index: m for m in rows if m.index not in gone}
            self._rebuild(device_state, stay, new, gone)
        if device_state.buffer is None:
            device_state.refuse_capture("nothing is allocated yet")
            self.mirror.upload_into(device_state)

    def _entering(
        self, device_state: DeviceState, gone: Container[int], everyone: bool
    ) -> list[int]:
        """Params with a gradient (or ``everyone`` that can have one) without place in the table."""
        inside = {m.index for m in device_state.table.rows if m.index not in gone}
        return [
            i
            for i, param in enumerate(self.params)
            if i not in inside
            and i not in self.fallback.why
            and (param.grad is not None or (everyone and param.requires_grad))
            and local(param).device == device_state.device
        ]

    def _states_asked(self) -> list[list[int]]:
        """Per group, the states that each of its params must have, by slot."""
        mirror = self.mirror
        with mirror.suspend_sync():
            names = list(mirror.rule.states)
            groups = mirror.optimizer.param_groups
            return [[names.index(name) for name in mirror.state_names(g)] for g in groups]

    def _rebuild(
        self,
        device_state: DeviceState,
        rows: dict[int, ParamRow],
        new: Sequence[int],
        gone: Container[int],
    ) -> None:
        """Another table: ``rows`` stay, ``new`` params enter."""
        mirror = self.mirror
        mirror.drop_cached()
        what = f"param {new[0]}" if new else "a param"
        device_state.refuse_capture(f"{what} {'moved' if gone else 'has no state yet'}")
        if mirror.captured:
            raise RuntimeError(f"{what.capitalize()} entered or moved, but {RELEASE}.")
        mirror.refresh_clock()
        self.keeper.write_steps([device_state])
        for i in self.fallback.why:
            self.keeper.leave(self.params[i])
        groups = mirror.optimizer.param_groups
        for i in new:
            param, number = self.params[i], self._group_of[i]
            self._check(param, i)
            with mirror.suspend_sync():
                names = mirror.state_names(groups[number])
                rows[i] = self.keeper.row(param, i, number, groups[number], names)
            device_state.offsets[i] = device_state.clock - self.keeper.step_of(param)
        device_state.build_table([row for _, row in sorted(rows.items())])
        if device_state.buffer is not None:
            device_state.send_clock()

    def _check(self, param: Tensor, index: int) -> None:
        if param.grad is not None and local(param.grad).device != local(param).device:
            raise RuntimeError(
                f"Param {index} is on {local(param).device}, its gradient on "
                f"{local(param.grad).device}; call zero_grad() after moving a model"
            )

    # -- step, prepare, release ------------------------------------------------------------------

    def step(self) -> None:
        """Every param's update, and the fused schedules' advance."""
        with self.mirror.lock:
            if self._stepped or not self._first_step():
                self._full_step()

    def _first_step(self) -> bool:
        """Where the optimizer is new and ordinary: its step, without tables; else False."""
        if self.mirror.device_states:
            return False
        self.adopt()
        self._stepped = make_first_step(self.mirror, self.keeper, self.params, self._group_of)
        return self._stepped

    def _full_step(self) -> None:
        mirror = self.mirror
        mirror.settle()
        mirror.end_captures()
        optimizer = mirror.optimizer
        self.adopt()
        mirror.take_back()
        mirror.check_capture()
        mirror.check_end()
        eager, device_states, grads = self._arranged()
        scale = getattr(optimizer, "grad_scale", None)
        found_inf = getattr(optimizer, "found_inf", None)
        for device_state in device_states:
            device_state.load([(scale is not None, found_inf is not None)])
        scaled = found_inf is not None and bool(device_states)
        probe = self._is_probe()
        advance = None if probe else mirror.next_advance(scaled)
        moved = True
        if eager is None or eager:
            mirror.refresh()
            with mirror.suspend_sync():
                histories = [] if device_states else mirror.schedules.histories
                used = mirror.host_record() if histories else NO_TABLE
                shown = self.keeper.state_exposed
                moved = eager_engine.update(optimizer, eager)
                self.keeper.state_exposed = shown  # torch's step holds nothing of the state
                for history in histories if moved else ():
                    history.note(used, mirror.schedules.columns)
        mirror.read_lr_tensors()
        for device_state, addresses in zip(device_states, grads, strict=True):
            device_state.launch(
                addresses, _at(scale, device_state), _at(found_inf, device_state), advance
            )
            here = zip(device_state.table.rows, addresses, strict=True)
            self.keeper.publish(device_state, (row for row, address in here if address))
        if advance == layout.COUNTED and mirror.schedules.fused:
            mirror.write_lr_tensors()
        self._stepped = self._stepped or not probe
        if mirror.count(device_states, grads, moved, scaled, advance):
            # Somebody holds the dict, or a count of it, and may read it.
            (self.keeper.write_steps if self.keeper.state_exposed else self.keeper.write_held)(
                device_states
            )
        if advance == layout.STAY and not mirror.schedules.governed:
            mirror.step_intervals(moved if found_inf is None else not found_inf.item())
        if probe:
            mirror.upload()  # without the schedule the launch left one half of the record behind
            for history in mirror.schedules.histories:
                history.overlook()
        elif not eager and eager is not None:
            keep_step(mirror, self.keeper, self.params)

    def _is_probe(self) -> bool:
        """Whether the step is one of those by which torch's checkpoints fill an empty state.

        ``torch.distributed.checkpoint`` assigns lr 0 to every group, and gradients of zeros, and
        steps once; neither the params nor the schedule may move.
        """
        if not self.mirror.zeroed or self._stepped or self.keeper.state or capturing():
            return False
        if self.mirror.zeroed != {id(group) for group in self.mirror.optimizer.param_groups}:
            return False
        return not any(map(_pulls, self.params))

    def _fitted(self, engines: Mapping[torch.device, Any], everyone: bool) -> list[DeviceState]:
        """The device states of these devices, ready for a launch."""
        device_states = [self._device_state(device, engine) for device, engine in engines.items()]
        counts = self.keeper.counts
        if counts.held:
            self.keeper.state_exposed = self.keeper.state_exposed or counts.held_one_written()
            counts.look_who_holds(counts.held)
        for device_state in device_states:
            self._fit(device_state, everyone)
        if device_states and self.keeper.state_exposed and not capturing():
            self.keeper.state_exposed = is_held(self.keeper)
            if not self.keeper.state_exposed:
                counts.look_who_holds()
        return device_states

    def prepare(self, tables: bool = True, scaled: bool = True) -> None:
        """Allocate state and tables, load kernels: all that a first captured step needs.

        Args:
            tables: complete the schedules' tables, which calls users' functions ``horizon`` times.
            scaled: load the kernels for a GradScaler, too.
        """
        mirror = self.mirror
        if capturing():
            raise RuntimeError("prepare() allocates memory; call it before the capture")
        mirror.drop_cached()
        mirror.end_captures()
        self.adopt()
        mirror.refresh()
        _, engines = self._by_engine()
        self._retire(engines)
        mirror.schedules.own_programs(tabulate=tables)
        device_states = self._fitted(engines, everyone=True)
        mirror.upload()
        if tables and mirror.schedules.complete_tables():
            mirror.upload()
        for device_state in device_states:
            device_state.load(layout.SCALINGS if scaled else [layout.NO_SCALER])

    def load(self) -> None:
        """After ``load_state_dict``: the loaded values, into the addresses that there are."""
        mirror = self.mirror
        for device_state in mirror.device_states.values():
            device_state.join_stream()
            take_changes(mirror, self.keeper, device_state, in_place=True)
        mirror.upload()

    def release(self) -> None:
        """Forget the captures; every table may change again."""
        if capturing():
            raise RuntimeError("release_capture() cannot run while a CUDA graph is being captured")
        self.mirror.release()


def _at(scalar: Tensor | None, device_state: DeviceState) -> Tensor | None:
    """A scaler's tensor as the kernel reads it, on the device state's device."""
    if scalar is None or (scalar.device == device_state.device and scalar.dtype == torch.float32):
        return scalar
    return scalar.to(device_state.device, torch.float32, non_blocking=True)


def _pulls(param: Tensor) -> bool:
    """Whether a gradient has other values than 0; of shards nobody knows, for all must agree."""
    grad = param.grad
    return grad is not None and local(grad) is grad and (is_odd(grad) or bool(grad.any()))
