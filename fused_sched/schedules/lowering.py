"""A scheduler's device form: the rows from which the device computes its values, and the way back.

A class writes ``_row`` (and ``_momentum_row`` where it cycles a momentum); what it keeps beyond
torch's ``last_epoch``, ``_step_count`` and ``_last_lr`` it takes back in ``_read_back``.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Sequence
from operator import is_
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fused_sched.rules.numbers import keep_ints
from fused_sched.runtime.fused_schedule import NO_FORM
from fused_sched.tables import layout
from fused_sched.tables.program import Row, Segments

from .hyper import in_place_of_lr
from .table import WRITTEN, complete, detached, inside, tabulate

CACHES = ("_table", "_ahead", "_contradiction")

_COMPUTING = ("get_lr", "_get_closed_form_lr", "_update_lr")
"""Methods that compute values, which a user may also replace on one scheduler."""

_RECORDS = ("state_dict", "load_state_dict", "get_last_lr", "print_lr")
"""Methods that a subclass may override without computing other values."""


class Lowering:
    """What a scheduler is on the device."""

    optimizer: Any
    _MOVES_ONE = False
    """Whether a step moves the hyperparameter and nothing else, whatever the options."""
    _TAKES_METRIC = False

    @property
    def hyper(self) -> str:
        """The hyperparameter that the schedule moves."""
        return self.__dict__.get("_hyper", "lr")

    def _row(self) -> Row | None:
        """The row that moves lr, or None where the arguments have no exact device form."""
        return None

    def _momentum_row(self) -> tuple[str, Row] | None:
        """(column, row) of a cycled momentum or beta1."""
        return None

    def _children(self) -> Sequence[Any]:
        return ()

    def _tabulated(self) -> bool:
        """Whether the device form is a table of values computed ahead."""
        return self._lower(child=False) is None

    def _changed(self) -> bool:
        """Whether a user's subclass or function computes other values than this class's row."""
        own = any(name in self.__dict__ for name in _COMPUTING)
        return own or computes_otherwise(type(self))  # type: ignore[arg-type]

    def _segments(self) -> Segments:
        """The rows of every column that this scheduler moves, with its present position."""
        segments = self._lower(child=False)
        return tabulate(self) if segments is None else segments

    def _lower(self, child: bool, waiting: bool = False) -> Segments | None:
        """The rows of opcodes of its own; None where it has none, so that it is tabulated.

        Args:
            child: it is the child of a SequentialLR, which may restart it.
            waiting: its turn there is still to come.
        """
        if self._changed():
            return None
        with in_place_of_lr(self.optimizer, self.hyper):
            row, momentum = self._row(), self._momentum_row()
            if row is None:
                return None
            try:
                rows = {self.hyper: self._placed(row, child)}
            except ArithmeticError:  # torch raises it at the milestone, not before
                return None
        if momentum is not None:
            rows[momentum[0]] = self._placed(momentum[1], child, source=False)
        groups = len(self.optimizer.param_groups)
        fitting = all(placed.fits(groups) for placed in rows.values())
        return {name: [placed] for name, placed in rows.items()} if fitting else None

    def _placed(self, row: Row, child: bool, source: bool = True) -> Row:
        """A row with this scheduler's position."""
        row.epoch = int(self.__dict__.get("last_epoch", 0))
        row.count = int(self.__dict__.get("_step_count", 0))
        row.child = child
        if source:
            row.source = self
            row.lanes = {layout.LAST: self._last_values(), **row.lanes}
            if child and hasattr(self, "_get_closed_form_lr"):
                row.words = {**row.words, layout.HAS_RESTART: 1}
                row.lanes = {**row.lanes, layout.RESTART: self._restart_values()}
        return row

    def _last_values(self) -> list[float]:
        """torch's _last_lr; 0 for groups that it does not know yet or whose lr is on a device."""
        groups = len(self.optimizer.param_groups)
        last = [_host_float(value) for value in self.__dict__.get("_last_lr", ())]
        return [*last, *[0.0] * groups][:groups]

    def _restart_values(self) -> list[float]:
        """What torch's SequentialLR sets at this child's milestone: the closed form at 0."""
        epoch = self.__dict__["last_epoch"]
        self.__dict__["last_epoch"] = 0
        try:
            return floats(self._get_closed_form_lr())  # type: ignore[attr-defined]
        finally:
            self.__dict__["last_epoch"] = epoch

    def _complete_table(self) -> bool:
        """Compute what a table lacks, however long it takes; whether that was anything."""
        return complete(self)

    def _lacks_rows(self) -> bool:
        """Whether its table is not complete yet."""
        table = self.__dict__.get("_ahead")
        return table is not None and not table.complete

    def _note_contradiction(self, now: list[float], used: list[float]) -> None:
        """A user's function gives other values than the table made of it, which a graph uses."""
        self.__dict__.setdefault("_contradiction", (now, used))

    def _forget_tables(self) -> None:
        """What was computed from the attributes may be stale."""
        for cache in CACHES:
            self.__dict__.pop(cache, None)

    # -- back to the host ------------------------------------------------------------------------

    def _read_back(self, epoch: int, count: int, lanes: list[list[float]]) -> None:
        """Take this scheduler's position from its row; ``lanes`` is [LANE_WORDS][groups]."""
        attributes = self.__dict__
        attributes["last_epoch"] = epoch
        if "_step_count" in attributes:
            attributes["_step_count"] = count
        groups = self.optimizer.param_groups
        attributes["_last_lr"] = keep_ints(lanes[layout.LAST], groups, self.hyper)

    def _catch_up(self: Any, advances: int, lanes: list[list[float]]) -> None:
        """Make the steps that the device has made from a table, whatever they move here."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(advances):
                try:
                    self._host_step()
                except NO_FORM:
                    break  # past its end; the device has noted that
        now, used = self.__dict__.get("_last_lr", []), lanes[layout.LAST]
        same = all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(floats(now), used))
        if not same and any(map(_calls_users, inside(self))):
            self._note_contradiction(floats(now), used)
        self.__dict__["_last_lr"] = used

    def _read_back_composite(self) -> None:
        """After the children's positions were taken: a composite's own."""

    def _device_metric(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """A metric that must not leave the device."""
        return None

    def _dry_run(self) -> None:
        """Raise what torch would raise at the next step, changing nothing.

        Not where the step calls a user's function, which may count its calls.
        """
        if not any(map(_calls_users, inside(self))):
            detached(self)[0].step()


def _calls_users(scheduler: Any) -> bool:
    """Whether a step calls a function or class that is not torch's."""
    functions = hasattr(scheduler, "lr_lambdas") or getattr(scheduler, "_scale_fn_custom", None)
    return bool(functions) or computes_otherwise(type(scheduler))  # type: ignore[arg-type]


