"""LinearLR."""

from __future__ import annotations

from fused_sched import stock
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.tables import layout
from fused_sched.tables.program import Row


class LinearLR(DeviceScheduler, stock.LinearLR):
    r"""lr moves linearly from ``start_factor`` to ``end_factor``, on the device.

    .. math::
        \gamma_e = \gamma_{e-1} \left(1 + \frac{\text{end} - \text{start}}
            {T \cdot \text{start} + (e - 1)(\text{end} - \text{start})}\right), \quad e \le T

    Same values as torch.optim.lr_scheduler.LinearLR (torch 2.13).
    """

    def _row(self) -> Row:
        return Row(
            layout.LINEAR,
            {
                layout.P0: self.start_factor,
                layout.P1: self.end_factor,
                layout.P2: float(self.total_iters),
            },
        )
