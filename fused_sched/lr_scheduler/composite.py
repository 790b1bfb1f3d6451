"""SequentialLR and ChainedScheduler."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch

from fused_sched.tables import layout
from fused_sched.tables.program import Row, Segments

from .base import DeviceScheduler
from .table import tabulate


class _Composite(DeviceScheduler):
    """A scheduler of schedulers."""

    _schedulers: Sequence[Any]

    def _children(self) -> Sequence[Any]:
        return self.__dict__.get("_schedulers", ())

    def _rows_inside(self) -> bool:
        """Whether every child can stand as rows inside this one."""
        raise NotImplementedError

    def _tabulated(self) -> bool:
        ours = all(isinstance(child, DeviceScheduler) for child in self._schedulers)
        return not (ours and self._rows_inside()) or any(
            child._tabulated() for child in self._schedulers
        )


class SequentialLR(_Composite, torch.optim.lr_scheduler.SequentialLR):
    """One scheduler after another, changing at the milestones, on the device.

    Same values as torch.optim.lr_scheduler.SequentialLR (torch 2.13). Composites inside it are
    tabulated ``horizon`` steps ahead.
    """

    def _rows_inside(self) -> bool:
        return not any(hasattr(child, "_schedulers") for child in self._schedulers)

    def _segments(self, child: bool = False) -> Segments:
        ours = all(isinstance(s, DeviceScheduler) for s in self._schedulers)
        if not (ours and self._rows_inside()):
            return tabulate(self)
        inside = [scheduler._segments(child=True) for scheduler in self._schedulers]
        if any(len(rows) > 1 for segments in inside for rows in segments.values()):
            return tabulate(self)
        columns = dict.fromkeys(name for segments in inside for name in segments)
        return {name: self._column(name, inside) for name in columns}

    def _column(self, name: str, inside: list[Segments]) -> list[Row]:
        """The jump row, then one row per child; each child jumps over those after it."""
        count = len(inside)
        jump = Row(
            layout.SEQUENTIAL,
            words={layout.AUX_LENGTH: len(self._milestones)},
            aux=[float(milestone) for milestone in self._milestones],
            epoch=int(self.__dict__["last_epoch"]),
            span=count + 1,
            source=self if name == "lr" else None,
        )
        rows = [jump]
        for number, segments in enumerate(inside):
            row = segments[name][0] if name in segments else Row(layout.HOLD, child=True)
            row.span = count - number
            rows.append(row)
        return rows

    def _lift(self, epoch: int, count: int, lanes: list[list[float]]) -> None:
        self.__dict__["last_epoch"] = epoch

    def _lift_composite(self) -> None:
        active = bisect_right(self._milestones, self.__dict__["last_epoch"])
        self.__dict__["_last_lr"] = self._schedulers[active].__dict__["_last_lr"]


class ChainedScheduler(_Composite, torch.optim.lr_scheduler.ChainedScheduler):
    """Several schedulers, stepped one after another at each step, on the device.

    Same values as torch.optim.lr_scheduler.ChainedScheduler (torch 2.13). Its optimizer is the
    first scheduler's.
    """

    def __init__(
        self,
        schedulers: Sequence[Any],
        optimizer: torch.optim.Optimizer | None = None,
        *,
        horizon: int | None = None,
    ) -> None:
        if horizon is not None:
            self.__dict__["_horizon"] = horizon
        torch.optim.lr_scheduler.ChainedScheduler.__init__(self, schedulers, optimizer)
        self._enroll()

    def _rows_inside(self) -> bool:
        return not any(isinstance(child, ChainedScheduler) for child in self._schedulers)

    def _segments(self, child: bool = False) -> Segments:
        if child or not all(isinstance(s, DeviceScheduler) for s in self._schedulers):
            return tabulate(self)
        merged: Segments = {}
        for scheduler in self._schedulers:
            for name, rows in scheduler._segments().items():
                merged.setdefault(name, []).extend(rows)
        return merged

    def _lift_composite(self) -> None:
        for scheduler in self._schedulers:
            scheduler._lift_composite()
        self.__dict__["_last_lr"] = self._schedulers[-1].__dict__["_last_lr"]