@functools.cache
def computes_otherwise(cls: Any) -> bool:
    """Whether a user's class in ``cls`` overrides a part of torch's recurrence."""
    stock = next(c for c in cls.__mro__ if c.__module__.startswith("torch.optim"))
    theirs = (c for c in cls.__mro__ if not c.__module__.startswith(WRITTEN))
    options = inspect.signature(stock).parameters  # which a property may compute
    return any(
        (hasattr(stock, name) or name in options)
        and not name.startswith("__")
        and name not in _RECORDS
        for c in theirs
        for name in vars(c)
    )


def floats(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]


def _host_float(value: Any) -> float:
    """A number, without waiting for a device."""
    return 0.0 if isinstance(value, Tensor) and value.device.type != "cpu" else float(value)


_BASES: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Scheduler -> (its base_lrs, as floats); beside it, so that it has torch's attributes only."""


def base_lrs(scheduler: Any) -> list[float]:
    """torch's ``base_lrs``, as floats; tensors on a device are read once."""
    bases = scheduler.base_lrs
    if not any(isinstance(base, Tensor) for base in bases):
        return floats(bases)
    known, values = _BASES.get(scheduler, ((), []))
    if len(known) != len(bases) or not all(map(is_, known, bases)):
        known, values = list(bases), floats(bases)
        _BASES[scheduler] = (known, values)
    return values
