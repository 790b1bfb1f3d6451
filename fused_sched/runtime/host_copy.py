"""What the devices have got, kept on the host: the compiled engine makes their steps again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fused_sched.tables.device_buffer import DeviceBuffer
from fused_sched.tables.program import Assembled

from .device_state import DeviceState
from .replay import Replay
from .schedules import Schedules
from .view import View


def _reference(group: dict[str, Any]) -> Callable[[], dict[str, Any] | None]:
    """A group, without holding what refers back to the mirror; a plain dict refers to nothing."""
    return (lambda: group) if type(group) is dict else weakref.ref(group)


class HostCopy:
    """How the host catches up with launches that advanced the schedules, without asking a device.

    The groups' values come first; the schedulers' own attributes stay ``behind`` until they are
    read.

    Attributes:
        readable: the only buffer, if it lies on this CPU.
    """

    def __init__(self, schedules: Schedules) -> None:
        self.readable: DeviceBuffer | None = None
        self._schedules = schedules
        self._record: Tensor | None = None  # [columns, groups], as it was sent
        self._programs: Sequence[Assembled] = ()
        self._replay: Replay | None = None
        self._groups: list[Callable[[], dict[str, Any] | None]] = []
        self._columns: list[tuple[str, int]] = []  # (name, number) of those that schedules move
        self._view: View | None = None
        self._rows: dict[int, int] = {}  # of fused schedulers that are no composites, by their id

    # -- what was sent ---------------------------------------------------------------------------

    def take(
        self,
        record: Tensor,
        programs: Sequence[Assembled],
        groups: Iterable[dict[str, Any]],
        device_states: Sequence[DeviceState],
    ) -> None:
        """Everything was sent to these devices, if there are any.

        Args:
            groups: the ones whose values the record holds, in their order.
        """
        self._record, self._programs, self._replay = None, programs, None
        if device_states:
            self._record = record
        on_cpu = len(device_states) == 1 and device_states[0].device.type == "cpu"
        self.readable = device_states[0].buffer if on_cpu else None
        self._groups = [_reference(group) for group in groups]
        names = dict.fromkeys(name for program in programs for name in program.columns)
        self._columns = [(name, self._schedules.columns.index(name)) for name in names]
        fused = self._schedules.fused if self._schedules.governed else ()
        simple = {id(one.scheduler) for one in fused if not one.scheduler._children()}
        sources = ((id(source.scheduler()), source.row) for source in programs[0].sources)
        self._rows = {key: row for key, row in sources if key in simple}
        self._view = None

    def view(self, buffer: DeviceBuffer) -> View:
        """What a buffer on this CPU holds, as it was sent last."""
        if self._view is None or self._view.buffer is not buffer:
            roots = [one for one in self._schedules.roots() if not one._children()]
            simple = {id(one) for one in roots}
            self._view = View(buffer, self._groups, self._columns, self._programs, simple)
        return self._view

    def forget(self) -> None:
        """The devices have got something that is not known here."""
        self._record = self._replay = None

    def leave(self) -> None:
        """The devices go."""
        self.readable = None
        self.forget()

    def take_record(self, record: Tensor) -> None:
        """Every value was sent, and no schedule's position."""
        if self._record is not None:
            self._record = record
        if self._replay is not None:
            self._replay.send_record(record)

    def write(self, group: int, values: Mapping[int, float]) -> None:
        """One group's values were sent, by column."""
        for column, value in values.items():
            if self._record is not None:
                self._record[column, group] = value
            if self._replay is not None:
                self._replay.write(group, column, value)

    # -- the steps again -------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether the compiled engine can make the steps that the devices have made."""
        if self._replay is None and self._record is not None and Replay.available():
            sources = [source for program in self._programs for source in program.sources]
            if not any(source.ahead for source in sources):
                self._replay = Replay(self._record, self._programs)
        return self._replay is not None

    def advance(self, number: int, steps: int) -> None:
        """Make so many steps of program ``number``."""
        assert self._replay is not None
        self._replay.advance(number, steps)

    @property
    def behind(self) -> bool:
        """Whether the steps made here are yet to be shown by the schedulers."""
        return self._replay is not None and self._replay.moved

    def overran(self) -> bool:
        """Whether a schedule was advanced past its end."""
        return self._replay is not None and self._replay.overran()

    def show_values(self, decode: Callable[..., None]) -> None:
        """Put the values that it has come to into the groups."""
        assert self._replay is not None
        self.put_values(decode, self._replay.column)

    def put_values(
        self, decode: Callable[..., None], values_of: Callable[[int], Sequence[float]]
    ) -> None:
        """Put the scheduled columns into the groups, as Python floats.

        Args:
            decode: puts one value into a group, by its column's name.
            values_of: a column's number -> its values, by group.
        """
        groups = [reference() for reference in self._groups]
        for name, number in self._columns:
            for group, value in zip(groups, values_of(number)):
                if group is not None:  # one that was replaced is gone
                    decode(group, name, value)

    def show_positions(self) -> None:
        """Bring the schedulers up to date; on the host's account."""
        if self._replay is not None:
            self._replay.shown()
            self._schedules.read_back(self._replay.buffer, self._programs)

    def last_values(self, scheduler: Any) -> list[float] | None:
        """What a scheduler that is behind has set last; None for one that is not, or not simple."""
        row = self._rows.get(id(scheduler))
        if row is None or not self.behind or self._replay is None:
            return None
        return self._replay.last(row)
