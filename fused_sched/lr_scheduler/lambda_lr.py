"""LambdaLR and MultiplicativeLR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fused_sched import stock
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.schedules.call_table import NEXT_SECONDS, CallTable
from fused_sched.schedules.known_lambdas import Piece, pieces_of
from fused_sched.schedules.lowering import base_lrs
from fused_sched.schedules.table import copied
from fused_sched.tables import layout
from fused_sched.tables.program import Row, Segments, table_of


class _Lambdas(DeviceScheduler):
    """A table of the callables' values, entry i for epoch ``first + i``."""

    lr_lambdas: list[Callable[[int], float]]
    _OPCODE: int
    _MOVES_ONE = True

    def _scales(self) -> list[float]:
        """What each group's value is multiplied by on the host, once."""
        raise NotImplementedError

    @staticmethod
    def _next_values(attributes: dict[str, Any], groups: Sequence[dict[str, Any]]) -> list[Any]:
        """torch's ``get_lr()``, from the scheduler's dict and groups that hold Python floats."""
        raise NotImplementedError

    def _tabulated(self) -> bool:
        return True

    def _lower(self, child: bool, waiting: bool = False) -> Segments | None:
        if self._changed() or len(self.lr_lambdas) != len(self.optimizer.param_groups):
            return None
        epoch = self.__dict__["last_epoch"]
        table = self._table_from(0 if waiting else epoch + 1)
        words = {layout.AUX_EPOCH: table.first, layout.AUX_LENGTH: table.length}
        ends = table.first + table.length - 1 - epoch
        row = Row(self._OPCODE, words=words, aux=table.numbers, ends=ends)
        return {self.hyper: [self._placed(row, child)]}

    def _table_from(self, first: int) -> CallTable:
        """The last table while it holds the next epoch, some rows longer."""
        scales = self._scales()
        calls = [(id(call), repr(getattr(call, "__dict__", None))) for call in self.lr_lambdas]
        key = (calls, scales)
        table = self.__dict__.get("_table")
        if table is None or not table.holds(key, first):
            table = CallTable(key, self.lr_lambdas, scales, first, self.horizon)
            self.__dict__["_table"] = table
        elif not table.complete:
            table.grow(NEXT_SECONDS)
        return table

    def _complete_table(self) -> bool:
        table = self.__dict__.get("_table")
        grown = table is not None and not table.complete and table.grow(None)
        return super()._complete_table() or grown

    def _lacks_rows(self) -> bool:
        table = self.__dict__.get("_table")
        return super()._lacks_rows() or (table is not None and not table.complete)

    def _read_back(self, epoch: int, count: int, lanes: list[list[float]]) -> None:
        super()._read_back(epoch, count, lanes)
        table = self.__dict__.get("_table")
        if table is None or not table.holds(table.key, epoch):
            return
        scales = torch.tensor(self._scales(), dtype=torch.float64, device="cpu")
        factors = [float(copied(call)(epoch)) for call in self.lr_lambdas]
        now = scales * torch.tensor(factors, dtype=torch.float64, device="cpu")
        if not torch.equal(now, table.row(epoch)):
            self._note_contradiction(now.tolist(), table.row(epoch).tolist())


class LambdaLR(_Lambdas, stock.LambdaLR):
    r"""lr is its base times a function of the epoch: :math:`\gamma_e = \gamma_0 \lambda(e)`.

    The schedules of ``transformers.get_scheduler`` are known: they need no horizon.

    Args:
        horizon: epochs that a table for CUDA graphs holds (default 10,000). Eager training asks
            the function at each step, as torch does. A captured graph holds the table's last value
            past its end, and the next read from the host raises.

    Same values as torch.optim.lr_scheduler.LambdaLR (torch 2.13).
    """

    _OPCODE = layout.TABLE_VALUE

    def _scales(self) -> list[float]:
        return base_lrs(self)

    @staticmethod
    def _next_values(attributes: dict[str, Any], groups: Sequence[dict[str, Any]]) -> list[Any]:
        epoch, bases = attributes["last_epoch"], attributes["base_lrs"]
        return [b * call(epoch) for call, b in zip(attributes["lr_lambdas"], bases, strict=True)]

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

    @staticmethod
    def _next_values(attributes: dict[str, Any], groups: Sequence[dict[str, Any]]) -> list[Any]:
        epoch, calls = attributes["last_epoch"], attributes["lr_lambdas"]
        return [
            dict.__getitem__(group, "lr") * call(epoch)
            for call, group in zip(calls, groups, strict=True)
        ]
