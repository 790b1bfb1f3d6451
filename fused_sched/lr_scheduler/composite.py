"""SequentialLR and ChainedScheduler."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from fused_sched import stock
from fused_sched.runtime.fused_schedule import NO_FORM
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.tables import layout
from fused_sched.tables.program import Row, Segments, table_of


class _Composite(DeviceScheduler):
    """A scheduler of schedulers; it moves the hyperparameter that they move."""

    _schedulers: Any

    def _refuse_plateau(self, schedulers: Sequence[Any]) -> None:
        """Torch's own check, which looks the class up by a name that may mean ours by now."""
        for index, scheduler in enumerate(schedulers):
            if isinstance(scheduler, stock.ReduceLROnPlateau):
                raise ValueError(
                    f"{type(self).__name__} does not support `ReduceLROnPlateau` scheduler as it "
                    "requires additional kwargs to be specified when calling `step`, but got one "
                    f"at index {index} in the given schedulers sequence."
                )

    def _children(self) -> Sequence[Any]:
        return self.__dict__.get("_schedulers", ())

    def _tabulated(self) -> bool:
        ours = all(isinstance(child, DeviceScheduler) for child in self._schedulers)
        return not ours or any(child._tabulated() for child in self._schedulers)

    def _forget_tables(self) -> None:
        super()._forget_tables()
        for child in self._schedulers:
            if isinstance(child, DeviceScheduler):
                child._forget_tables()

    def _lowered_inside(self, child: bool, active: int | None = None) -> list[Segments] | None:
        """Each scheduler's rows, None if one of them has none.

        Args:
            active: number of the child whose turn it is; those after it wait for theirs.
        """
        lowered = []
        for number, one in enumerate(self._schedulers):
            turn = 0 if active is None else number - active
            try:
                ours = isinstance(one, DeviceScheduler)
                segments = one._lower(child, waiting=turn > 0) if ours else None
            except NO_FORM:  # of no account once its turn is over
                segments = {} if turn < 0 else None
            if segments is None:
                return None
            lowered.append(segments)
        return lowered


class SequentialLR(_Composite, stock.SequentialLR):
    """One scheduler after another, changing at the milestones, on the device.

    Same values as torch.optim.lr_scheduler.SequentialLR (torch 2.13). Composites inside it are
    tabulated ``horizon`` steps ahead.

    Raises:
        ValueError: the schedulers move different hyperparameters, and torch's own errors.
    """

    def __init__(
        self,
        optimizer: stock.Optimizer,
        schedulers: list[Any],
        milestones: list[int],
        last_epoch: int = -1,
        *,
        horizon: int | None = None,
    ) -> None:
        hypers = {getattr(scheduler, "hyper", "lr") for scheduler in schedulers} or {"lr"}
        if len(hypers) > 1:
            raise ValueError(
                f"SequentialLR expects its schedulers to move one hyperparameter, but got "
                f"{sorted(hypers)}; use one SequentialLR for each"
            )
        self._refuse_plateau(schedulers)
        super().__init__(
            optimizer, schedulers, milestones, last_epoch, horizon=horizon, hyper=hypers.pop()
        )

    def _tabulated(self) -> bool:
        return self._nested() or super()._tabulated()

    def _nested(self) -> bool:
        return any(hasattr(child, "_schedulers") for child in self._schedulers)

    def _lower(self, child: bool, waiting: bool = False) -> Segments | None:
        if child or self._changed() or self._nested():
            return None
        active = bisect_right(self._milestones, self.__dict__["last_epoch"])
        inside = self._lowered_inside(True, active)
        if inside is None:
            return None
        self._shift_ends(inside, active)
        columns = dict.fromkeys(name for segments in inside for name in segments)
        return {name: self._column(name, inside) for name in columns}

    def _shift_ends(self, inside: list[Segments], active: int) -> None:
        """A child's end comes no sooner than its turn, and not at all once that is over."""
        epoch = self.__dict__["last_epoch"]
        for number, segments in enumerate(inside):
            for (row,) in segments.values():
                if number < active:
                    row.ends = None
                elif number > active and row.ends is not None:
                    start = max(int(self._milestones[number - 1]), epoch)
                    row.ends += start - epoch + row.epoch  # its epoch 0 is its milestone

    def _column(self, name: str, inside: list[Segments]) -> list[Row]:
        """The jump row, then one row per child; each child jumps over those after it."""
        count = len(inside)
        jump = Row(
            layout.SEQUENTIAL,
            words={layout.AUX_LENGTH: len(self._milestones)},
            aux=table_of(*map(float, self._milestones)),
            epoch=int(self.__dict__["last_epoch"]),
            span=count + 1,
            source=self if name == self.hyper else None,
        )
        rows = [jump]
        for number, segments in enumerate(inside):
            row = segments[name][0] if name in segments else Row(layout.HOLD, child=True)
            row.span = count - number
            rows.append(row)
        return rows

    def _read_back(self, epoch: int, count: int, lanes: list[list[float]]) -> None:
        self.__dict__["last_epoch"] = epoch

    def _read_back_composite(self) -> None:
        active = bisect_right(self._milestones, self.__dict__["last_epoch"])
        self.__dict__["_last_lr"] = self._schedulers[active].__dict__["_last_lr"]


class ChainedScheduler(_Composite, stock.ChainedScheduler):
    """Several schedulers, stepped one after another at each step, on the device.

    Same values as torch.optim.lr_scheduler.ChainedScheduler (torch 2.13). Its optimizer is the
    first scheduler's; each of its schedulers moves its own hyperparameter.
    """

    def __init__(
        self,
        schedulers: Sequence[Any],
        optimizer: stock.Optimizer | None = None,
        *,
        horizon: int | None = None,
    ) -> None:
        self._set_horizon(horizon)
        self._refuse_plateau(schedulers)
        stock.ChainedScheduler.__init__(self, schedulers, optimizer)
        self._enroll()

    def _lower(self, child: bool, waiting: bool = False) -> Segments | None:
        inside = None if child or self._changed() else self._lowered_inside(False)
        if inside is None:
            return None
        merged: Segments = {}
        for segments in inside:
            for name, rows in segments.items():
                merged.setdefault(name, []).extend(rows)
        return merged

    def _read_back_composite(self) -> None:
        for scheduler in self._schedulers:
            if isinstance(scheduler, DeviceScheduler):
                scheduler._read_back_composite()
        movers = [one for one in self._schedulers if getattr(one, "hyper", "lr") == "lr"]
        if movers:
            self.__dict__["_last_lr"] = movers[-1].__dict__["_last_lr"]
