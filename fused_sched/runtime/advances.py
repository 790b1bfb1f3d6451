"""The fused schedules around a launch of ``optimizer.step()``: before it, and the account after."""

from __future__ import annotations

from collections.abc import Sequence

from fused_sched.tables import layout

from .device_state import DeviceState, capturing
from .mirror import FEW, Mirror


class Advances:
    """Sees to it that each step advances what is fused once, on a device or on the host."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    # -- before a launch -------------------------------------------------------------------------

    def check_capture(self) -> None:
        """While a stream captures: raise for a fused schedule that the graph could not move."""
        if capturing():
            self._mirror.host.schedules.check_capture()

    def check_end(self) -> None:
        """Before a step with an interval: renew a table, raise where torch's schedule raises."""
        schedules, account = self._mirror.host.schedules, self._mirror.account
        if not schedules.fused or schedules.governed or account.captured or account.hosted():
            return
        if not self._mirror.host.with_buffer():
            self._mirror.refresh()
        groups = self._mirror.sender.programs[0].lanes.shape[2]
        if groups != len(self._mirror.host.optimizer.param_groups) or account.steps_left() == 0:
            self._mirror.refresh()
            with self._mirror.host.suspend_sync:
                schedules.dry_run()
            self._mirror.sender.upload()

    # -- after it --------------------------------------------------------------------------------

    def count(
        self,
        device_states: Sequence[DeviceState],
        grads: Sequence[Sequence[int]],
        moved: bool,
        scaled: bool,
        advance: int | None,
    ) -> bool:
        """After a launch; whether the host knows every step count.

        Args:
            grads: addresses of the gradients, by device state and row.
            moved: whether the params of the eager engine moved.
            scaled: whether only the device knows if the step was made.
            advance: how the launch was to advance the fused schedules; None for not at all.
        """
        self._mirror.probe.forget()
        inside = [capturing(device_state.device) for device_state in device_states]
        if any(inside):
            known = all(inside) and not scaled and not self._mirror.host.lr_tensors()
            self._mirror.account.note_capture(0 if known else None)
            return False
        self._mirror.account.count_clocks(device_states, grads, scaled)
        if self._mirror.host.schedules.fused and advance is not None:
            lr_tensors = bool(self._mirror.host.lr_tensors())
            if advance == layout.COUNTED:
                self._count_interval(moved, unknown=bool(device_states) and (scaled or lr_tensors))
            else:
                self._mirror.account.cadence.launched(advance)
            if lr_tensors and not device_states:
                self._mirror.refresh()  # the user reads the tensor without asking us
        return not self._mirror.account.clock_unknown

    def _count_interval(self, moved: bool, unknown: bool) -> None:
        """After a launch that advanced schedules with an interval; ``unknown`` how often."""
        self._mirror.account.count_interval(1, moved and not unknown)
        if unknown:
            self._mirror.account.note_unknown()
        elif not moved:
            self._mirror.refresh()
            with self._mirror.host.suspend_sync:
                self._mirror.host.schedules.count_step(moved=False)
        elif self._mirror.account.unreplayed > FEW and not self._mirror.host.with_buffer():
            self._mirror.refresh()  # on the eager engine: by and by, not all of it at the next read

    def step_intervals(self, made: bool) -> None:
        """After a step that held what is fused: those with an interval advance on the host.

        Args:
            made: False if ``found_inf`` stopped the step.
        """
        self._mirror.refresh()
        schedules = self._mirror.host.schedules
        for fused in schedules.fused:
            fused.count_steps(1)
        changed = True
        try:
            with self._mirror.host.suspend_sync:
                changed = schedules.count_step(made)
        finally:
            if changed or schedules.tables:
                self._mirror.sender.follow()
