"""Everything that an optimizer keeps beside torch's own attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .changes import show_state
from .device_state import refuse_capturing
from .explicit import SchedulerSteps
from .fused_schedule import FusedSchedule
from .history import History
from .loading import Loading
from .mirror import Mirror
from .placement import Placement
from .state import StateKeeper
from .stepper import Stepper


class Ledger:
    """The mirror of the devices, ``optimizer.state``, and who makes the steps."""

    def __init__(self, optimizer: Any) -> None:
        self.mirror = Mirror(optimizer)
        self.keeper = StateKeeper(optimizer)
        self.placement = Placement(self.mirror, self.keeper)
        self.stepper = Stepper(self.mirror, self.keeper, self.placement)
        self.scheduler_steps = SchedulerSteps(self.mirror, self.placement, self.stepper)
        self.loading: Loading | None = None

    def show_state(self) -> Any:
        """``optimizer.state``, brought up to date."""
        return show_state(self.mirror, self.keeper)

    def fuse(self, scheduler: Any, interval: int | None, on_skip: bool) -> None:
        """Let a scheduler advance in the optimizer's launch from now on."""
        mirror = self.mirror
        mirror.refuse_if_captured("fuse()")
        mirror.refresh()
        mirror.probe.forget()  # an lr of 0 is a warm-up's
        mirror.host.schedules.drop_abandoned()
        before = list(mirror.host.schedules.fused)
        mirror.host.schedules.fuse(FusedSchedule(scheduler, interval, on_skip))
        try:
            if interval is not None:
                with mirror.host.suspend_sync:
                    scheduler._dry_run()  # raises for what ends at once
            self.stepper.prepare(tables=False, scaled=False)
        except BaseException:
            mirror.host.schedules.fused = before
            mirror.sender.upload()
            raise

    def unfuse(self, scheduler: Any) -> None:
        """Let a scheduler, or with None every one, step by itself from now on."""
        mirror = self.mirror
        mirror.refuse_if_captured("unfuse()")
        mirror.refresh()
        if mirror.host.schedules.unfuse(scheduler):
            mirror.sender.upload()

    def keep_history(self, names: Sequence[str], capacity: int) -> History:
        """Let the launches write down what they use of these columns."""
        refuse_capturing("history()")
        self.mirror.refuse_if_captured("history()")
        self.mirror.refresh()
        return History(self.mirror, names, capacity)
