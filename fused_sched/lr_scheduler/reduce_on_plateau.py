"""ReduceLROnPlateau."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fused_sched import stock
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.schedules.live import Live
from fused_sched.tables import layout
from fused_sched.tables.program import Row

_MODES = {
    ("min", "rel"): layout.MIN_REL,
    ("min", "abs"): layout.MIN_ABS,
    ("max", "rel"): layout.MAX_REL,
    ("max", "abs"): layout.MAX_ABS,
}


class ReduceLROnPlateau(DeviceScheduler, stock.ReduceLROnPlateau):
    """lr is reduced by ``factor`` when a metric has stopped improving.

    ``step(metric)`` takes a Python float, or a one-element tensor on the params' device: that one
    is compared there, in a launch of its own, without a sync; best, bad epochs and cooldown are
    counted there too. Same values as torch.optim.lr_scheduler.ReduceLROnPlateau (torch 2.13).
    """

    _MOVES_ONE = True
    _TAKES_METRIC = True

    best = Live()
    num_bad_epochs = Live()
    cooldown_counter = Live()

    def _row(self) -> Row:
        attributes = self.__dict__
        return Row(
            layout.PLATEAU,
            {
                layout.P0: self.factor,
                layout.P1: self._floors(),
                layout.P2: self.eps,
                layout.P3: self.threshold,
                layout.P4: float(self.patience),
                layout.P5: float(self.cooldown),
                layout.S0: float(attributes["best"]),
                layout.S1: float(attributes["num_bad_epochs"]),
                layout.S2: float(attributes["cooldown_counter"]),
            },
            words={layout.MODE: _MODES[self.mode, self.threshold_mode]},
        )

    def _floors(self) -> list[float]:
        """min_lrs, grown as torch grows them when groups were added."""
        groups = len(self.optimizer.param_groups)
        if len(self.min_lrs) == groups:
            return [float(value) for value in self.min_lrs]
        if self.default_min_lr is None:
            raise RuntimeError(
                f"The number of param groups in the `optimizer` ({groups}) differs from when "
                f"`ReduceLROnPlateau` was initialized ({len(self.min_lrs)}), usually due to a new "
                "param group being added to the optimizer. Please modify the `min_lrs` field to "
                "match the length of the `optimizer` param groups."
            )
        return [float(self.default_min_lr)] * groups

    def _read_back(self, epoch: int, count: int, lanes: list[list[float]]) -> None:
        super()._read_back(epoch, count, lanes)
        attributes = self.__dict__
        attributes["best"] = lanes[layout.S0][0]
        attributes["num_bad_epochs"] = int(lanes[layout.S1][0])
        attributes["cooldown_counter"] = int(lanes[layout.S2][0])

    def _device_metric(self, *args: Any, **kwargs: Any) -> Tensor | None:
        metric = args[0] if args else kwargs.get("metrics")
        single = len(args) + len(kwargs) == 1
        return metric if single and isinstance(metric, Tensor) and metric.numel() == 1 else None
