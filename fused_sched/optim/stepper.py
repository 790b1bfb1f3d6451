"""One optimizer step: adopt what changed, find the engines, launch."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Container, Iterable, Mapping, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_sched.engines import eager_engine, engine_for
from fused_sched.tables.local import SUPPORTED, local, real
from fused_sched.tables.params import Member, sparse_error
from fused_sched.tables.program import NO_TABLE

from .account import check_end, count, is_probe
from .changes import take_changes
from .group import Group
from .plan import RELEASE, Plan, capturing, refuse_capture

if TYPE_CHECKING:
    from .ledger import Ledger


class Stepper:
    """Keeps the plans of an optimizer in step with its params and groups."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = weakref.ref(ledger)
        self.params: list[Tensor] = []
        self._sizes: list[int] = []  # params of each group
        self._group_of: list[int] = []
        self._moved: set[int] = set()  # params that lie elsewhere than in the tables

    @property
    def ledger(self) -> Ledger:
        ledger = self._ledger()
        assert ledger is not None
        return ledger

    # -- the adopt pass --------------------------------------------------------------------------

    def adopt(self) -> None:
        """Take over what frameworks put in: plain groups, other params, other tensors."""
        ledger = self.ledger
        groups = ledger.optimizer.param_groups
        plain = {
            number: group
            for number, group in enumerate(groups)
            if type(group) is not Group or group.ledger is not ledger
        }
        if plain:
            self._wrap(groups, plain)
        params = [p for group in groups for p in dict.__getitem__(group, "params")]
        sizes = [len(dict.__getitem__(group, "params")) for group in groups]
        if sizes != self._sizes or not all(map(is_, params, self.params)):
            self._restart(params, sizes)
        elif plain and not ledger.hosting:
            ledger.upload()

    def _wrap(self, groups: list[Any], plain: Mapping[int, dict[str, Any]]) -> None:
        """Make Groups of plain dicts, whose values stand against those of the device."""
        ledger = self.ledger
        if ledger.plans and capturing():
            raise RuntimeError(
                "The param groups were replaced since the last step, which a capture cannot take "
                "over; call optimizer.prepare() before the capture"
            )
        values = {number: dict(group) for number, group in plain.items()}
        ledger.refresh()
        for number, group in values.items():
            groups[number] = Group(group, ledger)

    def _restart(self, params: list[Tensor], sizes: list[int]) -> None:
        """Other params or groups: the tables start anew, from the state as it is."""
        ledger = self.ledger
        if ledger.captured:
            raise RuntimeError(f"The params or param groups changed, but {RELEASE}.")
        if ledger.plans:
            ledger.refresh()
            ledger.show_state()
            ledger.leave_plans()
        ledger.lean.drop_schedule(ledger)
        ledger.plans.clear()
        self.params, self._sizes = params, sizes
        self._group_of = [number for number, size in enumerate(sizes) for _ in range(size)]

    # -- the plans -------------------------------------------------------------------------------

    def devices(self) -> list[torch.device]:
        """Where the params lie."""
        self.adopt()
        return self._devices()

    def is_prepared(self) -> bool:
        """Whether every param that may get a gradient has its place in a table."""
        inside = {m.index for plan in self.ledger.plans.values() for m in plan.table.members}
        return all(i in inside for i, p in enumerate(self.params) if p.requires_grad)

    def _by_engine(self) -> tuple[list[Tensor] | None, dict[torch.device, Any]]:
        """(params for the eager engine, None for all; engines of the other devices)."""
        engines = {device: engine_for(device) for device in self._devices()}
        planned = {d: e for d, e in engines.items() if e is not eager_engine}
        if not planned:
            return None, planned
        if len(planned) == len(engines):
            return [], planned
        return [p for p in self.params if local(p).device not in planned], planned

    def _devices(self) -> list[torch.device]:
        """Where the params lie; those of the tables, while all are in them, lie where they did."""
        plans = self.ledger.plans.values()
        self._moved = {index for plan in plans for index in plan.table.moved()}
        known = sum(len(plan.table.members) for plan in plans)
        if known == len(self.params) and not self._moved:
            return [plan.device for plan in plans if plan.table.members]
        return list(dict.fromkeys(local(param).device for param in self.params))

    def _plan(self, device: torch.device, engine: Any) -> Plan:
        ledger = self.ledger
        plan = ledger.plans.get(device)
        if plan is None:
            rules = type(ledger.optimizer)
            refuse_capture(device, rules.__name__, "nothing is allocated yet")
            plan = Plan(device, engine, rules._RULE, rules.__name__, len(self.params))
            ledger.plans[device] = plan
        plan.engine = engine
        return plan

    def _retire(self, devices: Container[torch.device]) -> None:
        """Let go of the plans of devices that no longer have params, or another engine."""
        ledger = self.ledger
        gone = [device for device in ledger.plans if device not in devices]
        if gone:
            ledger.refuse_if_captured(f"Taking the params from {gone[0]} or its engine")
            ledger.refresh()
            ledger.show_state()
            ledger.leave_plans()
            for device in gone:
                del ledger.plans[device]

    def _fit(self, plan: Plan, everyone: bool) -> None:
        """Make the plan's table hold every param that has a gradient (or could have one)."""
        slots = self._state_slots()
        members = plan.table.members
        gone = {m.index for m in members if len(m.states) < slots[m.group]}
        gone |= self._moved
        if self.ledger.keeper.shown and not capturing(plan.device):
            gone |= take_changes(self.ledger, plan, in_place=self.ledger.captured)
        complete = len(members) == len(self.params) and not gone
        new = [] if complete else self._entering(plan, gone, everyone)
        if new or gone:
            stay = {m.index: m for m in members if m.index not in gone}
            self._rebuild(plan, stay, new, gone)
        if plan.block is None:
            plan.refuse_capture("nothing is allocated yet")
            self.ledger.upload_into(plan)

    def _entering(self, plan: Plan, gone: Container[int], everyone: bool) -> list[int]:
        """Params with a gradient (or ``everyone`` that can have one) without place in the table."""
        inside = {m.index for m in plan.table.members if m.index not in gone}
        return [
            i
            for i, param in enumerate(self.params)
            if i not in inside
            and (param.grad is not None or (everyone and param.requires_grad))
            and local(param).device == plan.device
        ]

    def _state_slots(self) -> list[int]:
        """Per group, how many state tensors each of its params has."""
        ledger = self.ledger
        with ledger.host_only():
            groups = ledger.optimizer.param_groups
            return [len(ledger.state_names(group)) for group in groups]

    def _rebuild(
        self, plan: Plan, members: dict[int, Member], new: Sequence[int], gone: Container[int]
    ) -> None:
        """Another table: ``members`` stay, ``new`` params enter."""
        ledger = self.ledger
        ledger.drop_lean()
        keeper = ledger.keeper
        what = f"param {new[0]}" if new else "a param"
        plan.refuse_capture(f"{what} {'moved' if gone else 'has no state yet'}")
        if ledger.captured:
            raise RuntimeError(f"{what.capitalize()} entered or moved, but {RELEASE}.")
        ledger.refresh_clock()
        keeper.write_steps([plan])
        groups = ledger.optimizer.param_groups
        for i in new:
            param, number = self.params[i], self._group_of[i]
            self._check(param, i)
            with ledger.host_only():
                names = ledger.state_names(groups[number])
                members[i] = keeper.member(param, i, number, groups[number], names)
            plan.offsets[i] = plan.clock - keeper.step_of(param)
        plan.build_table([member for _, member in sorted(members.items())])
        if plan.block is not None:
            plan.send_clock()

    def _check(self, param: Tensor, index: int) -> None:
        dtype = real(local(param.detach())).dtype
        if dtype not in SUPPORTED:
            name = type(self.ledger.optimizer).__name__
            raise TypeError(
                f"fused_sched.optim.{name} updates float32, bfloat16, float16 and float64 (and "
                f"complex of these); param {index} is {dtype}. Give it to torch.optim.{name} in an "
                "optimizer of its own."
            )
        if param.grad is not None and local(param.grad).device != local(param).device:
            raise RuntimeError(
                f"Param {index} is on {local(param).device}, its gradient on "
                f"{local(param.grad).device}; call zero_grad() after moving a model"
            )

    def _check_layout(self, params: Iterable[Tensor] | None) -> None:
        """What the tables refuse, for the params of the eager engine."""
        chosen = self.params if params is None else params
        for param in chosen:
            if param.grad is not None and param.grad.layout != torch.strided:
                index = next(i for i, p in enumerate(self.params) if p is param)
                name = type(self.ledger.optimizer).__name__
                raise sparse_error(name, index, self._group_of[index])

    # -- step, prepare, release ------------------------------------------------------------------

    def step(self) -> None:
        """Every param's update, and the fused schedules' advance."""
        ledger = self.ledger
        ledger.lean.settle(ledger)
        optimizer = ledger.optimizer
        self.adopt()
        check_end(ledger)
        eager, engines = self._by_engine()
        self._retire(engines)
        scale = getattr(optimizer, "grad_scale", None)
        found_inf = getattr(optimizer, "found_inf", None)
        plans = self._fitted(engines, everyone=False)
        grads = [plan.table.grad_addresses() for plan in plans]
        for plan in plans:
            plan.load()
        self._check_layout(eager)
        advance = not is_probe(ledger)
        moved = True
        if eager is None or eager:
            ledger.refresh()
            with ledger.host_only():
                histories = [] if plans else ledger.schedules.histories
                used = ledger.host_record() if histories else NO_TABLE
                moved = eager_engine.update(optimizer, eager)
                for history in histories if moved else ():
                    history.note(used, ledger.schedules.columns)
        ledger.read_rates()
        for plan, addresses in zip(plans, grads, strict=True):
            plan.launch(addresses, _at(scale, plan), _at(found_inf, plan), advance)
            ledger.keeper.publish(
                m for m, address in zip(plan.table.members, addresses, strict=True) if address
            )
        if advance and ledger.schedules.fused:
            ledger.write_rates()
        scaled = found_inf is not None and bool(plans)
        count(ledger, plans, grads, moved, scaled, advance)
        if not advance:
            ledger.upload()  # without the schedule the launch left one half of the record behind
            for history in ledger.schedules.histories:
                history.overlook()
        elif not eager and eager is not None:
            ledger.lean.keep_step(ledger)

    def _fitted(self, engines: Mapping[torch.device, Any], everyone: bool) -> list[Plan]:
        """The plans of these devices, ready for a launch."""
        plans = [self._plan(device, engine) for device, engine in engines.items()]
        for plan in plans:
            self._fit(plan, everyone)
        keeper = self.ledger.keeper
        if plans and keeper.shown and not capturing():
            # Whoever holds the dict can change it at any time: attribute, argument, holder.
            keeper.shown = sys.getrefcount(keeper.state) > 2 or any(
                sys.getrefcount(entry) > 3 for entry in keeper.state.values()
            )
        return plans

    def prepare(self) -> None:
        """Allocate state and tables, load kernels: all that a first captured step needs."""
        ledger = self.ledger
        if capturing():
            raise RuntimeError("prepare() allocates memory; call it before the capture")
        ledger.drop_lean()
        self.adopt()
        ledger.refresh()
        _, engines = self._by_engine()
        self._retire(engines)
        ledger.schedules.own_programs(tabulate=True)
        plans = self._fitted(engines, everyone=True)
        ledger.upload()
        for plan in plans:
            plan.load()

    def load(self) -> None:
        """After ``load_state_dict``: the loaded values, into the addresses that there are."""
        ledger = self.ledger
        for plan in ledger.plans.values():
            plan.join_stream()
            take_changes(ledger, plan, in_place=True)
        ledger.upload()

    def release(self) -> None:
        """Forget the captures; every table may change again."""
        ledger = self.ledger
        if capturing():
            raise RuntimeError("release_capture() cannot run while a CUDA graph is being captured")
        ledger.refresh()
        ledger.refresh_clock()
        ledger.captured = False
        ledger.schedules.in_graphs.clear()
        for plan in ledger.plans.values():
            plan.captured_tables.clear()


def _at(scalar: Tensor | None, plan: Plan) -> Tensor | None:
    """A scaler's tensor as the kernel reads it, on the plan's device."""
    if scalar is None or (scalar.device == plan.device and scalar.dtype == torch.float32):
        return scalar
    return scalar.to(plan.device, torch.float32, non_blocking=True)
