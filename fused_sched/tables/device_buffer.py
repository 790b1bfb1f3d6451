"""The device buffer: clock, hyper record and schedule programs in one allocation.

One address for life: whatever a captured graph reads here survives loads, edits and new values.
The second part (record and programs) travels in one copy; the first (clock, offsets, recurrences)
belongs to the device and is written by the host only when tensors enter the table.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor

from . import layout

_ALIGN = 2  # int64 words: every field starts at a multiple of 16 bytes


def send(target: Tensor, source: Tensor) -> None:
    """Copy a CPU tensor into ``target``, on its device's current stream, without waiting."""
    if target.device.type != "cuda":
        target.copy_(source)
        return
    # A fresh page-locked tensor each time: the host runs ahead of the device, and the caching host
    # allocator keeps this one until the copy has been made.
    staged = torch.empty(source.shape, dtype=source.dtype, device="cpu", pin_memory=True)
    staged.copy_(source)
    target.copy_(staged, non_blocking=True)


def numbers_of(tensor: Tensor) -> Any:
    """A float64 CPU tensor's memory as an array: to read and write without a call into torch."""
    return (ctypes.c_double * tensor.numel()).from_address(tensor.data_ptr())


class Program:
    """The device form of one or more schedulers: ops, lanes and aux of one launch."""

    def __init__(self, ops: Tensor, lanes: Tensor, aux: Tensor) -> None:
        self.ops = ops  # int64 [rows, OP_WORDS], a view of the buffer
        self.lanes = lanes  # float64 [rows, LANE_WORDS, groups], a view of the buffer
        self.aux = aux  # float64, an allocation of its own
        self.rows = ops.shape[0]


@functools.cache
def _no_program(device: torch.device, groups: int) -> Program:
    """The program of no schedule, which no launch reads: the same object in every buffer."""
    return Program(
        torch.empty(0, layout.OP_WORDS, dtype=torch.int64, device=device),
        torch.empty(0, layout.LANE_WORDS, groups, dtype=torch.float64, device=device),
        torch.empty(1, dtype=torch.float64, device=device),
    )


class DeviceBuffer:
    """The device's copy of everything that changes while it trains.

    Args:
        device: where it lies.
        columns, groups: shape of the hyper record, float64 ``[2, columns, groups]``.
        params: number of params of the optimizer, each with an int64 offset.
        program_rows: rows of each schedule program.
        aux_sizes: float64 of each program's tables.
        recurrences: of the rule, float64 ``[2, recurrences, params]``: a launch reads the half of
            the clock's parity and writes the other one.
    """

    def __init__(
        self,
        device: torch.device,
        columns: int,
        groups: int,
        params: int,
        program_rows: Sequence[int],
        aux_sizes: Sequence[int],
        recurrences: int = 0,
    ) -> None:
        self.device = device
        own = [layout.CLOCK_WORDS, params, 2 * recurrences * params]
        fields = [*own, 2 * columns * groups]
        for rows in filter(None, program_rows):
            fields += [rows * layout.OP_WORDS, rows * layout.LANE_WORDS * groups]
        padded = [-(-max(size, 1) // _ALIGN) * _ALIGN for size in fields]
        self.memory = memory = torch.zeros(sum(padded), dtype=torch.int64, device=device)
        starts = accumulate(padded, initial=0)

        def field(size: int) -> Tensor:
            start = next(starts)
            return memory[start : start + size]

        self.clock = field(layout.CLOCK_WORDS)
        self.offsets = field(params)
        carried = field(2 * recurrences * params).view(torch.float64)
        self.recurrences = carried.view(2, recurrences, params)
        self._values_start = sum(padded[: len(own)])
        self._padded = padded[len(own) :]
        record = field(2 * columns * groups).view(torch.float64)
        self.record = record.view(2, columns, groups)
        self.programs = [
            self._program(field, rows, size, groups) if rows else _no_program(device, groups)
            for rows, size in zip(program_rows, aux_sizes, strict=True)
        ]

    def _program(self, field: Callable[[int], Tensor], rows: int, aux: int, groups: int) -> Program:
        lanes = rows, layout.LANE_WORDS, groups
        return Program(
            field(rows * layout.OP_WORDS).view(rows, layout.OP_WORDS),
            field(prod(lanes)).view(torch.float64).view(lanes),
            torch.zeros(max(aux, 1), dtype=torch.float64, device=self.device),
        )

    def tensors(self) -> Iterator[Tensor]:
        """Its allocations."""
        yield self.memory
        yield from (program.aux for program in self.programs)

    def send_values(self, record: Tensor, programs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Write both halves of the record and every program's rows, on a GPU in one copy.

        Args:
            record: float64 ``[columns, groups]``.
            programs: (ops, lanes) of each program, in the buffer's order.
        """
        if self.device.type == "cpu":
            self.record.copy_(record)
            for program, (ops, lanes) in zip(self.programs, programs, strict=True):
                if program.rows:
                    program.ops.copy_(ops)
                    program.lanes.copy_(lanes)
            return
        fields = [torch.stack((record, record)).view(torch.int64)]
        for ops, lanes in programs:
            if ops.shape[0]:
                fields += [ops, lanes.view(torch.int64)]
        host = torch.zeros(sum(self._padded), dtype=torch.int64, device="cpu")
        for part, value in zip(host.split(self._padded), fields, strict=True):
            part[: value.numel()].copy_(value.reshape(-1))
        send(self.memory[self._values_start :], host)

    def send_record(self, record: Tensor) -> None:
        """Write both halves of the record, from float64 ``[columns, groups]``."""
        send(self.record, torch.stack((record, record)))

    def write(self, column: int, group: int, value: float) -> None:
        """One hyperparameter into both halves, its value riding in the launch's arguments."""
        self.record[:, column, group].fill_(value)

    def write_column(self, column: int, values: Sequence[float]) -> None:
        """A column of a CPU's buffer, one value for each group, into both halves."""
        columns, groups = self.record.shape[1:]
        numbers = numbers_of(self.record)
        for start in (column * groups, (columns + column) * groups):
            numbers[start : start + groups] = values

    def fetch(self) -> DeviceBuffer:
        """A copy of the buffer on the host: waits for the device."""
        if self.device.type == "cuda":
            # Graphs are replayed on streams that the host never sees.
            torch.cuda.synchronize(self.device)
        return self.on_host(self.memory.cpu())

    def on_host(self, memory: Tensor) -> DeviceBuffer:
        """This buffer's fields over a CPU copy of its memory."""
        host = object.__new__(DeviceBuffer)
        shift = memory.as_strided

        def over(view: Tensor) -> Tensor:
            words = shift(view.size(), view.stride(), view.storage_offset())
            return words.view(torch.float64) if view.dtype == torch.float64 else words

        host.device = memory.device
        host.memory = memory
        host.clock, host.offsets = over(self.clock), over(self.offsets)
        host.record = over(self.record)
        host.recurrences = over(self.recurrences)
        host.programs = [Program(over(p.ops), over(p.lanes), p.aux) for p in self.programs]
        return host
