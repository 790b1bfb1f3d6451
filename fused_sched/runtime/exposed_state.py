"""What a cached launch checks while user code holds ``optimizer.state`` and may change it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fused_sched.tables.param_row import ParamRow

from .state import StateKeeper


def can_watch(keeper: StateKeeper, rows: Iterable[ParamRow]) -> bool:
    """Whether cached launches can write all numbers that are visible: step counts on the CPU."""
    if keeper.recurrences.names:
        return False
    counts = (keeper.look(row)[1] for row in rows)
    return all(noted is None or _is_plain(noted.step) for noted in counts)


def _is_plain(step: Any) -> bool:
    if type(step) is not Tensor or step.device.type != "cpu" or step.dim() != 0:
        return False
    return step.dtype in (torch.float32, torch.float64)


def watch(cached: Any, keeper: StateKeeper, rows: Iterable[ParamRow]) -> None:
    """Let a cached launch look at the state, and count in it."""
    cached.watch(vars(keeper), tuple(_row(keeper, row) for row in rows))


def _row(keeper: StateKeeper, row: ParamRow) -> tuple[Any, ...]:
    """A row of ``ExposedState::note`` in csrc/cached_state.h."""
    tensors, noted = keeper.look(row)
    value = None if noted is None else noted.value
    address = 0 if value is None else value.buffer_info()[0]
    return row.param, tuple(tensors), tuple(tensors.values()), noted, value, address
