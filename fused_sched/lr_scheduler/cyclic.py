"""CyclicLR."""

from __future__ import annotations

from typing import Any

from fused_sched import stock
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.schedules.lowering import base_lrs, floats
from fused_sched.tables import layout
from fused_sched.tables.program import Row

_MODES = {
    ("_triangular_scale_fn", "cycle"): layout.TRIANGULAR,
    ("_triangular_scale_fn", "iterations"): layout.TRIANGULAR,
    ("_triangular2_scale_fn", "cycle"): layout.TRIANGULAR2,
    ("_exp_range_scale_fn", "iterations"): layout.EXP_RANGE,
}
"""By torch's scale function and what it is called with."""


class Cycle(DeviceScheduler):
    """What CyclicLR and OneCycleLR share: a momentum or beta1 that runs the other way."""

    cycle_momentum: bool
    use_beta1: bool

    def __init__(self, optimizer: Any, *args: Any, hyper: str = "lr", **kwargs: Any) -> None:
        if hyper != "lr" and kwargs.setdefault("cycle_momentum", False):
            raise ValueError(
                f"cycle_momentum=True goes with a cycle of lr; pass cycle_momentum=False with "
                f"hyper={hyper!r}"
            )
        super().__init__(optimizer, *args, hyper=hyper, **kwargs)

    def _other_row(self) -> Row | None:
        """The row of the momentum or beta1."""
        raise NotImplementedError

    def _momentum_row(self) -> tuple[str, Row] | None:
        row = self._other_row() if self.cycle_momentum else None
        return None if row is None else ("beta1" if self.use_beta1 else "momentum", row)


class CyclicLR(Cycle, stock.CyclicLR):
    r"""lr runs between ``base_lr`` and ``max_lr``, momentum or beta1 the other way, on the device.

    .. math::
        \gamma_e = b + (\text{max} - b) \cdot s_e \cdot \text{scale}, \quad
        s_e \text{ the triangle wave of } e / (\text{up} + \text{down})

    Same values as torch.optim.lr_scheduler.CyclicLR (torch 2.13). A ``scale_fn`` of one's own is
    tabulated ``horizon`` steps ahead.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (2015).
    """

    def _row(self) -> Row | None:
        return self._between(base_lrs(self), floats(self.max_lrs))

    def _other_row(self) -> Row | None:
        return self._between(floats(self.max_momentums), floats(self.base_momentums))

    def _between(self, start: list[float], peak: list[float]) -> Row | None:
        if self._scale_fn_custom is not None:
            return None
        # Torch binds mode and gamma when it is built or loaded, not when they are assigned.
        bound: Any = self._scale_fn_ref
        mode = _MODES.get((getattr(bound, "func", bound).__name__, self.scale_mode))
        (gamma,) = getattr(bound, "args", (1.0,))
        if mode is None or gamma < 0:
            return None
        lanes = {
            layout.BASE: start,
            layout.P0: peak,
            layout.P1: self.total_size,
            layout.P2: self.step_ratio,
            layout.P3: gamma,
        }
        return Row(layout.CYCLIC, lanes, words={layout.MODE: mode})
