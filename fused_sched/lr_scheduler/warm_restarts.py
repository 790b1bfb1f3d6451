"""CosineAnnealingWarmRestarts."""

from __future__ import annotations

from typing import Any

from fused_sched import stock
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.schedules.live import Live
from fused_sched.schedules.lowering import base_lrs
from fused_sched.tables import layout
from fused_sched.tables.program import Row


class CosineAnnealingWarmRestarts(DeviceScheduler, stock.CosineAnnealingWarmRestarts):
    r"""lr follows half a cosine, restarts, and the next cosine is ``T_mult`` times as long.

    .. math::
        \gamma_e = \eta_{min} + (\gamma_0 - \eta_{min})(1 + \cos(\pi T_{cur} / T_i)) / 2

    Same values as torch.optim.lr_scheduler.CosineAnnealingWarmRestarts (torch 2.13), on the
    device.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2016).
    """

    T_cur = Live()
    T_i = Live()

    def _row(self) -> Row:
        return Row(
            layout.WARM_RESTARTS,
            {
                layout.BASE: base_lrs(self),
                layout.P0: float(self.eta_min),
                layout.P1: float(self.T_mult),
                layout.S0: float(self.__dict__["T_cur"]),
                layout.S1: float(self.__dict__["T_i"]),
            },
            # torch's step() here does not count.
            words={layout.COUNT_INCREMENT: 0},
        )

    def _read_back(self, epoch: int, count: int, lanes: list[list[float]]) -> None:
        super()._read_back(epoch, count, lanes)
        for name, lane in (("T_cur", layout.S0), ("T_i", layout.S1)):
            self.__dict__[name] = _counted(self.__dict__[name], lanes[lane][0])


def _counted(before: Any, value: float) -> Any:
    """An int where the counter was one: torch's step(epoch) may leave a float."""
    return int(value) if isinstance(before, int) and value == int(value) else value
