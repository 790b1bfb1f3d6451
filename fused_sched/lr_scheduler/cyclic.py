"""CyclicLR."""

from __future__ import annotations

import torch

from fused_sched.tables import layout
from fused_sched.tables.program import Row

from .base import DeviceScheduler, _floats, base_lrs

_MODES = {
    "triangular": layout.TRIANGULAR,
    "triangular2": layout.TRIANGULAR2,
    "exp_range": layout.EXP_RANGE,
}


class CyclicLR(DeviceScheduler, torch.optim.lr_scheduler.CyclicLR):
    r"""lr runs between ``base_lr`` and ``max_lr``, momentum or beta1 the other way, on the device.

    .. math::
        \gamma_e = b + (\text{max} - b) \cdot s_e \cdot \text{scale}, \quad
        s_e \text{ the triangle wave of } e / (\text{up} + \text{down})

    Same values as torch.optim.lr_scheduler.CyclicLR (torch 2.13). A ``scale_fn`` of one's own is
    tabulated ``horizon`` steps ahead.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (2015).
    """

    def _shape(self) -> dict[int, float]:
        return {layout.P1: self.total_size, layout.P2: self.step_ratio, layout.P3: self.gamma}

    def _row(self) -> Row | None:
        if self._scale_fn_custom is not None or self.gamma < 0:
            return None
        lanes = {layout.BASE: base_lrs(self), layout.P0: _floats(self.max_lrs), **self._shape()}
        return Row(layout.CYCLIC, lanes, words={layout.MODE: _MODES[self.mode]})

    def _momentum_row(self) -> tuple[str, Row] | None:
        if not self.cycle_momentum:
            return None
        lanes = {
            layout.BASE: _floats(self.max_momentums),
            layout.P0: _floats(self.base_momentums),
            **self._shape(),
        }
        row = Row(layout.CYCLIC, lanes, words={layout.MODE: _MODES[self.mode]})
        return ("beta1" if self.use_beta1 else "momentum"), row
