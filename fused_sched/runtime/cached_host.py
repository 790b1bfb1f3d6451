"""The cached launch of a schedule that asks users' functions: torch's recurrence, on the host."""

from __future__ import annotations

import weakref
from operator import is_
from typing import Any

from torch import Tensor

from fused_sched.tables import layout
from fused_sched.tables.device_buffer import DeviceBuffer, numbers_of

from .device_state import capturing
from .mirror import Mirror


class CachedHostStep:
    """Steps of the only scheduler of an optimizer whose buffer, if it has one, lies on the CPU.

    It does what torch's ``step()`` does, in the same order, past the scheduler's and the groups'
    own methods; whatever may have changed since the last full step is checked first.

    Args:
        scheduler: has ``_next_values``, which asks the functions.
    """

    def __init__(self, mirror: Mirror, scheduler: Any, buffer: DeviceBuffer | None) -> None:
        self._mirror = mirror
        self._scheduler = weakref.ref(scheduler)
        self._next_values = type(scheduler)._next_values
        self._list = mirror.host.optimizer.param_groups
        self._groups = tuple(self._list)
        self._columns = [] if buffer is None else _columns(buffer)
        self._buffer = buffer  # which owns the columns' memory

    def take(self) -> int:
        """Steps that the host has yet to make: none."""
        return 0

    def is_current(self) -> bool:
        """Whether the scheduler's attributes are current."""
        return not self._mirror.account.device_leads

    def step(self) -> bool:
        """True if the step was made."""
        mirror, scheduler = self._mirror, self._scheduler()
        if scheduler is None or mirror.host.suspend_sync.is_entered or capturing():
            return False
        with mirror.host.suspend_sync:
            attributes = scheduler.__dict__
            if not self._is_as_before(attributes):
                return False
            values = self._advance(attributes)
        more = self._columns and mirror.sender.written  # a function has assigned something
        if more or not all([isinstance(value, float) for value in values]):
            mirror.account.drop_cached_schedule()
            mirror.sender.follow(scheduler)
        else:
            for column in self._columns:
                column[:] = values
        return True

    def _is_as_before(self, attributes: dict[str, Any]) -> bool:
        groups, now = self._groups, self._mirror.host.optimizer.param_groups
        same = now is self._list and len(now) == len(groups) and all(map(is_, now, groups))
        calls = len(attributes["lr_lambdas"]) == len(groups)
        return same and calls and self.is_current()

    def _advance(self, attributes: dict[str, Any]) -> list[Any]:
        attributes["_step_count"] += 1
        attributes["_get_lr_called_within_step"] = True
        try:
            attributes["last_epoch"] += 1
            values = self._next_values(attributes, self._groups)
        finally:
            attributes["_get_lr_called_within_step"] = False
        for group, value in zip(self._groups, values, strict=True):
            dict.__setitem__(group, "lr", value)
        attributes["_last_lr"] = [v.clone() if isinstance(v, Tensor) else v for v in values]
        return values


def _columns(buffer: DeviceBuffer) -> list[Any]:
    """lr in both halves of the record, as arrays of one number for each group."""
    halves = buffer.record[:, layout.LR_COLUMN]
    return [numbers_of(half) for half in halves]
