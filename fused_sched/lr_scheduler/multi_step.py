"""MultiStepLR."""

from __future__ import annotations

from fused_sched import stock
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.tables import layout
from fused_sched.tables.program import Row, table_of


class MultiStepLR(DeviceScheduler, stock.MultiStepLR):
    """lr decays by ``gamma`` at each milestone, on the device.

    Same values as torch.optim.lr_scheduler.MultiStepLR (torch 2.13): milestones in any order, a
    repeated one counts twice.
    """

    def _row(self) -> Row:
        epochs = sorted(self.milestones)
        factors = [self.gamma ** self.milestones[epoch] for epoch in epochs]
        return jumps(epochs, factors)


def jumps(epochs: list[int], factors: list[float]) -> Row:
    """A row that multiplies by factors[i] where last_epoch == epochs[i]; epochs sorted."""
    aux = table_of(*map(float, (*epochs, *factors)))
    return Row(layout.MULTI_STEP, words={layout.AUX_LENGTH: len(epochs)}, aux=aux)
