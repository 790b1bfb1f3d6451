"""One optimizer step: adopt what changed, find the engines, launch."""

from __future__ import annotations

import weakref
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_sched.engines import eager_engine, engine_for
from fused_sched.tables.local import SUPPORTED, local, real

from .group import Group
from .plan import Plan, capturing

if TYPE_CHECKING:
    from .ledger import Ledger

RELEASE = (
    "a captured graph uses the present tables. Call optimizer.release_capture() once its graphs "
    "are gone, then capture again"
)


class Stepper:
    """Keeps the plans of an optimizer in step with its params and groups."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = weakref.ref(ledger)
        self._params: list[Tensor] = []
        self._group_of: list[int] = []

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
        for number, group in enumerate(groups):
            if type(group) is not Group or group.ledger is not ledger:
                groups[number] = Group(dict(group), ledger)
                ledger.stale = True
        params = [p for group in groups for p in dict.__getitem__(group, "params")]
        sizes = [len(dict.__getitem__(group, "params")) for group in groups]
        group_of = [number for number, size in enumerate(sizes) for _ in range(size)]
        if group_of != self._group_of or not all(map(is_, params, self._params)):
            self._restart(params, group_of)

    def _restart(self, params: list[Tensor], group_of: list[int]) -> None:
        """Other params or groups: the tables start anew, from the state as it is."""
        ledger = self.ledger
        if ledger.captured:
            raise RuntimeError(f"The params or param groups changed, but {RELEASE}.")
        if ledger.plans:
            ledger.refresh()
            ledger.show_state()
        ledger.plans.clear()
        self._params, self._group_of = params, group_of

    # -- the plans -------------------------------------------------------------------------------

    def devices(self) -> list[torch.device]:
        """Where the params lie."""
        self.adopt()
        return list(dict.fromkeys(local(param).device for param in self._params))

    def is_prepared(self) -> bool:
        """Whether every param that may get a gradient has its place in a table."""
        inside = {i for plan in self.ledger.plans.values() for i in plan.members()}
        return all(i in inside for i, p in enumerate(self._params) if p.requires_grad)

    def _by_engine(self) -> tuple[list[Tensor] | None, dict[torch.device, Any]]:
        """(params for the eager engine, None for all; engines of the other devices)."""
        devices = dict.fromkeys(local(param).device for param in self._params)
        engines = {device: engine_for(device) for device in devices}
        planned = {d: e for d, e in engines.items() if e is not eager_engine}
        if not planned:
            return None, planned
        return [p for p in self._params if local(p).device not in planned], planned

    def _plan(self, device: torch.device, engine: Any) -> Plan:
        ledger = self.ledger
        plan = ledger.plans.get(device)
        if plan is None:
            rules = type(ledger.optimizer)
            plan = Plan(device, engine, rules._RULE, rules.__name__, len(self._params))
            ledger.plans[device] = plan
        plan.engine = engine
        return plan

    def _fit(self, plan: Plan, everyone: bool) -> None:
        """Make the plan's table hold every param that has a gradient (or could have one)."""
        ledger = self.ledger
        keeper = ledger.keeper
        members = plan.members()
        gone = [i for i, m in members.items() if m.moved]
        if keeper.shown and not capturing():
            gone += self._take_changed_state(plan)
        missing = [
            i
            for i, param in enumerate(self._params)
            if (i not in members or i in gone)
            and (param.grad is not None or (everyone and param.requires_grad))
            and local(param).device == plan.device
        ]
        if missing or gone:
            plan.need_table(missing)
            if ledger.captured:
                raise RuntimeError(f"Param {(missing or gone)[0]} entered or moved, but {RELEASE}.")
            ledger.refresh_clock()
            groups = ledger.optimizer.param_groups
            for i in missing:
                self._check(self._params[i], i)
                with ledger.host_only():
                    number = self._group_of[i]
                    members[i] = keeper.member(self._params[i], i, number, groups[number])
                plan.offsets[i] = plan.clock - keeper.step_of(self._params[i])
            here = [m for i, m in sorted(members.items()) if local(m.param).device == plan.device]
            plan.build_table(here)
            if plan.block is not None:
                plan.send_clock()
        if plan.block is None:
            plan.need_table([])
            ledger.upload_into(plan)

    def _check(self, param: Tensor, index: int) -> None:
        dtype = real(local(param.detach())).dtype
        if dtype not in SUPPORTED:
            name = type(self.ledger.optimizer).__name__
            raise TypeError(
                f"fused_sched.optim.{name} updates float32, bfloat16, float16 and float64 (and "
                f"complex of these); param {index} is {dtype}. Give it to torch.optim.{name} in an "
                "optimizer of its own."
            )

    def _take_changed_state(self, plan: Plan) -> list[int]:
        """After somebody held ``optimizer.state``: numbers of members whose tensors changed."""
        ledger = self.ledger
        keeper = ledger.keeper
        replaced = [m for m in plan.table.members if keeper.replaced(m)]
        if ledger.captured:
            for member in replaced:
                keeper.copy_in_place(member)
            replaced = []
        ledger.refresh_clock()
        if keeper.changed_steps(plan) and plan.block is not None:
            plan.send_clock()
        keeper.shown = False
        return [m.index for m in replaced]

    # -- step, prepare, release ------------------------------------------------------------------

    def step(self) -> None:
        """Every param's update, and the fused schedules' advance."""
        ledger = self.ledger
        optimizer = ledger.optimizer
        self.adopt()
        ledger.check_end()
        eager, engines = self._by_engine()
        scale = getattr(optimizer, "grad_scale", None)
        found_inf = getattr(optimizer, "found_inf", None)
        plans = [self._plan(device, engine) for device, engine in engines.items()]
        for plan in plans:
            self._fit(plan, everyone=False)
        if plans:
            ledger.settle()
        grads = [plan.table.grad_addresses() for plan in plans]
        for plan in plans:
            plan.load()
        moved = True
        if eager is None or eager:
            moved = eager_engine.update(optimizer, eager)
        ledger.read_tensors()
        for plan, addresses in zip(plans, grads, strict=True):
            plan.launch(addresses, _at(scale, plan), _at(found_inf, plan))
            ledger.keeper.publish(
                m for m, address in zip(plan.table.members, addresses, strict=True) if address
            )
        if ledger.schedules.fused:
            ledger.write_tensors()
        ledger.count(plans, grads, moved, scaled=found_inf is not None and bool(plans))

    def prepare(self) -> None:
        """Allocate state and tables, load kernels: all that a first captured step needs."""
        ledger = self.ledger
        if capturing():
            raise RuntimeError("prepare() allocates memory; call it before the capture")
        self.adopt()
        ledger.refresh()
        _, engines = self._by_engine()
        plans = [self._plan(device, engine) for device, engine in engines.items()]
        ledger.schedules.own_programs(tabulate=True)
        for plan in plans:
            self._fit(plan, everyone=True)
        ledger.upload()
        for plan in plans:
            plan.load()

    def load(self) -> None:
        """After ``load_state_dict``: the loaded values, into the addresses that there are."""
        ledger = self.ledger
        self.adopt()
        for plan in ledger.plans.values():
            for member in plan.table.members:
                if ledger.keeper.replaced(member):
                    ledger.keeper.copy_in_place(member)
            ledger.keeper.changed_steps(plan)
            if plan.block is not None:
                plan.send_clock()
        ledger.upload()

    def release(self) -> None:
        """Forget the captures; every table may change again."""
        self.ledger.refresh()
        self.ledger.refresh_clock()
        self.ledger.captured = False
        for plan in self.ledger.plans.values():
            plan.captured_tables.clear()


def _at(scalar: Tensor | None, plan: Plan) -> Tensor | None:
    """A scaler's tensor on the plan's device."""
    if scalar is None or scalar.device == plan.device:
        return scalar
    return scalar.to(plan.device, non_blocking=True)
