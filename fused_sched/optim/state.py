"""``optimizer.state`` as torch has it, and its way into and out of the tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _get_scalar_dtype

from fused_sched.tables.local import is_dense, local, real, same_layout
from fused_sched.tables.params import Member

from .plan import Plan, capturing


class StateKeeper:
    """Owns ``optimizer.state`` and what is allocated before a first step may show it.

    Attributes:
        state: torch's ``{param: {"step": ..., "exp_avg": ...}}``.
        shown: somebody has read ``state`` since the last step and may have changed it.
    """

    def __init__(self, rules: Any) -> None:
        self._rules = rules
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        self.shown = False
        self._reserve: dict[Tensor, dict[str, Any]] = {}
        self._steps_seen: dict[int, tuple[Any, int]] = {}

    # -- in --------------------------------------------------------------------------------------

    def member(self, param: Tensor, index: int, group_number: int, group: dict[str, Any]) -> Member:
        """A row of the param table, with state as torch's first step would create it.

        Raises:
            ValueError: a state tensor has another shape than its param.
        """
        entry = self.state.get(param) or self._reserve.get(param)
        if not entry:
            entry = self._reserve[param] = self._new_entry(param, group)
        names = self._rules._state_names(group)
        states: list[Tensor | None] = [self._usable(param, entry, name) for name in names]
        dtypes = {state.dtype for state in states if state is not None}
        if len(dtypes) > 1:
            for name, state in zip(names, states, strict=True):
                assert state is not None
                entry[name] = state.to(torch.promote_types(*sorted(dtypes, key=str)[:2]))
            states = [entry[name] for name in names]
        return Member(param, index, group_number, states)

    def _new_entry(self, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        entry: dict[str, Any] = {}
        if self._rules._HAS_STEP:
            on_device = group.get("fused") or group.get("capturable")
            dtype = _get_scalar_dtype(is_fused=group.get("fused"))
            where = param.device if on_device else "cpu"
            entry["step"] = torch.zeros((), dtype=dtype, device=where)
        return entry

    def _usable(self, param: Tensor, entry: dict[str, Any], name: str) -> Tensor:
        state = entry.get(name)
        if state is None:
            state = torch.zeros_like(param, memory_format=torch.preserve_format)
        elif state.shape != param.shape:
            raise ValueError(
                f"State {name!r} has shape {tuple(state.shape)}, its param {tuple(param.shape)}; "
                "load a checkpoint of this model, or start with an empty state"
            )
        elif not self._addressable(param, state):
            fresh = torch.zeros_like(param, dtype=state.dtype, memory_format=torch.preserve_format)
            state = fresh.copy_(state)
        entry[name] = state.detach()
        return state

    def _addressable(self, param: Tensor, state: Tensor) -> bool:
        mine, dense = real(local(state)), real(local(param))
        if not is_dense(dense):
            dense = torch.empty_like(dense, device="meta")
        return state.device == param.device and same_layout(mine, dense)

    def step_of(self, param: Tensor) -> int:
        """Steps that the state has behind it; 0 means that its moments count as zero."""
        entry = self.state.get(param)
        if not entry:
            return 0
        if self._rules._HAS_STEP:
            return int(entry.get("step", 0))
        return int(any(isinstance(value, Tensor) for value in entry.values()))

    # -- out -------------------------------------------------------------------------------------

    def publish(self, members: Iterable[Member]) -> None:
        """Show the state of params that a step has now reached."""
        if not self._reserve:
            return
        for member in members:
            entry = self._reserve.pop(member.param, None)
            if entry is not None:
                self.state[member.param] = entry

    def show(self, plans: Iterable[Plan]) -> defaultdict[Tensor, dict[str, Any]]:
        """``optimizer.state`` with the step counts of now."""
        self.shown = True
        if not capturing():
            for plan in plans:
                self._write_steps(plan)
        return self.state

    def _write_steps(self, plan: Plan) -> None:
        hosted: list[tuple[Tensor, int]] = []
        for member in plan.table.members:
            entry = self.state.get(member.param)
            if not entry:
                continue
            step = plan.step_of(member)
            if not self._rules._HAS_STEP:
                self._show_first_step(entry, member, step)
                continue
            if entry["step"].device.type == "cpu":
                entry["step"].fill_(step)
            else:
                hosted.append((entry["step"], member.index))
            self._steps_seen[member.index] = (entry["step"], step)
        if hosted and plan.block is not None:
            steps = (plan.block.clock[0] - plan.block.offsets).to(torch.float32)
            torch._foreach_copy_([s for s, _ in hosted], [steps[i] for _, i in hosted])

    def _show_first_step(self, entry: dict[str, Any], member: Member, step: int) -> None:
        """Before its first step a momentum buffer is None, as stock torch's is."""
        for name, state in zip(self._rules._STATES, member.states, strict=False):
            entry[name] = state if step > 0 else None

    # -- changes by others -----------------------------------------------------------------------

    def changed_steps(self, plan: Plan) -> bool:
        """Take step counts that others wrote; True if any did."""
        changed = False
        for member in plan.table.members:
            entry = self.state.get(member.param)
            if self._rules._HAS_STEP and entry:
                seen = self._steps_seen.get(member.index)
                on_cpu = isinstance(entry["step"], Tensor) and entry["step"].device.type == "cpu"
                if seen is not None and seen[0] is entry["step"] and not on_cpu:
                    continue
                step = int(entry["step"])
            else:
                step = self.step_of(member.param)
                if not self._rules._HAS_STEP and step == int(plan.step_of(member) > 0):
                    continue
            if step != plan.step_of(member):
                plan.offsets[member.index] = plan.clock - step
                changed = True
        return changed

    def replaced(self, member: Member) -> bool:
        """Whether the state dict holds other tensors than the table."""
        if member.param in self._reserve:
            return False
        entry = self.state.get(member.param) or {}
        names = self._rules._STATES[: len(member.states)]
        return any(
            entry.get(name) is not state and not (entry.get(name) is None and "step" not in entry)
            for name, state in zip(names, member.states, strict=True)
            if state is not None
        )

    def take(self, given: dict[str, Any], groups: list[dict[str, Any]]) -> None:
        """The state of a checkpoint, every tensor in its own dtype.

        Raises:
            ValueError: a state tensor has another shape than its param.
        """
        state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        params = [(p, group) for group in groups for p in dict.__getitem__(group, "params")]
        numbers = [number for group in given["param_groups"] for number in group["params"]]
        of_number = dict(zip(numbers, params, strict=True))
        for key, entry in given["state"].items():
            if key in of_number:
                param, group = of_number[key]
                self._check_shapes(entry, param)
                on_device = dict.get(group, "fused") or dict.get(group, "capturable")
                state[param] = _copied(entry, param, host_step=not on_device)
            else:
                state[key] = entry
        self.state = state
        self.shown = True

    def _check_shapes(self, entry: dict[str, Any], param: Tensor) -> None:
        for name in self._rules._STATES:
            value = entry.get(name)
            if isinstance(value, Tensor) and value.shape != param.shape:
                raise ValueError(
                    f"The checkpoint's {name} has shape {tuple(value.shape)}, its param "
                    f"{tuple(param.shape)}; nothing was loaded"
                )

    def copy_in_place(self, member: Member) -> None:
        """Bring replaced tensors into the ones whose addresses a graph knows."""
        entry = self.state[member.param]
        for name, state in zip(self._rules._STATES, member.states, strict=False):
            if state is None:
                continue
            theirs = entry.get(name)
            if theirs is None:
                state.zero_()
            elif theirs is not state:
                state.copy_(theirs)
            entry[name] = state


def _copied(entry: dict[str, Any], param: Tensor, host_step: bool) -> dict[str, Any]:
    """A checkpoint's state of one param, on the param's device, each tensor in its own dtype."""
    copied: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "step":
            where = value.device if host_step and isinstance(value, Tensor) else param.device
            where = torch.device("cpu") if host_step and not isinstance(value, Tensor) else where
            copied[key] = torch.as_tensor(value, dtype=torch.float32).to(where, copy=True)
        elif isinstance(value, Tensor):
            copied[key] = value.detach().to(param.device, copy=True)
        else:
            copied[key] = deepcopy(value)
    return copied
