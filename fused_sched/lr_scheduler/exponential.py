"""ExponentialLR."""

from __future__ import annotations

from fused_sched import stock
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.tables import layout
from fused_sched.tables.program import Row


class ExponentialLR(DeviceScheduler, stock.ExponentialLR):
    r"""lr decays by ``gamma`` at each step, on the device.

    .. math:: \gamma_{e} = \gamma_{e-1} \cdot \text{gamma}

    Same values as torch.optim.lr_scheduler.ExponentialLR (torch 2.13), in float64.
    """

    def _row(self) -> Row:
        return Row(layout.EXPONENTIAL, {layout.P0: self.gamma})
