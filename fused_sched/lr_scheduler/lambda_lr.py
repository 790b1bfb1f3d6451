"""LambdaLR and MultiplicativeLR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fused_sched.tables import layout
from fused_sched.tables.program import Row, Segments

from .base import DeviceScheduler, base_lrs


class _Lambdas(DeviceScheduler):
    """A table of the callables' values, entry i for epoch ``first + i``."""

    lr_lambdas: list[Callable[[int], float]]

    def _tabulated(self) -> bool:
        return True

    def _factors(self, first: int) -> list[list[float]]:
        """[steps][groups], from epoch ``first`` on; shorter where a callable raises."""
        factors: list[list[float]] = []
        for epoch in range(first, first + self.horizon):
            try:
                factors.append([float(call(epoch)) for call in self.lr_lambdas])
            except (ArithmeticError, LookupError, ValueError):
                if not factors:
                    raise
                break
        return factors

    def _table(self, first: int) -> tuple[int, list[list[float]]]:
        """(first epoch, factors): the last ones while they cover the next epoch."""
        key = [(id(call), repr(getattr(call, "__dict__", None))) for call in self.lr_lambdas]
        now, start, factors = self.__dict__.get("_table_cache", (None, 0, []))
        if now != key or not start <= first < start + len(factors):
            start, factors = first, self._factors(first)
            self.__dict__["_table_cache"] = (key, start, factors)
        return start, factors

    def _lambda_row(self, opcode: int, child: bool, scales: list[float]) -> Row:
        epoch = self.__dict__["last_epoch"]
        first, factors = self._table(0 if child else epoch + 1)
        values = [scale * f for step in factors for scale, f in zip(scales, step, strict=True)]
        return Row(
            opcode,
            words={layout.AUX_EPOCH: first, layout.AUX_LENGTH: len(factors)},
            aux=values,
            ends=first + len(factors) - 1 - max(epoch, 0),
        )


class LambdaLR(_Lambdas, torch.optim.lr_scheduler.LambdaLR):
    r"""lr is its base times a function of the epoch: :math:`\gamma_e = \gamma_0 \lambda(e)`.

    Args:
        horizon: epochs that are computed ahead when the schedule is fused or captured (default
            10,000). An eager run renews the table by itself; a captured graph holds the last value
            past it, and the next read from the host raises.

    Same values as torch.optim.lr_scheduler.LambdaLR (torch 2.13).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lr_lambda: Any,
        last_epoch: int = -1,
        *,
        horizon: int | None = None,
    ) -> None:
        super().__init__(optimizer, lr_lambda, last_epoch, horizon=horizon)

    def _segments(self, child: bool = False) -> Segments:
        row = self._lambda_row(layout.TABLE_VALUE, child, base_lrs(self))
        return {"lr": [self._placed(row, child)]}


class MultiplicativeLR(_Lambdas, torch.optim.lr_scheduler.MultiplicativeLR):
    r"""lr is multiplied by a function of the epoch: :math:`\gamma_e = \gamma_{e-1} \lambda(e)`.

    Args:
        horizon: as for :class:`LambdaLR`.

    Same values as torch.optim.lr_scheduler.MultiplicativeLR (torch 2.13).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lr_lambda: Any,
        last_epoch: int = -1,
        *,
        horizon: int | None = None,
    ) -> None:
        super().__init__(optimizer, lr_lambda, last_epoch, horizon=horizon)

    def _segments(self, child: bool = False) -> Segments:
        row = self._lambda_row(layout.TABLE_FACTOR, child, [1.0] * len(self.lr_lambdas))
        return {"lr": [self._placed(row, child)]}
