"""The rings of a history: on the device, written by the launches themselves."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from fused_sched.tables import layout
from fused_sched.tables.program import Row

from .device_state import DeviceState


class Rings:
    """The last values of some columns: a slot per step, group and name."""

    def __init__(self, names: Sequence[str], capacity: int) -> None:
        self.capacity = capacity
        self.names = tuple(names)
        self.missed = 0
        self._device_state: weakref.ref[DeviceState] | None = None
        self._rings = torch.empty(0, device="cpu")  # [names, slots, groups]
        self._from = (
            0  # clock of the device state at the first step that was not taken from the rings
        )
        self._taken: list[Tensor] = []  # [steps, names, groups]
        self._drained = 0  # number of the first step in _taken

    def rows(self, columns: Sequence[str]) -> list[Row]:
        """The rows that write the rings; their addresses come with ``bind``."""
        at = (columns.index(name) for name in self.names)
        return [Row(layout.HISTORY, words={layout.COLUMN: column}) for column in at]

    def bind(self, device_state: DeviceState, groups: int) -> list[tuple[int, int]]:
        """(address, slots) of each row's ring, for the launches of a device_state."""
        if (
            self._device_state is None
            or self._device_state() is not device_state
            or self._rings.shape[-1] != groups
        ):
            # One slot more: the launch under way may be writing while another thread reads.
            shape = len(self.names), self.capacity + 1, groups
            rings = torch.zeros(shape, dtype=torch.float64, device=device_state.device)
            self.leave()
            self._rings, self._device_state, self._from = (
                rings,
                weakref.ref(device_state),
                device_state.clock,
            )
        return [(ring.data_ptr(), self.capacity + 1) for ring in self._rings]

    def overlook(self) -> None:
        """The last launch was a checkpoint's probe, which writes nothing."""
        device_state = None if self._device_state is None else self._device_state()
        if device_state is not None:
            self._from = device_state.clock

    def note(self, record: Tensor, columns: Sequence[str]) -> None:
        """A step of the eager engine, by the host's values: float64 [columns, groups]."""
        self.leave()
        self._keep(record[[columns.index(name) for name in self.names]][None])

    def drain(self, groups: int) -> tuple[int, Tensor]:
        """(number of the first step, values [steps, names, groups]) since the last drain."""
        self._take()
        values = self._joined(groups)
        self._taken.clear()
        first, self._drained = self._drained, self._drained + len(values)
        return first, values

    def _joined(self, groups: int) -> Tensor:
        """What was taken, [steps, names, groups]; the number of groups may have changed."""
        sizes = [len(part) for part in self._taken]
        widest = max([groups, *(part.shape[2] for part in self._taken)])
        shape = sum(sizes), len(self.names), widest
        values = torch.full(shape, torch.nan, dtype=torch.float64, device="cpu")
        for part, target in zip(self._taken, values.split(sizes)):
            target[:, :, : part.shape[2]] = part
        return values

    def leave(self) -> None:
        """Another device state writes from here on, or none."""
        self._take()
        self._device_state = None

    def _take(self) -> None:
        """What the ring holds of the steps that the device state's clock has counted."""
        device_state = None if self._device_state is None else self._device_state()
        if device_state is None:
            return
        if device_state.device.type == "cuda":  # launches may be on any stream
            torch.cuda.synchronize(device_state.device)
        clock = device_state.clock
        first = max(self._from, clock - self.capacity)
        self._skip(first - self._from)
        if clock > first:
            at = torch.arange(first, clock, device="cpu") % (self.capacity + 1)
            self._keep(self._rings.cpu()[:, at].transpose(0, 1))
        self._from = clock

    def _keep(self, values: Tensor) -> None:
        """Steps behind those that wait; no more than the capacity wait."""
        self._taken.append(values)
        while sum(map(len, self._taken)) > self.capacity:
            surplus = sum(map(len, self._taken)) - self.capacity
            oldest = self._taken.pop(0)
            if len(oldest) > surplus:
                self._taken.insert(0, oldest[surplus:])
            self._skip(min(len(oldest), surplus))

    def _skip(self, steps: int) -> None:
        self.missed += steps
        self._drained += steps
