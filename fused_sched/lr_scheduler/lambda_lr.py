"""LambdaLR and MultiplicativeLR."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fused_sched import stock
from fused_sched.optim.schedules import NO_FORM
from fused_sched.tables import layout
from fused_sched.tables.program import Row, Segments, table_of

from .base import DeviceScheduler
from .known_lambdas import Piece, pieces_of
from .lowering import base_lrs
from .table import copied


class _Lambdas(DeviceScheduler):
    """A table of the callables' values, entry i for epoch ``first + i``."""

    lr_lambdas: list[Callable[[int], float]]
    _OPCODE: int
    _MOVES_ONE = True

    def _scales(self) -> list[float]:
        """What each group's value is multiplied by on the host, once."""
        raise NotImplementedError

    def _tabulated(self) -> bool:
        return True

    def _lower(self, child: bool, waiting: bool = False) -> Segments | None:
        if self._changed() or len(self.lr_lambdas) != len(self.optimizer.param_groups):
            return None
        epoch = self.__dict__["last_epoch"]
        first, table = self._table_from(0 if waiting else epoch + 1)
        length = len(table) // len(self.lr_lambdas)
        words = {layout.AUX_EPOCH: first, layout.AUX_LENGTH: length}
        ends = first + length - 1 - epoch
        row = Row(self._OPCODE, words=words, aux=table, ends=ends)
        return {self.hyper: [self._placed(row, child)]}

    def _table_from(self, first: int) -> tuple[int, Tensor]:
        """(first epoch, the table): the last one while it holds the next epoch."""
        scales = self._scales()
        calls = [(id(call), repr(getattr(call, "__dict__", None))) for call in self.lr_lambdas]
        key = (calls, scales)
        known, start, table = self.__dict__.get("_table", (None, 0, ()))
        if known != key or not start <= first < start + len(table) // len(scales):
            factors = self._factors(first) * torch.tensor(scales, dtype=torch.float64)
            start, table = first, factors.view(-1)
            self.__dict__["_table"] = (key, start, table)
        return start, table

    def _factors(self, first: int) -> Tensor:
        """[steps, groups] float64, from epoch ``first`` on; shorter where a callable raises."""
        calls = [copied(call) for call in self.lr_lambdas]
        factors: list[list[float]] = []
        for epoch in range(first, first + self.horizon):
            try:
                factors.append([float(call(epoch)) for call in calls])
            except NO_FORM:
                if not factors:
                    raise
                break
        return torch.tensor(factors, dtype=torch.float64)


class LambdaLR(_Lambdas, stock.LambdaLR):
    r"""lr is its base times a function of the epoch: :math:`\gamma_e = \gamma_0 \lambda(e)`.

    The schedules of ``transformers.get_scheduler`` are known: they need no horizon.

    Args:
        horizon: epochs that are computed ahead when the schedule is fused or captured (default
            10,000). An eager run renews the table by itself; a captured graph holds the last value
            past it, and the next read from the host raises.

    Same values as torch.optim.lr_scheduler.LambdaLR (torch 2.13).
    """

    _OPCODE = layout.TABLE_VALUE

    def _scales(self) -> list[float]:
        return base_lrs(self)

    def _pieces(self) -> tuple[Piece, ...] | None:
        """What all groups' callables are, if transformers made them alike."""
        first, *others = (pieces_of(call) for call in self.lr_lambdas)
        return first if all(pieces == first for pieces in others) else None

    def _tabulated(self) -> bool:
        return self._changed() or self._pieces() is None

    def _lower(self, child: bool, waiting: bool = False) -> Segments | None:
        pieces = None if self._changed() else self._pieces()
        if pieces is None or len(self.lr_lambdas) != len(self.optimizer.param_groups):
            return super()._lower(child, waiting)
        table = table_of(*(word for piece in pieces for word in piece))
        row = Row(layout.PIECEWISE, {layout.BASE: base_lrs(self)}, aux=table)
        return {self.hyper: [self._placed(row, child)]}


class MultiplicativeLR(_Lambdas, stock.MultiplicativeLR):
    r"""lr is multiplied by a function of the epoch: :math:`\gamma_e = \gamma_{e-1} \lambda(e)`.

    Args:
        horizon: as for :class:`LambdaLR`.

    Same values as torch.optim.lr_scheduler.MultiplicativeLR (torch 2.13).
    """

    _OPCODE = layout.TABLE_FACTOR

    def _scales(self) -> list[float]:
        return [1.0] * len(self.lr_lambdas)
