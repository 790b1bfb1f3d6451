"""A first step that puts the tables off: many an optimizer never needs any.

Where an optimizer has no schedule and only ordinary params on the CPU, its first step makes a
cached launch with memory of its own. The device states are built when something asks for them: a
read or a write of a param group, the state, a scheduler, a step that the cached launch declines. A
loop with one optimizer per param, stepped inside of ``backward()``, has hundreds of first steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from operator import is_
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _get_scalar_dtype

from fused_sched.engines import engine_for
from fused_sched.engines.choose import FORCED
from fused_sched.engines.native_first import FirstRow
from fused_sched.tables.local import SUPPORTED, new_state
from fused_sched.tables.param_row import ParamRow

from .cached_steps import launch_key
from .device_state import DeviceState
from .held import is_held
from .mirror import Mirror
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
    optimizer = mirror.host.optimizer
    if not _is_new(mirror, keeper, optimizer) or not all(map(_is_ordinary, params)):
        return False
    rule = mirror.host.rule
    engine = engine_for(_CPU, rule)
    numbers = [i for i, param in enumerate(params) if param.grad is not None]
    if not numbers or rule.carried or not hasattr(engine, "first_step"):
        return False
    groups = [dict(dict.items(group)) for group in optimizer.param_groups]
    starts = [
        {name: optimizer.initial_state(name, group) for name in rule.state_names(group)}
        for group in groups
    ]
    rows = [_row(params[i], i, group_of[i], starts[group_of[i]]) for i in numbers]
    values = [rule.encode(group) for group in groups]
    step = engine.first_step(optimizer, params, rows, values, rule, FORCED)
    if not step.update(optimizer):  # hooks and profiler have seen the step
        return False  # a gradient is none that it reads, or a scaler is at work
    keeper.conceal()
    mirror.account.cached.keep_launch(step)
    dtypes = [_get_scalar_dtype(is_fused=group.get("fused")) for group in groups]
    put_off = _PutOff(mirror, keeper, engine, params, rows, dtypes)
    mirror.host.put_device_states_off(put_off.build)
    return True


def _is_new(mirror: Mirror, keeper: StateKeeper, optimizer: Any) -> bool:
    """Whether nothing but the params and groups is there yet, and every lr is a number."""
    if (
        keeper.state
        or keeper.waiting
        or mirror.probe.may_come
        or not mirror.host.schedules.none_yet
    ):
        return False
    if optimizer.defaults.get("differentiable"):
        return False
    if any([isinstance(dict.__getitem__(g, "lr"), Tensor) for g in optimizer.param_groups]):
        return False  # what it holds is read before each launch
    return not (keeper.state_exposed and is_held(keeper))


def _is_ordinary(param: Tensor) -> bool:
    """Whether a kernel addresses a param as it is."""
    return (
        type(param) in _ORDINARY
        and param.is_cpu
        and param.dtype in SUPPORTED
        and param.layout is torch.strided
        and param.is_contiguous()
    )


def _row(param: Tensor, index: int, group: int, starts: Mapping[str, float]) -> FirstRow:
    named = {name: new_state(param, value) for name, value in starts.items()}
    return FirstRow(param, index, group, named, param.data_ptr(), param.shape, param.dtype)


class _PutOff:
    """What a first step found, to build the device states from."""

    def __init__(
        self,
        mirror: Mirror,
        keeper: StateKeeper,
        engine: ModuleType,
        params: Sequence[Tensor],
        rows: Sequence[FirstRow],
        step_dtypes: Sequence[torch.dtype],
    ) -> None:
        self._mirror = weakref.ref(mirror)  # which holds this
        self._keeper = keeper
        self._engine = engine
        self._params = params
        self._rows = rows
        self._step_dtypes = step_dtypes  # of the step counts, by group

    def build(self) -> None:
        """State and device state as full steps would have left them."""
        mirror = self._mirror()
        assert mirror is not None
        steps, missed = mirror.account.cached.take_steps()
        mirror.account.cached.drop_launch()
        for row in self._rows:
            self._show(mirror, row, steps - missed.get(row.index, 0))
        if self._is_in_place(mirror):  # else the next step begins with the state, as after a load
            self._build_device_state(mirror, steps, missed)

    def _show(self, mirror: Mirror, row: FirstRow, steps: int) -> None:
        entry = dict(row.states)
        if mirror.host.rule.counts_steps:
            step = torch.full((), steps, dtype=self._step_dtypes[row.group], device=_CPU)
            self._keeper.counts.note(row.param, step)
            entry = {"step": step, **entry}
        if entry:
            self._keeper.state[row.param] = entry

    def _is_in_place(self, mirror: Mirror) -> bool:
        """Whether params and groups are where the steps found them."""
        groups = mirror.host.optimizer.param_groups
        params = [param for group in groups for param in dict.__getitem__(group, "params")]
        return (
            all(getattr(group, "mirror", None) is mirror for group in groups)
            and len(params) == len(self._params)
            and all(map(is_, params, self._params))
            and all(map(_is_ordinary, params))
            and all(row.is_in_place() for row in self._rows)
        )

    def _build_device_state(self, mirror: Mirror, steps: int, missed: Mapping[int, int]) -> None:
        name = type(mirror.host.optimizer).__name__
        device_state = DeviceState(_CPU, self._engine, mirror.host.rule, name, len(self._params))
        device_state.count_steps(steps, missed)
        device_state.note_written()
        names = list(mirror.host.rule.states)
        device_state.build_table(
            [
                ParamRow(m.param, m.index, m.group, [m.states.get(name) for name in names])
                for m in self._rows
            ]
        )
        mirror.host.device_states[_CPU] = device_state
        mirror.upload_into(device_state)
        mirror.account.cached.note_key(launch_key(device_state, self._keeper))
