"""StepLR."""

from __future__ import annotations

from fused_sched import stock
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.tables import layout
from fused_sched.tables.program import Row


class StepLR(DeviceScheduler, stock.StepLR):
    r"""lr decays by ``gamma`` every ``step_size`` steps, on the device.

    Same values as torch.optim.lr_scheduler.StepLR (torch 2.13). A ``step_size`` that is not a
    whole number is tabulated: its remainder is not exact in float64.
    """

    def _row(self) -> Row | None:
        if self.step_size == 0 or self.step_size != int(self.step_size):
            return None
        return Row(layout.STEP, {layout.P0: self.gamma, layout.P1: float(self.step_size)})
