"""PolynomialLR."""

from __future__ import annotations

from fused_sched import stock
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.tables import layout
from fused_sched.tables.program import Row


class PolynomialLR(DeviceScheduler, stock.PolynomialLR):
    r"""lr decays to 0 like a polynomial in ``total_iters`` steps, on the device.

    .. math::
        \gamma_e = \gamma_{e-1} \left(\frac{1 - e/T}{1 - (e-1)/T}\right)^{\text{power}},
        \quad e \le T

    Same values as torch.optim.lr_scheduler.PolynomialLR (torch 2.13). A negative power is
    tabulated: torch raises ZeroDivisionError at its end.
    """

    def _row(self) -> Row | None:
        if self.power < 0:
            return None
        return Row(
            layout.POLYNOMIAL, {layout.P0: float(self.total_iters), layout.P1: float(self.power)}
        )
