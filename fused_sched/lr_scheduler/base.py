"""What every scheduler of this package adds to its torch class.

The host's recurrence is torch's own code. Beside it stands the *lowering*: the row of data from
which the device computes the same values (``_row``), and the way back (``_lift``).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler as TorchScheduler

from fused_sched.optim.base import FusedOptimizer
from fused_sched.optim.plan import capturing
from fused_sched.tables import layout
from fused_sched.tables.program import Row, Segments

if TYPE_CHECKING:
    from fused_sched.optim.ledger import Ledger

_PRIVATE = ("_horizon", "_table_cache")
DEFAULT_HORIZON = 10_000
"""Steps that a tabulated schedule is computed ahead, unless told: 80 kB per param group."""


def ledger_of(optimizer: Any) -> Ledger | None:
    """The ledger of one of our optimizers, seen through any wrapper; None for a foreign one."""
    return getattr(optimizer, FusedOptimizer._LEDGER, None)


class _Live:
    """An attribute that the device may have moved: a read catches up first.

    The value lies in ``__dict__`` under torch's name, so that state dicts are torch's.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        ledger = ledger_of(instance.__dict__.get("optimizer"))
        if ledger is not None:
            ledger.refresh()
        try:
            return instance.__dict__[self.name]
        except KeyError:
            raise AttributeError(
                f"{type(instance).__name__!r} object has no attribute {self.name!r}"
            ) from None

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.name] = value


