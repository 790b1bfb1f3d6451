"""What the launches used: a ring on the device, written by the launch itself, read on demand."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fused_sched.tables import layout
from fused_sched.tables.program import Row

from .plan import Plan, capturing

if TYPE_CHECKING:
    from .ledger import Ledger


class History:
    """The values that the last steps used, kept without a sync, also by replays of a graph.

    Made by ``scheduler.history(capacity)``. Each optimizer step that is made writes one entry: a
    step that a GradScaler stops writes none. The host reads only in ``drain()``.

    Attributes:
        capacity: steps that the ring holds, 8 bytes per step, group and name.
        names: of the hyperparameters kept: ``"lr"``, and ``"momentum"`` or ``"beta1"`` where the
            schedule cycles it.
        missed: steps whose values were overwritten before a ``drain()``.
    """

    def __init__(self, ledger: Ledger, names: Sequence[str], capacity: int) -> None:
        self.capacity = capacity
        self.names = tuple(names)
        self.missed = 0
        self._ledger = weakref.ref(ledger)
        self._plan: Plan | None = None
        self._rings = torch.empty(0)
        self._from = 0  # clock of the plan at the first step that has not been taken
        self._taken: list[Tensor] = []  # [steps, names, groups]
        self._drained = 0

    # -- the launch's side -----------------------------------------------------------------------

    def rows(self, columns: Sequence[str]) -> list[Row]:
        """The rows that write the rings; their addresses come with ``bind``."""
        at = (columns.index(name) for name in self.names)
        return [Row(layout.HISTORY, words={layout.COLUMN: column}) for column in at]

    def bind(self, plan: Plan, groups: int) -> list[tuple[int, int]]:
        """(address, capacity) of each row's ring, for the launches of a plan."""
        if plan is not self._plan or self._rings.shape[-1] != groups:
            self._leave()
            shape = len(self.names), self.capacity, groups
            self._rings = torch.zeros(shape, dtype=torch.float64, device=plan.device)
            self._plan, self._from = plan, plan.clock
        return [(ring.data_ptr(), self.capacity) for ring in self._rings]

    def note(self, record: Tensor, columns: Sequence[str]) -> None:
        """A step of the eager engine, by the host's values: float64 [columns, groups]."""
        self._leave()
        self._keep(record[[columns.index(name) for name in self.names]][None])

    # -- the reader's side -----------------------------------------------------------------------

    def drain(self) -> dict[str, Tensor]:
        """What the steps since the last ``drain()`` used, the last ``capacity`` of them.

        Waits for the device, once.

        Returns:
            ``"step"``: int64 [n], the steps' numbers, from 0 at the first one after
            ``history()``; and for each name float64 [n, groups] on the CPU, NaN where the group
            was not there yet.

        Raises:
            RuntimeError: the optimizer is gone, or a CUDA graph is being captured.
        """
        ledger = self._ledger()
        if ledger is None:
            raise RuntimeError("The optimizer of this history is gone; drain() before")
        if capturing():
            raise RuntimeError("history.drain() reads the device; call it outside the capture")
        ledger.refresh_clock()
        self._take()
        taken, self._taken = self._taken, []
        groups = len(ledger.optimizer.param_groups)
        values = torch.full((sum(map(len, taken)), len(self.names), groups), torch.nan).double()
        for part, target in zip(taken, values.split([len(part) for part in taken])):
            target[:, :, : part.shape[2]] = part
        first, self._drained = self._drained, self._drained + len(values)
        steps = torch.arange(first, self._drained)
        return {"step": steps, **dict(zip(self.names, values.unbind(1)))}

    def close(self) -> None:
        """Keep nothing from here on: the rows leave the launch."""
        ledger = self._ledger()
        if ledger is not None and self in ledger.schedules.histories:
            ledger.refuse_if_captured("history.close()")
            ledger.refresh_clock()
            self._leave()
            ledger.schedules.histories.remove(self)
            ledger.reprogram()

    def _leave(self) -> None:
        """Another plan writes from here on, or none."""
        self._take()
        self._plan = None

    def _take(self) -> None:
        """What the ring holds of the steps that the plan's clock has counted."""
        if self._plan is None:
            return
        clock = self._plan.clock
        first = max(self._from, clock - self.capacity)
        self._skip(first - self._from)
        if clock > first:
            at = torch.arange(first, clock) % self.capacity
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
