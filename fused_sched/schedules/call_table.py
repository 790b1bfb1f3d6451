"""What the functions of a LambdaLR give for the epochs to come, computed bit by bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .table import FIRST_SECONDS, copied

NEXT_SECONDS = 0.001
"""Time to spend on a table at each eager step, until it is complete."""


class CallTable:
    """A table of callables' values, times a scale, which grows to ``horizon`` epochs.

    The callables are copied where they have a state: asking ahead counts for nothing. One that
    raises, whatever it raises, ends the table there.

    Args:
        key: what it is computed from; another key asks for another table.
        calls: a function of the epoch for each group.
        scales: a factor for each group.
        first: the epoch of the first row.
        horizon: rows, at most.
    """

    def __init__(
        self,
        key: Any,
        calls: Sequence[Callable[[int], float]],
        scales: Sequence[float],
        first: int,
        horizon: int,
    ) -> None:
        self.key = key
        self.first = first
        self.length = 0
        self.complete = False
        self.numbers = torch.empty(0, dtype=torch.float64, device="cpu")
        self._calls = [copied(call) for call in calls]
        self._scales = torch.tensor(scales, dtype=torch.float64, device="cpu")
        shape = horizon, len(scales)
        self._rows = torch.full(shape, torch.nan, dtype=torch.float64, device="cpu")
        self.grow(FIRST_SECONDS)

    def holds(self, key: Any, epoch: int) -> bool:
        """Whether the table is computed from ``key``, and has a row for ``epoch``."""
        return self.key == key and 0 <= epoch - self.first < self.length

    def row(self, epoch: int) -> Tensor:
        """The values for an epoch, [groups]."""
        return self._rows[epoch - self.first]

    def grow(self, seconds: float | None) -> bool:
        """Ask for more rows; whether there are any.

        Args:
            seconds: after which to stop, None for never.
        """
        before, stop = self.length, None if seconds is None else time.monotonic() + seconds
        factors: list[list[float]] = []
        while not self.complete and (stop is None or not factors or time.monotonic() < stop):
            epoch = self.first + before + len(factors)
            try:
                factors.append([float(call(epoch)) for call in self._calls])
            except Exception:  # raised again by the eager step that is due, if it ever is
                self.complete = True
            self.complete |= before + len(factors) == len(self._rows)
        self.length += len(factors)
        if factors:
            values = torch.tensor(factors, dtype=torch.float64, device="cpu")
            self._rows[before : self.length] = values * self._scales
        self.numbers = self._rows.view(-1)  # another object, so that it is sent again
        return bool(factors)
