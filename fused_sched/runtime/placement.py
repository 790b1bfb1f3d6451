"""Which params stand in which device's table, and which are left to torch's own step."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from fused_sched.engines import eager_engine, engine_for
from fused_sched.tables.local import local
from fused_sched.tables.param_row import ParamRow, Unreadable

from .changes import show_state, take_changes
from .device_state import RELEASE, DeviceState, capturing, refuse_capture
from .fallback import Fallback
from .group import Group
from .mirror import Mirror
from .state import StateKeeper


class Placement:
    """Keeps the device states of an optimizer in step with its params and groups.

    Attributes:
        params: of every group, in their order.
        group_of: the number of each one's group.
    """

    def __init__(self, mirror: Mirror, keeper: StateKeeper) -> None:
        self._mirror = mirror
        self._keeper = keeper
        self._fallback = Fallback(mirror, keeper)
        self.params: list[Tensor] = []
        self.group_of: list[int] = []
        self._sizes: list[int] = []  # params of each group
        self._moved: set[int] = set()  # params that lie elsewhere than in the tables

    # -- the adopt pass --------------------------------------------------------------------------

    def adopt(self) -> None:
        """Take over what frameworks put in: plain groups, other params, other tensors."""
        mirror = self._mirror
        groups = mirror.host.optimizer.param_groups
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
        elif plain and not mirror.host.suspend_sync.is_entered:
            mirror.sender.upload()
            mirror.numbers.send()

    def _wrap(self, groups: list[Any], plain: Mapping[int, dict[str, Any]]) -> None:
        """Make Groups of plain dicts, whose values stand against those of the device."""
        mirror = self._mirror
        if mirror.host.device_states and capturing():
            raise RuntimeError(
                "The param groups were replaced since the last step, which a capture cannot take "
                "over; call optimizer.prepare() before the capture"
            )
        values = {number: dict(group) for number, group in plain.items()}
        mirror.refresh_group()
        for number, group in values.items():
            groups[number] = Group(group, mirror)

    def _restart(self, params: list[Tensor], sizes: list[int]) -> None:
        """Other params or groups: the tables start anew, from the state as it is."""
        mirror = self._mirror
        if mirror.account.captured:
            raise RuntimeError(f"The params or param groups changed, but {RELEASE}.")
        if mirror.host.device_states:
            mirror.refresh_group()
            show_state(mirror, self._keeper)
            mirror.sender.leave_devices()
        mirror.account.drop_cached_schedule()
        mirror.host.device_states.clear()
        self.params, self._sizes = params, sizes
        self.group_of = [number for number, size in enumerate(sizes) for _ in range(size)]

    # -- the device states -----------------------------------------------------------------------

    def devices(self) -> list[torch.device]:
        """Where the params lie."""
        self.adopt()
        return self._devices()

    def is_prepared(self) -> bool:
        """Whether every param that may get a gradient has its place in a table."""
        inside = {
            m.index
            for device_state in self._mirror.host.device_states.values()
            for m in device_state.table.rows
        }
        return all(i in inside for i, p in enumerate(self.params) if p.requires_grad)

    def fallbacks(self) -> dict[str, int]:
        """Why torch's own step updates params, each with their number."""
        self.adopt()
        self._devices()
        return self._fallback.foretold(self.params, self._moved)

    def by_engine(
        self, everywhere: bool = False
    ) -> tuple[list[Tensor] | None, dict[torch.device, Any]]:
        """(params for the eager engine, None for all; engines of the other devices).

        Args:
            everywhere: look for what no kernel reads among the rows of the tables, too.
        """
        engines = {device: engine_for(device, self._mirror.host.rule) for device in self._devices()}
        planned = {d: e for d, e in engines.items() if e is not eager_engine}
        if not planned or self._fallback.takes_all:
            return None, {}
        odd = self._fallback.find(self.params, self._moved, everywhere)
        if len(planned) == len(engines) and not odd:
            return [], planned
        return [
            param
            for i, param in enumerate(self.params)
            if i in odd or local(param).device not in planned
        ], planned

    def arranged(self) -> tuple[list[Tensor] | None, list[DeviceState], list[list[int]]]:
        """(params for the eager engine, None for all; device states; addresses of gradients)."""
        everywhere = False
        while True:
            eager, engines = self.by_engine(everywhere)
            self._fallback.refuse_capture()
            self.retire(engines)
            try:
                # A group's numbers go on where none of its params has a gradient yet, too.
                everyone = bool(self._mirror.numbers.names)
                device_states = self.fitted(engines, everyone)
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
        device_states = self._mirror.host.device_states.values()
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
        mirror = self._mirror
        device_state = mirror.host.device_states.get(device)
        if device_state is None:
            name = type(mirror.host.optimizer).__name__
            refuse_capture(device, name, "nothing is allocated yet")
            device_state = DeviceState(device, engine, mirror.host.rule, name, len(self.params))
            mirror.host.device_states[device] = device_state
        device_state.engine = engine
        return device_state

    def retire(self, devices: Container[torch.device]) -> None:
        """Drop the device states of devices that no longer have params, or have another engine."""
        mirror = self._mirror
        gone = [device for device in mirror.host.device_states if device not in devices]
        if gone:
            mirror.refuse_if_captured(f"Taking the params from {gone[0]} or its engine")
            mirror.refresh_group()
            show_state(mirror, self._keeper)
            mirror.sender.leave_devices()
            for device in gone:
                del mirror.host.device_states[device]

    def _fit(self, device_state: DeviceState, everyone: bool) -> None:
        """Make the param table hold every param that has a gradient (or could have one)."""
        rows = device_state.table.rows
        asked = self._states_asked() if rows else []
        gone = {m.index for m in rows for s in asked[m.group] if m.states[s] is None}
        gone |= self._moved
        gone |= {m.index for m in rows if m.index in self._fallback.why}
        if self._keeper.state_exposed and not capturing(device_state.device):
            gone |= take_changes(
                self._mirror, self._keeper, device_state, in_place=self._mirror.account.captured
            )
        complete = len(rows) == len(self.params) and not gone
        new = [] if complete else self._entering(device_state, gone, everyone)
        if new or gone:
            stay = {m.index: m for m in rows if m.index not in gone}
            self._rebuild(device_state, stay, new, gone)
        if device_state.buffer is None:
            device_state.refuse_capture("nothing is allocated yet")
            self._mirror.upload_into(device_state)

    def _entering(
        self, device_state: DeviceState, gone: Container[int], everyone: bool
    ) -> list[int]:
        """Params with a gradient (or ``everyone`` that can have one) without place in the table."""
        inside = {m.index for m in device_state.table.rows if m.index not in gone}
        return [
            i
            for i, param in enumerate(self.params)
            if i not in inside
            and i not in self._fallback.why
            and (param.grad is not None or (everyone and param.requires_grad))
            and local(param).device == device_state.device
        ]

    def _states_asked(self) -> list[list[int]]:
        """Per group, the states that each of its params must have, by slot."""
        mirror = self._mirror
        with mirror.host.suspend_sync:
            names = list(mirror.host.rule.states)
            groups = mirror.host.optimizer.param_groups
            return [[names.index(name) for name in mirror.host.state_names(g)] for g in groups]

    def _rebuild(
        self,
        device_state: DeviceState,
        rows: dict[int, ParamRow],
        new: Sequence[int],
        gone: Container[int],
    ) -> None:
        """Another table: ``rows`` stay, ``new`` params enter."""
        mirror = self._mirror
        mirror.account.drop_cached()
        what = f"param {new[0]}" if new else "a param"
        device_state.refuse_capture(f"{what} {'moved' if gone else 'has no state yet'}")
        if mirror.account.captured:
            raise RuntimeError(f"{what.capitalize()} entered or moved, but {RELEASE}.")
        mirror.account.refresh_clock()
        mirror.numbers.take()
        device_state.take_carried()
        self._keeper.write_steps([device_state])
        for i in self._fallback.why:
            self._keeper.leave(self.params[i])
        groups = mirror.host.optimizer.param_groups
        for i in new:
            param, number = self.params[i], self.group_of[i]
            self._check(param, i)
            with mirror.host.suspend_sync:
                names = mirror.host.state_names(groups[number])
                rows[i] = self._keeper.row(param, i, number, groups[number], names)
                carried = self._keeper.recurrences_of(param, groups[number])
                carried += mirror.numbers.of(groups[number])
            device_state.set_step(i, self._keeper.step_of(param))
            device_state.set_carried(i, carried)
        device_state.build_table([row for _, row in sorted(rows.items())])
        if device_state.buffer is not None:
            device_state.send_clock()

    def _check(self, param: Tensor, index: int) -> None:
        if param.grad is not None and local(param.grad).device != local(param).device:
            raise RuntimeError(
                f"Param {index} is on {local(param).device}, its gradient on "
                f"{local(param.grad).device}; call zero_grad() after moving a model"
            )

    def fitted(self, engines: Mapping[torch.device, Any], everyone: bool) -> list[DeviceState]:
        """The device states of these devices, ready for a launch."""
        device_states = [self._device_state(device, engine) for device, engine in engines.items()]
        self._keeper.look_at_held()
        for device_state in device_states:
            self._fit(device_state, everyone)
        if device_states and self._keeper.state_exposed and not capturing():
            self._keeper.look_who_holds()
        return device_states
