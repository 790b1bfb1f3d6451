"""The schedules' programs on the host: how it catches up with the launches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_sched.engines import native_engine
from fused_sched.tables import layout
from fused_sched.tables.device_buffer import DeviceBuffer, numbers_of
from fused_sched.tables.program import Assembled

_CPU = torch.device("cpu")


class Replay:
    """A copy of what was sent to the devices, which the compiled engine advances.

    Some 20 ns a step and row, where torch's own code takes 15 microseconds.

    Attributes:
        moved: since the schedulers' positions were read from it.

    Args:
        record: float64 [columns, groups], as it was sent.
        programs: as they were sent.
    """

    def __init__(self, record: Tensor, programs: Sequence[Assembled]) -> None:
        self.moved = False
        columns, groups = record.shape
        rows = [program.ops.shape[0] for program in programs]
        aux = [program.aux.numel() for program in programs]
        self.buffer = DeviceBuffer(_CPU, columns, groups, 0, rows, aux)
        self.buffer.send_values(record, [(program.ops, program.lanes) for program in programs])
        for mine, program in zip(self.buffer.programs, programs, strict=True):
            mine.aux[: program.aux.numel()].copy_(program.aux)
            for row in program.histories:  # the launches have written theirs
                mine.ops[row, layout.AUX_LENGTH] = 0
        self._advances = [native_engine.advancer(self.buffer, p) for p in self.buffer.programs]
        self._values = numbers_of(self.buffer.record)
        self._overrun = self.buffer.clock[layout.OVERRUN]
        self._lanes = numbers_of(self.buffer.programs[0].lanes)
        self._groups = groups
        self._row_size, self._last = layout.LANE_WORDS * groups, layout.LAST * groups

    def advance(self, number: int, steps: int) -> None:
        """Make so many steps of program ``number``."""
        self._advances[number](steps)
        self.moved = True

    def shown(self) -> None:
        """The schedulers have its positions."""
        self.moved = False

    def overran(self) -> bool:
        """Whether a row has held its value, past its end."""
        return bool(self._overrun)

    def write(self, group: int, column: int, value: float) -> None:
        """A value that the user has assigned."""
        self.buffer.write(column, group, value)

    def send_record(self, record: Tensor) -> None:
        """Every value, [columns, groups]."""
        self.buffer.send_record(record)

    def column(self, number: int) -> list[float]:
        """The values of a column, one for each group."""
        return self._values[number * self._groups : (number + 1) * self._groups]

    def last(self, row: int) -> list[float]:
        """What a row of program 0 has set last, one value for each group."""
        return self._lanes[(at := self._last + row * self._row_size) : at + self._groups]

    @staticmethod
    def available() -> bool:
        """Whether the compiled engine is there."""
        return native_engine.unavailable(_CPU) is None
