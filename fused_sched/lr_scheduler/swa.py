"""SWALR."""

from __future__ import annotations

from fused_sched import stock
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.tables import layout
from fused_sched.tables.program import Row

_ANNEALS = {"cos": layout.ANNEAL_COS, "linear": layout.ANNEAL_LINEAR}


class SWALR(DeviceScheduler, stock.SWALR):
    r"""lr anneals to ``swa_lr`` in ``anneal_epochs`` steps and stays there, on the device.

    .. math::
        \gamma_e = \alpha_e \gamma_{swa} + (1 - \alpha_e)
            \frac{\gamma_{e-1} - \alpha_{e-1} \gamma_{swa}}{1 - \alpha_{e-1}}

    Same values as torch.optim.swa_utils.SWALR (torch 2.13).

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization"
    (2018).
    """

    def _row(self) -> Row:
        goals = [float(group["swa_lr"]) for group in self.optimizer.param_groups]
        return Row(
            layout.SWA,
            {layout.P0: goals, layout.P1: float(self.anneal_epochs)},
            words={layout.MODE: _ANNEALS[self._anneal_strategy]},
        )
