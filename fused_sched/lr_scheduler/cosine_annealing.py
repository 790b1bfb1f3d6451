"""CosineAnnealingLR."""

from __future__ import annotations

from fused_sched import stock
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.schedules.lowering import base_lrs
from fused_sched.tables import layout
from fused_sched.tables.program import Row


class CosineAnnealingLR(DeviceScheduler, stock.CosineAnnealingLR):
    r"""lr follows half a cosine from its base to ``eta_min`` in ``T_max`` steps, on the device.

    .. math::
        \gamma_e = \frac{1 + \cos(\pi e / T)}{1 + \cos(\pi (e-1) / T)}
            (\gamma_{e-1} - \eta_{min}) + \eta_{min}

    Same values as torch.optim.lr_scheduler.CosineAnnealingLR (torch 2.13): it rises again past
    ``T_max``, where the recurrence is ill-conditioned: there the two agree to
    ``2 * T_max**2 * 2**-52`` of the peak.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2016).
    """

    def _row(self) -> Row | None:
        if self.T_max == 0:
            return None
        return Row(
            layout.COSINE,
            {
                layout.BASE: base_lrs(self),
                layout.P0: float(self.eta_min),
                layout.P1: float(self.T_max),
            },
        )
