"""What a lean step looks at while somebody holds ``optimizer.state``, and may read or change it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fused_sched.tables.params import Member

from .state import StateKeeper


def can_watch(keeper: StateKeeper, members: Iterable[Member]) -> bool:
    """Whether lean steps can keep every step count that is shown current: each lies on the CPU."""
    counts = (keeper.look(member)[1] for member in members)
    return all(noted is None or _is_plain(noted.step) for noted in counts)


def _is_plain(step: Any) -> bool:
    if type(step) is not Tensor or step.device.type != "cpu" or step.dim() != 0:
        return False
    return step.dtype in (torch.float32, torch.float64)


def watch(lean: Any, keeper: StateKeeper, members: Iterable[Member]) -> None:
    """Let a lean step look at the state, and count in it."""
    lean.watch(vars(keeper), tuple(_row(keeper, member) for member in members))


def _row(keeper: StateKeeper, member: Member) -> tuple[Any, ...]:
    """A row of ``ShownState::note`` in csrc/lean_state.h."""
    tensors, noted = keeper.look(member)
    value = None if noted is None else noted.value
    address = 0 if value is None else value.buffer_info()[0]
    return member.param, tuple(tensors), tuple(tensors.values()), noted, value, address
