"""What schedules have set, read from a buffer that lies on this CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Container, Sequence
from typing import Any

from fused_sched.rules.numbers import keep_ints
from fused_sched.tables import layout
from fused_sched.tables.device_buffer import DeviceBuffer, numbers_of
from fused_sched.tables.program import Assembled

_Group = Callable[[], dict[str, Any] | None]


class View:
    """Some ten Python calls a read, where making the steps again takes three times as many.

    Args:
        groups: references to the param groups, in their order.
        columns: (name, number) of those that schedules move.
        programs: as the buffer has them.
        simple: ids of the schedulers that step by themselves and have no other inside.
    """

    def __init__(
        self,
        buffer: DeviceBuffer,
        groups: Sequence[_Group],
        columns: Sequence[tuple[str, int]],
        programs: Sequence[Assembled],
        simple: Container[int],
    ) -> None:
        count = buffer.record.shape[2]
        self.buffer = buffer
        self._groups = groups
        self._record = numbers_of(buffer.record)
        self._half = buffer.record[0].numel()
        self._columns = [(name, number * count) for name, number in columns]
        self._clock = ctypes.c_int64.from_address(buffer.clock.data_ptr())
        self._rows: dict[int, tuple[Any, str]] = {}  # by a scheduler's id: what it set last
        for program, assembled in zip(buffer.programs, programs, strict=True):
            for source in assembled.sources:
                scheduler = source.scheduler()
                if scheduler is not None and id(scheduler) in simple and not source.ahead:
                    last = numbers_of(program.lanes[source.row, layout.LAST])
                    self._rows[id(scheduler)] = last, scheduler.hyper

    def show(self, decode: Callable[..., None]) -> None:
        """Put the current half of the record into the groups.

        Args:
            decode: puts one value into a group, by its column's name.
        """
        start = (self._clock.value & 1) * self._half
        for name, place in self._columns:
            for at, reference in enumerate(self._groups, start + place):
                group, value = reference(), self._record[at]
                if group is None:  # one that was replaced is gone
                    continue
                here = dict.get(group, name)
                if type(here) is not float or here != value:
                    decode(group, name, value)

    def last(self, scheduler: Any) -> list[Any] | None:
        """What a scheduler has set last; None where its attributes must be looked at."""
        row = self._rows.get(id(scheduler))
        if row is None:
            return None
        values, name = row
        return keep_ints(values[:], [reference() for reference in self._groups], name)
