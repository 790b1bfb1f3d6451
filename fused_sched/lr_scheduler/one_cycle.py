"""OneCycleLR."""

from __future__ import annotations

from fused_sched import stock
from fused_sched.tables import layout
from fused_sched.tables.program import Row

from .cyclic import Cycle

_ANNEALS = {"cos": layout.ANNEAL_COS, "linear": layout.ANNEAL_LINEAR}
_STARTS = (layout.P0, layout.P2, layout.P4)
_ENDS = (layout.P1, layout.P3, layout.P5)
_END_STEPS = (layout.P6, layout.P7, layout.P8)


class OneCycleLR(Cycle, stock.OneCycleLR):
    r"""lr rises to ``max_lr`` and falls to almost 0, momentum or beta1 the other way.

    Each phase from ``start`` to ``end`` anneals with
    :math:`\text{end} + (\text{start} - \text{end}) / 2 \cdot (1 + \cos(\pi \cdot pct))`, or
    linearly. Same values as torch.optim.lr_scheduler.OneCycleLR (torch 2.13), on the device.

    Raises:
        ValueError: stepped more than ``total_steps`` times, as torch. A captured graph holds its
            last value there, and the next read from the host raises.

    Source: Smith and Topin, "Super-Convergence" (2017).
    """

    def _row(self) -> Row | None:
        return self._phases("start_lr", "end_lr")

    def _other_row(self) -> Row | None:
        return self._phases("start_momentum", "end_momentum")

    def _phases(self, start: str, end: str) -> Row | None:
        """A row from one pair of keys of the phases; None for a checkpoint of torch before 2.0."""
        if not hasattr(self, "_anneal_func_type"):
            return None
        groups = self.optimizer.param_groups
        lanes: dict[int, float | list[float]] = {layout.P9: float(self.total_steps)}
        for i, phase in enumerate(self._schedule_phases):
            lanes[_STARTS[i]] = [float(group[phase[start]]) for group in groups]  # type: ignore[literal-required]
            lanes[_ENDS[i]] = [float(group[phase[end]]) for group in groups]  # type: ignore[literal-required]
            lanes[_END_STEPS[i]] = float(phase["end_step"])
        return Row(
            layout.ONE_CYCLE,
            lanes,
            words={
                layout.MODE: _ANNEALS[self._anneal_func_type],
                layout.AUX_LENGTH: len(self._schedule_phases),
            },
            ends=max(self._last_epoch_with_a_value() - self.__dict__["last_epoch"], 0),
        )

    def _last_epoch_with_a_value(self) -> int:
        """total_steps, to which torch extrapolates; not where it would divide by a phase of 0."""
        before, last = (phase["end_step"] for phase in self._schedule_phases[-2:])
        return self.total_steps - (before == last)
