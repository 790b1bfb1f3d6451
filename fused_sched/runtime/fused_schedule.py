"""A scheduler that advances in ``optimizer.step()``'s launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fused_sched.tables import layout
from fused_sched.tables.program import Entry, Row, Segments

NO_FORM = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What running a scheduler ahead raises, from torch's code and users' alike."""


@dataclass
class FusedSchedule:
    """A scheduler that advances in ``optimizer.step()``'s launch.

    Attributes:
        scheduler: held strongly: a captured graph may depend on it.
        interval: optimizer steps per advance; None where the calls of ``scheduler.step()`` govern.
        on_skip: it also advances when ``found_inf`` skips a step of an interval, or of a graph,
            which no call governs.
        tick: optimizer steps since the last advance, of an interval.
        steps, calls: optimizer steps and calls of ``scheduler.step()`` since it was fused.
        warned: that a call does nothing.
        refused: why no graph can hold it, or None.
    """

    scheduler: Any
    interval: int | None
    on_skip: bool
    tick: int = 0
    steps: int = 0
    calls: int = 0
    warned: bool = False
    refused: str | None = None

    def count_steps(self, steps: int) -> None:
        """Optimizer steps were made."""
        self.steps += steps

    def count_call(self) -> None:
        """``scheduler.step()`` was called."""
        self.calls += 1

    def is_first_warning(self) -> bool:
        """True at the first call."""
        before, self.warned = self.warned, True
        return not before

    def advance(self) -> bool:
        """Count one optimizer step of an interval; run torch's recurrence when it is due."""
        assert self.interval is not None
        self.tick += 1
        if self.tick < self.interval:
            return False
        self.tick = 0
        self.scheduler._host_step()
        return True

    def entry(self, tables: bool) -> Entry:
        """Its rows; none where it has no device form or, without ``tables``, would need a table."""
        self.refused = None
        segments: Segments = {}
        if tables or not is_tabulated(self.scheduler):
            try:
                segments = self.scheduler._segments()
            except NO_FORM as error:
                self.refused = str(error)
                segments = {getattr(self.scheduler, "hyper", "lr"): [Row(layout.HOLD, ends=0)]}
        return Entry(segments, self.interval or 1, self.tick, self.on_skip)


def is_tabulated(scheduler: Any) -> bool:
    """Whether the host computes the values: the device form is a table, or there is none."""
    try:
        # A read that caught up would write into groups whose lr is another hyper meanwhile.
        with scheduler._on_host(scheduler.optimizer):
            return scheduler._tabulated()
    except NO_FORM:  # lowering it says why; torch's own step may raise
        return True
