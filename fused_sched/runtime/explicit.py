"""``scheduler.step()``: on the host, on the device, or already done by the optimizer's launch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fused_sched.runtime.users_line import warn

from .cached_steps import keep_schedule
from .device_state import RELEASE, capturing
from .fused_schedule import FusedSchedule
from .mirror import Mirror
from .placement import Placement
from .stepper import Stepper

_MOVED_BY_REPLAYS = (
    "{}.step() was called while a captured graph moves the schedule: each replay of "
    f"optimizer.step() advances it by one, and the call does nothing. Leave it out, or {RELEASE}."
)


def _moved_by_interval(fused: FusedSchedule) -> str:
    name, interval = type(fused.scheduler).__name__, fused.interval
    return (
        f"{name}.step() was called {fused.calls} times in {fused.steps} optimizer steps, but it "
        f"is fused with interval={interval}: it advances by itself after every {interval} of them, "
        "and the call does nothing. Drop the call, or fuse without an interval to let the calls "
        "govern."
    )


def _warn_once(fused: FusedSchedule, message: str) -> None:
    if fused.is_first_warning():
        warn(message)


class SchedulerSteps:
    """Calls of ``step()`` of the schedulers of one optimizer."""

    def __init__(self, mirror: Mirror, placement: Placement, stepper: Stepper) -> None:
        self._mirror = mirror
        self._placement = placement
        self._stepper = stepper

    def step(self, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        """``scheduler.step()`` of one of our schedulers."""
        with self._mirror.host.lock:
            self._step_where_due(scheduler, *args, **kwargs)

    def _step_where_due(self, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        mirror = self._mirror
        fused = mirror.host.schedules.find(scheduler)
        if mirror.host.suspend_sync.is_entered:
            scheduler._host_step(*args, **kwargs)
            return
        mirror.end_captures()
        if fused is not None and not args and not kwargs:
            self._step_fused(fused)
        elif not self._advance_on_device(scheduler, args, kwargs):
            self._step_on_host(scheduler, *args, **kwargs)
            keep_schedule(mirror, scheduler)

    def _step_on_host(self, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        """torch's own step; then the device gets the values."""
        self._mirror.refresh()
        try:
            with self._mirror.host.suspend_sync:
                scheduler._host_step(*args, **kwargs)
        finally:
            self._mirror.sender.follow(scheduler)  # torch may raise when it has written a part

    # -- a fused scheduler -----------------------------------------------------------------------

    def _step_fused(self, fused: FusedSchedule) -> None:
        """A call for a schedule that rides in the launch of ``optimizer.step()``."""
        if capturing():
            return  # the captured launch advances it
        self._placement.adopt()  # the groups may have been replaced since the launch
        fused.count_call()
        account = self._mirror.account
        if account.captured:
            _warn_once(fused, _MOVED_BY_REPLAYS.format(type(fused.scheduler).__name__))
        elif fused.interval is not None:
            account.settle()
            _warn_once(fused, _moved_by_interval(fused))
        elif not account.cadence.confirm(number := self._mirror.host.schedules.fused.index(fused)):
            self._step_unexpected(fused)
            if number == 0:
                account.cadence.called()

    def _step_unexpected(self, fused: FusedSchedule) -> None:
        """A call whose step no launch has made ahead: by a launch of its own, or on the host."""
        mirror = self._mirror
        if mirror.account.can_advance_alone():
            mirror.take_back()
            for device_state in mirror.host.with_buffer():
                device_state.advance(0)
            mirror.account.cadence.made_alone()
        else:
            self._step_on_host(fused.scheduler)

    # -- on the device ---------------------------------------------------------------------------

    def _advance_on_device(self, scheduler: Any, args: Any, kwargs: Any) -> bool:
        """Launch the scheduler's own program where the host cannot run it; False if it can."""
        account, schedules = self._mirror.account, self._mirror.host.schedules
        metric = scheduler._device_metric(*args, **kwargs)
        inside = capturing()
        on_device = metric is not None and metric.device in self._mirror.host.device_states
        if not (inside or account.device_leads or on_device):
            return False
        number = schedules.program_of(scheduler)
        if number is None and not inside and not account.captured and on_device:
            self._stepper.prepare(scaled=False)
            number = schedules.program_of(scheduler)
        if number is None or (metric is None and (args or kwargs)):
            if inside:
                reason = schedules.why_refused(scheduler)
                reason = reason or "call optimizer.prepare() before the capture"
                name = type(scheduler).__name__
                raise RuntimeError(f"{name}.step() cannot be captured: {reason}")
            return False
        self._mirror.take_back()
        if not inside:
            self._mirror.sender.send_rows()
        self._launch(number, metric)
        if inside:
            self._note_capture(scheduler, None if metric is not None else number)
        else:
            account.note_unknown()
        return True

    def _note_capture(self, scheduler: Any, number: int | None) -> None:
        """A graph holds the program: ``number``, or None where only the device knows its values."""
        host = self._mirror.host
        host.schedules.in_graphs.append(scheduler)
        # The host could not make two schedulers' steps, or one's and a launch's, in their order.
        others = any(one is not scheduler for one in host.schedules.in_graphs)
        known = not (others or host.schedules.fused or host.lr_tensors())
        self._mirror.account.note_capture(number if known else None)

    def _launch(self, number: int, metric: Tensor | None) -> None:
        """Advance program ``number`` on every device."""
        host = self._mirror.host
        for device_state in host.with_buffer():
            device_state.join_stream()
            host.read_lr_tensors()
            device_state.advance(number, metric)
        host.write_lr_tensors()
