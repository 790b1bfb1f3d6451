"""A first step that puts the tables off: many an optimizer never needs any.

Where an optimizer has no schedule and only ordinary params on the CPU, its first step makes a lean
step with memory of its own. The plans are built when something asks for them: a read or a write of
a param group, the state, a scheduler, a step that the lean one declines. Who gives each param an
optimizer of its own, to step it inside of ``backward()``, has hundreds of first steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _get_scalar_dtype

from fused_sched.engines import engine_for
from fused_sched.engines.choose import FORCED
from fused_sched.engines.native_first import FirstMember
from fused_sched.tables.local import SUPPORTED, new_state
from fused_sched.tables.params import Member

from .held import is_held
from .lean_steps import found_by
from .mirror import Mirror
from .plan import Plan
from .state import StateKeeper

_CPU = torch.device("cpu")
_ORDINARY = (torch.nn.Parameter, Tensor)


def make_first_step(
    mirror: Mirror, keeper: StateKeeper, params: Sequence[Tensor], group_of: Sequence[int]
) -> bool:
    """The first step of a new and ordinary optimizer; False, with nothing done, of any other.

    Args:
        params: of every group, in their order.
        group_of: the number of each one's group.
    """
    optimizer = mirror.optimizer
    if not _is_new(mirror, keeper, optimizer) or not all(map(_is_ordinary, params)):
        return False
    rule = mirror.rule
    engine = engine_for(_CPU, rule)
    numbers = [i for i, param in enumerate(params) if param.grad is not None]
    if not numbers or not hasattr(engine, "first_step"):
        return False
    groups = [dict(dict.items(group)) for group in optimizer.param_groups]
    starts = [
        {name: optimizer.initial_state(name, group) for name in rule.state_names(group)}
        for group in groups
    ]
    members = [_member(params[i], i, group_of[i], starts[group_of[i]]) for i in numbers]
    values = [rule.encode(group) for group in groups]
    step = engine.first_step(optimizer, params, members, values, rule, FORCED)
    if not step.update(optimizer):  # hooks and profiler have been told
        return False  # a gradient is none that it reads, or a scaler is at work
    keeper.shown = False
    mirror.lean.keep_step(step)
    dtypes = [_get_scalar_dtype(is_fused=group.get("fused")) for group in groups]
    mirror.put_plans_off(_PutOff(keeper, engine, params, members, dtypes).build)
    return True


def _is_new(mirror: Mirror, keeper: StateKeeper, optimizer: Any) -> bool:
    """Whether nothing but the params and groups is there yet, and every lr is a number."""
    if keeper.state or keeper.waiting or mirror.zeroed or not mirror.schedules.none_yet:
        return False
    if optimizer.defaults.get("differentiable"):
        return False
    if any([isinstance(dict.__getitem__(g, "lr"), Tensor) for g in optimizer.param_groups]):
        return False  # what it holds is read before each launch
    return not (keeper.shown and is_held(keeper))


def _is_ordinary(param: Tensor) -> bool:
    """Whether a kernel addresses a param as it is."""
    return (
        type(param) in _ORDINARY
        and param.is_cpu
        and param.dtype in SUPPORTED
        and param.layout is torch.strided
        and param.is_contiguous()
    )


def _member(param: Tensor, index: int, group: int, starts: Mapping[str, float]) -> FirstMember:
    named = {name: new_state(param, value) for name, value in starts.items()}
    return FirstMember(param, index, group, named, param.data_ptr(), param.shape, param.dtype)


class _PutOff:
    """What a first step found, to build the plans from."""

    def __init__(
        self,
        keeper: StateKeeper,
        engine: ModuleType,
        params: Sequence[Tensor],
        members: Sequence[FirstMember],
        step_dtypes: Sequence[torch.dtype],
    ) -> None:
        self._keeper = keeper
        self._engine = engine
        self._params = params
        self._members = members
        self._step_dtypes = step_dtypes  # of the step counts, by group

    def build(self, mirror: Mirror) -> None:
        """State and plan as whole steps would have left them."""
        steps, missed = mirror.lean.take_steps()
        mirror.lean.drop_step()
        for member in self._members:
            self._show(mirror, member, steps - missed.get(member.index, 0))
        if self._is_in_place(mirror):  # else the next step begins with the state, as after a load
            self._build_plan(mirror, steps, missed)

    def _show(self, mirror: Mirror, member: FirstMember, steps: int) -> None:
        entry = dict(member.states)
        if mirror.rule.counts_steps:
            step = torch.full((), steps, dtype=self._step_dtypes[member.group], device=_CPU)
            self._keeper.counts.note(member.param, step)
            entry = {"step": step, **entry}
        if entry:
            self._keeper.state[member.param] = entry

    def _is_in_place(self, mirror: Mirror) -> bool:
        """Whether params and groups are where the steps found them."""
        groups = mirror.optimizer.param_groups
        params = [param for group in groups for param in dict.__getitem__(group, "params")]
        return (
            all(getattr(group, "mirror", None) is mirror for group in groups)
            and len(params) == len(self._params)
            and all(map(is_, params, self._params))
            and all(map(_is_ordinary, params))
            and all(member.is_in_place() for member in self._members)
        )

    def _build_plan(self, mirror: Mirror, steps: int, missed: Mapping[int, int]) -> None:
        name = type(mirror.optimizer).__name__
        plan = Plan(_CPU, self._engine, mirror.rule, name, len(self._params))
        plan.clock = plan.shown_clock = steps
        for index, number in missed.items():
            plan.offsets[index] = number
        names = list(mirror.rule.states)
        plan.build_table(
            [
                Member(m.param, m.index, m.group, [m.states.get(name) for name in names])
                for m in self._members
            ]
        )
        mirror.plans[_CPU] = plan
        mirror.upload_into(plan)
        mirror.lean.made_for = found_by(plan, self._keeper)
