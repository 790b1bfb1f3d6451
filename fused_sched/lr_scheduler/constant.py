"""ConstantLR."""

from __future__ import annotations

from fused_sched import stock
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.tables.program import Row

from .multi_step import jumps


class ConstantLR(DeviceScheduler, stock.ConstantLR):
    """lr is multiplied by ``factor`` until ``total_iters``, on the device.

    Same values as torch.optim.lr_scheduler.ConstantLR (torch 2.13). ``factor=0`` is tabulated:
    torch raises ZeroDivisionError when it ends.
    """

    def _row(self) -> Row | None:
        if self.factor == 0:
            return None
        factors = {self.total_iters: 1.0 / self.factor, 0: self.factor}
        epochs = sorted(factors)
        return jumps(epochs, [factors[epoch] for epoch in epochs])