class DeviceScheduler(TorchScheduler):
    """Base of the schedulers: torch's recurrence on the host, its row on the device.

    Beside torch's methods: ``horizon`` is the number of steps that a schedule without an opcode of
    its own (any callable, any class) is computed ahead when it is fused or captured.
    """

    last_epoch = _Live()
    _step_count = _Live()
    _last_lr = _Live()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show torch's signature, and ``horizon`` after it."""
        super().__init_subclass__(**kwargs)
        stock = next((c for c in cls.__mro__ if c.__module__.startswith("torch.optim")), None)
        if stock is not None and "__init__" not in cls.__dict__:
            shown = inspect.signature(stock)
            horizon = inspect.Parameter("horizon", inspect.Parameter.KEYWORD_ONLY, default=None)
            cls.__signature__ = shown.replace(  # type: ignore[attr-defined]
                parameters=[*shown.parameters.values(), horizon]
            )

    # -- torch's surface -------------------------------------------------------------------------

    def __init__(self, optimizer: Any, *args: Any, horizon: int | None = None, **kwargs: Any) -> None:
        if horizon is not None:
            if horizon < 1:
                raise ValueError(f"Expected positive integer horizon, but got {horizon}")
            self.__dict__["_horizon"] = horizon
        ledger = ledger_of(optimizer)
        if ledger is not None and not capturing():
            ledger.refresh()
        with nullcontext() if ledger is None else ledger.host_only():
            super().__init__(optimizer, *args, **kwargs)
        self._enroll()

    def _enroll(self) -> None:
        """Make the optimizer's ledger know this scheduler and send what it has set."""
        ledger = ledger_of(self.optimizer)
        if ledger is not None:
            ledger.schedules.register(self, self._children())
            ledger.upload()

    @torch.compiler.disable
    def step(self, *args: Any, **kwargs: Any) -> None:
        """As torch's. Fused, it launches nothing: ``optimizer.step()`` has advanced it already.

        Raises:
            RuntimeError: under capture, if it has no device form yet; fused, if the calls come at
                another cadence than the interval.
        """
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if ledger is not None:
            ledger.step_scheduler(self, *args, **kwargs)
            return
        if capturing():
            raise RuntimeError(
                f"{type(self).__name__}.step() on a {type(self.optimizer).__name__} runs on the "
                "host, so a CUDA graph would replay one constant lr. Build it on an optimizer of "
                "fused_sched.optim, or convert yours with fused_sched.fuse()."
            )
        self._host_step(*args, **kwargs)

    def _host_step(self, *args: Any, **kwargs: Any) -> None:
        """torch's own ``step``."""
        super().step(*args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with its keys and plain values."""
        self._refresh()
        state = super().state_dict()
        return {key: value for key, value in state.items() if key not in _PRIVATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; a fused schedule goes on from the loaded position, also in a graph."""
        self._refresh()
        super().load_state_dict(state_dict)
        self._reprogram()

    def get_last_lr(self) -> list[Any]:
        """As torch's."""
        self._refresh()
        return super().get_last_lr()

    def __setattr__(self, name: str, value: Any) -> None:
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if ledger is None or ledger.hosting:
            super().__setattr__(name, value)
            return
        ledger.refresh()
        super().__setattr__(name, value)
        ledger.reprogram()

    def __getstate__(self) -> dict[str, Any]:
        self._refresh()
        return self.__dict__.copy()

    def _refresh(self) -> None:
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if ledger is not None:
            ledger.refresh()

    def _reprogram(self) -> None:
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if ledger is not None:
            ledger.reprogram()

    # -- lowering --------------------------------------------------------------------------------

    @property
    def horizon(self) -> int:
        """Steps that the schedule is computed ahead where it has no opcode of its own."""
        return self.__dict__.get("_horizon", DEFAULT_HORIZON)

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
        return self._changed() or self._row() is None

    def _changed(self) -> bool:
        """Whether a subclass computes other values than the class whose row this is."""
        ours = next(c for c in type(self).__mro__ if c.__module__.startswith("fused_sched."))
        names = ("get_lr", "_get_closed_form_lr", "_update_lr", "_host_step")
        return ours is DeviceScheduler or any(
            getattr(type(self), name, None) is not getattr(ours, name, None) for name in names
        )

    def _segments(self, child: bool = False) -> Segments:
        """The rows of every column that this scheduler moves.

        Args:
            child: it is the child of a SequentialLR, which may restart it.
        """
        row = None if self._changed() else self._row()
        if row is None:
            from .table import tabulate

            return tabulate(self)
        segments = {"lr": [self._placed(row, child)]}
        momentum = self._momentum_row()
        if momentum is not None:
            segments[momentum[0]] = [self._placed(momentum[1], child, source=False)]
        return segments

    def _placed(self, row: Row, child: bool, source: bool = True) -> Row:
        """A row with this scheduler's position."""
        row.epoch = int(self.__dict__.get("last_epoch", 0))
        row.count = int(self.__dict__.get("_step_count", 0))
        row.child = child
        if source:
            row.source = self
            last = self.__dict__.get("_last_lr") or [0.0]
            row.lanes = {layout.LAST: _floats(last), **row.lanes}
            if child and hasattr(self, "_get_closed_form_lr"):
                row.words = {**row.words, layout.HAS_RESTART: 1}
                row.lanes = {**row.lanes, layout.RESTART: self._restart_values()}
        return row

    def _restart_values(self) -> list[float]:
        """What torch's SequentialLR sets at this child's milestone: the closed form at 0."""
        epoch = self.__dict__["last_epoch"]
        self.__dict__["last_epoch"] = 0
        try:
            return _floats(self._get_closed_form_lr())  # type: ignore[attr-defined]
        finally:
            self.__dict__["last_epoch"] = epoch

    def _lift(self, epoch: int, count: int, lanes: list[list[float]]) -> None:
        """Take this scheduler's position from its row; ``lanes`` is [LANE_WORDS][groups]."""
        attributes = self.__dict__
        attributes["last_epoch"] = epoch
        if "_step_count" in attributes:
            attributes["_step_count"] = count
        attributes["_last_lr"] = lanes[layout.LAST]

    def _lift_composite(self) -> None:
        """After the children's positions were taken: a composite's own."""

    def _device_metric(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """A metric that must not leave the device."""
        return None

    def _rehearse(self) -> None:
        """Raise what torch would raise at the next step, changing nothing."""
        from .table import detached

        detached(self)[0]._host_step()


def _floats(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]


def base_lrs(scheduler: Any) -> list[float]:
    """torch's ``base_lrs``, as floats."""
    return _floats(scheduler.base_lrs)
