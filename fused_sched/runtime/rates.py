"""The lr tensors of users who keep torch's convention: read each step, written by schedules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from fused_sched.tables import layout

from .plan import Plan, capturing

Rates = list[tuple[int, Tensor]]
"""(group, lr) of the groups whose lr is a tensor."""


def rates_of(groups: Iterable[dict[str, Any]]) -> Rates:
    """The groups whose user keeps lr in a tensor; reads nothing from the device."""
    values = ((number, dict.__getitem__(group, "lr")) for number, group in enumerate(groups))
    return [(number, lr) for number, lr in values if isinstance(lr, Tensor)]


def read_rates(rates: Rates, plans: Iterable[Plan]) -> None:
    """Before a launch: what the tensors hold now, into both halves of the record."""
    for plan in plans:
        if plan.block is not None:
            for number, lr in rates:
                if lr.device.type == "cpu" != plan.device.type and capturing():
                    raise RuntimeError(
                        f"lr of param group {number} is a tensor on the CPU, which a CUDA graph "
                        f"cannot read; move it to {plan.device} or make it a float, before the "
                        "capture"
                    )
                value = lr.detach().reshape(())
                plan.block.record[:, layout.LR_COLUMN, number].copy_(value, non_blocking=True)


def write_rates(rates: Rates, plan: Plan | None) -> None:
    """After a launch with a schedule: what it made of them, into the user's own tensors."""
    if plan is None or plan.block is None or not rates:
        return
    current = plan.block.record.index_select(0, plan.block.clock[:1] & 1)
    for number, lr in rates:
        lr.copy_(current[0, layout.LR_COLUMN, number].reshape(lr.shape))
