"""What every scheduler of this package adds to its torch class.

The host's recurrence is torch's own code. Beside it stands the *lowering*: the row of data from
which the device computes the same values (``_row``), and the way back (``_lift``).
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._dynamo.decorators import skip
from torch.optim.lr_scheduler import LRScheduler as TorchScheduler

from fused_sched.optim.base import FusedOptimizer
from fused_sched.optim.lean import LEAN
from fused_sched.optim.plan import capturing
from fused_sched.optim.schedules import NO_FORM, Fused
from fused_sched.tables import layout
from fused_sched.tables.program import Row, Segments

from .hyper import check_hyper, in_place_of_lr
from .table import WRITTEN, detached, inside, tabulate

if TYPE_CHECKING:
    from fused_sched.optim.ledger import Ledger

_PRIVATE = ("_horizon", "_hyper", "_table", "_ahead", "_bases", LEAN)
"""What a scheduler keeps beside torch's attributes."""

_CACHES = ("_table", "_ahead", "_bases")

_RECORDS = ("state_dict", "load_state_dict", "get_last_lr", "print_lr")
"""Methods that a subclass may override without computing other values."""

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


class _Shared(_Live):
    """A list that its reader may change in place: the schedule's next step is the host's."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        ledger = None if instance is None else ledger_of(instance.__dict__.get("optimizer"))
        if ledger is not None and not ledger.hosting:
            ledger.refresh()
            ledger.lean.drop_schedule(ledger)
        return super().__get__(instance, owner)


class DeviceScheduler(TorchScheduler):
    """Base of the schedulers: torch's recurrence on the host, its row on the device.

    Beside torch's arguments:

    Args:
        horizon: steps that a schedule without an opcode of its own (any callable, any class) is
            computed ahead when it is fused or captured, at least 1.
        hyper: the hyperparameter that the schedule moves: any number in the param groups, such as
            ``"weight_decay"``. What torch's attributes and ``get_last_lr()`` call lr is then
            that one, and the groups keep its start under ``initial_<hyper>``.
    """

    _lean: Any = None
    last_epoch = _Live()
    _step_count = _Live()
    _last_lr = _Live()
    base_lrs, max_lrs, milestones, lr_lambdas, min_lrs = (_Shared() for _ in range(5))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show torch's signature, and our own arguments after it."""
        super().__init_subclass__(**kwargs)
        if "state_dict" in cls.__dict__ and not cls.__module__.startswith(WRITTEN):
            cls.state_dict = _caught_up(cls.__dict__["state_dict"])  # type: ignore[method-assign]
        stock = next((c for c in cls.__mro__ if c.__module__.startswith("torch.optim")), None)
        if stock is not None and "__init__" not in cls.__dict__:
            shown = inspect.signature(stock)
            horizon = inspect.Parameter("horizon", inspect.Parameter.KEYWORD_ONLY, default=None)
            hyper = inspect.Parameter("hyper", inspect.Parameter.KEYWORD_ONLY, default="lr")
            cls.__signature__ = shown.replace(  # type: ignore[attr-defined]
                parameters=[*shown.parameters.values(), horizon, hyper]
            )

    # -- torch's surface -------------------------------------------------------------------------

    def __init__(
        self,
        optimizer: Any,
        *args: Any,
        horizon: int | None = None,
        hyper: str = "lr",
        **kwargs: Any,
    ) -> None:
        self._set_horizon(horizon)
        ledger = ledger_of(optimizer)
        if ledger is not None and not capturing():
            ledger.refresh()
        if hyper != "lr" and isinstance(optimizer, torch.optim.Optimizer):
            check_hyper(optimizer, hyper, None if ledger is None else ledger.schedules.columns)
            self.__dict__["_hyper"] = hyper
        with self._on_host(optimizer):
            super().__init__(optimizer, *args, **kwargs)
        self._enroll()

    def _set_horizon(self, horizon: int | None) -> None:
        if horizon is None:
            return
        if horizon < 1:
            raise ValueError(f"Expected positive integer horizon, but got {horizon}")
        self.__dict__["_horizon"] = horizon

    def _enroll(self) -> None:
        """Make the optimizer's ledger know this scheduler and send what it has set."""
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if ledger is not None:
            ledger.refresh()
            ledger.schedules.register(self, self._children())
            ledger.upload()

    @skip
    def step(self, *args: Any, **kwargs: Any) -> None:
        """As torch's. Fused, it launches nothing: ``optimizer.step()`` has advanced it already.

        Raises:
            RuntimeError: under capture, if it has no device form yet; fused, if the calls come at
                another cadence than the interval.
        """
        lean = self._lean
        if lean is None or args or kwargs or not lean.step():
            self._whole_step(*args, **kwargs)

    @torch.compiler.disable
    def _whole_step(self, *args: Any, **kwargs: Any) -> None:
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
        if args or kwargs:
            self._forget_tables()  # it may go anywhere
        with in_place_of_lr(self.optimizer, self.hyper):
            super().step(*args, **kwargs)

    def _update_lr(self, epoch: int | None = None) -> None:
        with in_place_of_lr(self.optimizer, self.hyper):
            super()._update_lr(epoch)

    def get_lr(self) -> list[Any]:
        """As torch's."""
        self._refresh()
        with self._on_host(self.optimizer):
            return super().get_lr()

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with its keys and plain values."""
        self._refresh()
        state = super().state_dict()
        return {key: value for key, value in state.items() if key not in _PRIVATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; a fused schedule goes on from the loaded position, also in a graph."""
        self._refresh()
        ledger = ledger_of(self.__dict__.get("optimizer"))
        # As one: a composite's children must neither read nor send between its parts.
        with self._all_or_nothing():
            with nullcontext() if ledger is None else ledger.host_only():
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
        with self._all_or_nothing():
            super().__setattr__(name, value)
            self._reprogram()

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Within, an error leaves this scheduler and those inside it as they were."""
        before = [(one, dict(one.__dict__)) for one in inside(self)]
        try:
            yield
        except BaseException:
            for one, attributes in before:
                one.__dict__.clear()
                one.__dict__.update(attributes)
                one.__dict__.pop(LEAN, None)
            raise

    def __getstate__(self) -> dict[str, Any]:
        self._refresh()
        state = {key: value for key, value in self.__dict__.items()}
        for key in (*_CACHES, LEAN):
            state.pop(key, None)
        ledger = ledger_of(self.__dict__.get("optimizer"))
        fused = None if ledger is None else ledger.schedules.find(self)
        if fused is not None:
            state["_fused"] = (fused.interval, fused.on_skip, fused.tick)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        fused = state.pop("_fused", None)
        self.__dict__.update(state)
        self._enroll()
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if fused is not None and ledger is not None:
            ledger.schedules.fuse(Fused(self, *fused))
            ledger.upload()

    def _refresh(self) -> None:
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if ledger is not None:
            ledger.refresh()

    def _reprogram(self) -> None:
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if ledger is not None:
            ledger.schedules.forget_tables()
            ledger.reprogram()

    @contextmanager
    def _on_host(self, optimizer: Any) -> Iterator[None]:
        """Within, torch's code runs on the host's account, on the hyperparameter of this one."""
        ledger = ledger_of(optimizer)
        with (
            nullcontext() if ledger is None else ledger.host_only(),
            in_place_of_lr(optimizer, self.hyper),
        ):
            yield

    # -- lowering --------------------------------------------------------------------------------

    @property
    def horizon(self) -> int:
        """Steps that the schedule is computed ahead where it has no opcode of its own."""
        return self.__dict__.get("_horizon", DEFAULT_HORIZON)

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
        """Whether somebody's subclass computes other values than the class whose row this is."""
        return _computes_otherwise(type(self))  # type: ignore[arg-type]

    def _segments(self) -> Segments:
        """The rows of every column that this scheduler moves, with its position of now."""
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
            return _floats(self._get_closed_form_lr())  # type: ignore[attr-defined]
        finally:
            self.__dict__["last_epoch"] = epoch

    def _forget_tables(self) -> None:
        """What was computed from the attributes may be stale."""
        for cache in _CACHES:
            self.__dict__.pop(cache, None)

    # -- back to the host ------------------------------------------------------------------------

    def _lift(self, epoch: int, count: int, lanes: list[list[float]]) -> None:
        """Take this scheduler's position from its row; ``lanes`` is [LANE_WORDS][groups]."""
        attributes = self.__dict__
        attributes["last_epoch"] = epoch
        if "_step_count" in attributes:
            attributes["_step_count"] = count
        attributes["_last_lr"] = lanes[layout.LAST]

    def _catch_up(self, advances: int, lanes: list[list[float]]) -> None:
        """Make the steps that the device has made from a table, whatever they move here."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(advances):
                try:
                    self._host_step()
                except NO_FORM:
                    break  # past its end; the device has noted that
        self.__dict__["_last_lr"] = lanes[layout.LAST]

    def _lift_composite(self) -> None:
        """After the children's positions were taken: a composite's own."""

    def _device_metric(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """A metric that must not leave the device."""
        return None

    def _rehearse(self) -> None:
        """Raise what torch would raise at the next step, changing nothing."""
        detached(self)[0].step()


def _caught_up(state_dict: Any) -> Any:
    """Somebody's own ``state_dict``, which may read ``__dict__`` itself."""

    @functools.wraps(state_dict)
    def caught_up(self: Any) -> Any:
        self._refresh()
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if ledger is not None:
            ledger.lean.drop_schedule(ledger)
        return state_dict(self)

    return caught_up


@functools.cache
def _computes_otherwise(cls: Any) -> bool:
    """Whether a class of somebody's own in ``cls`` overrides a part of torch's recurrence."""
    stock = next(c for c in cls.__mro__ if c.__module__.startswith("torch.optim"))
    theirs = (c for c in cls.__mro__ if not c.__module__.startswith(WRITTEN))
    return any(
        hasattr(stock, name) and not name.startswith("__") and name not in _RECORDS
        for c in theirs
        for name in vars(c)
    )


def _floats(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]


def _host_float(value: Any) -> float:
    """A number, without waiting for a device."""
    return 0.0 if isinstance(value, Tensor) and value.device.type != "cpu" else float(value)


def base_lrs(scheduler: Any) -> list[float]:
    """torch's ``base_lrs``, as floats; tensors on a device are read once."""
    bases = scheduler.base_lrs
    if not any(isinstance(base, Tensor) for base in bases):
        return _floats(bases)
    known, values = scheduler.__dict__.get("_bases", ((), []))
    if len(known) != len(bases) or not all(map(is_, known, bases)):
        known, values = list(bases), _floats(bases)
        scheduler.__dict__["_bases"] = (known, values)
    return values
