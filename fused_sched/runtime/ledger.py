"""Everything that an optimizer keeps beside torch's own attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .changes import show_state
from .device_state import refuse_capturing
from .explicit import step_scheduler
from .history import History
from .loading import Loading
from .mirror import Mirror
from .schedules import FusedSchedule
from .state import StateKeeper
from .stepper import Stepper


class Ledger:
    """The mirror of the devices, ``optimizer.state``, and who makes the steps."""

    def __init__(self, optimizer: Any) -> None:
        self.mirror = Mirror(optimizer)
        self.keeper = StateKeeper(optimizer)
        self.stepper = Stepper(self.mirror, self.keeper)
        self.loading: Loading | None = None

    def show_state(self) -> Any:
        """``optimizer.state`` as of now."""
        return show_state(self.mirror, self.keeper)

    def fuse(self, scheduler: Any, interval: int | None, on_skip: bool) -> None:
        """Let a scheduler advance in the optimizer's launch from here on."""
        mirror = self.mirror
        mirror.refuse_if_captured("fuse()")
        mirror.refresh()
        mirror.zeroed.clear()  # by a scheduler that warms up from 0, not by a checkpoint's probe
        mirror.schedules.drop_abandoned()
        before = list(mirror.schedules.fused)
        mirror.schedules.fuse(FusedSchedule(scheduler, interval, on_skip))
        try:
            if interval is not None:
                with mirror.suspend_sync():
                    scheduler._dry_run()  # raises for what ends at once
            self.stepper.prepare(tables=False, scaled=False)
        except BaseException:
            mirror.schedules.fused = before
            mirror.upload()
            raise

    def unfuse(self, scheduler: Any) -> None:
        """Let a scheduler, or with None every one, step by itself from here on."""
        mirror = self.mirror
        mirror.refuse_if_captured("unfuse()")
        mirror.refresh()
        if mirror.schedules.unfuse(scheduler):
            mirror.upload()

    def keep_history(self, names: Sequence[str], capacity: int) -> History:
        """Let the launches write down what they use of these columns."""
        refuse_capturing("history()")
        self.mirror.refuse_if_captured("history()")
        self.mirror.refresh()
        return History(self.mirror, names, capacity)

    def step_scheduler(self, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        """``scheduler.step()`` of one of our schedulers."""
        step_scheduler(self.mirror, self.stepper, scheduler, *args, **kwargs)
