"""What every scheduler of this package adds to its torch class.

The host's recurrence is torch's own code. Beside it stands the *lowering*: the row of data from
which the device computes the same values, in ``lowering.py``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch._dynamo.decorators import skip

from fused_sched import stock
from fused_sched.runtime.cached import CACHED
from fused_sched.runtime.cached_host import CachedHostStep
from fused_sched.runtime.device_state import capturing
from fused_sched.runtime.fused_schedule import FusedSchedule
from fused_sched.runtime.history import History
from fused_sched.runtime.signatures import constructor
from fused_sched.runtime.users_line import warned_there

from .hyper import check_hyper, in_place_of_lr
from .live import Live, Shared, ledger_of
from .lowering import CACHES, Lowering
from .table import WRITTEN, hypers_of, inside
from .values import LookAhead

_PRIVATE = ("_horizon", "_hyper", "_table", "_ahead", "_contradiction", CACHED)
"""What a scheduler keeps beside torch's attributes."""

DEFAULT_HORIZON = 10_000
"""Steps that a tabulated schedule is computed ahead by default: 80 kB per param group."""


class DeviceScheduler(LookAhead, Lowering, stock.LRScheduler):
    """Base of the schedulers: torch's recurrence on the host, its row on the device.

    Beside torch's arguments:

    Args:
        horizon: steps that a schedule without an opcode of its own (any callable, any class) is
            computed ahead when it is fused or captured, at least 1.
        hyper: the hyperparameter that the schedule moves: any number in the param groups, such as
            ``"weight_decay"``. What torch's attributes and ``get_last_lr()`` call lr is then
            that one, and the groups keep its start under ``initial_<hyper>``.
    """

    _cached: Any = None
    last_epoch = Live()
    _step_count = Live()
    _last_lr = Live()
    base_lrs, max_lrs, milestones, _milestones, lr_lambdas, min_lrs = (Shared() for _ in range(6))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show torch's signature, and our own arguments after it."""
        super().__init_subclass__(**kwargs)
        if "state_dict" in cls.__dict__ and not cls.__module__.startswith(WRITTEN):
            cls.state_dict = _caught_up(cls.__dict__["state_dict"])  # type: ignore[method-assign]
        ours = inspect.signature(DeviceScheduler.__init__).parameters
        shown = constructor(cls, ours["horizon"], ours["hyper"])
        cls.__signature__ = shown  # type: ignore[attr-defined]

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
            ledger.mirror.refresh()
        if hyper != "lr" and isinstance(optimizer, stock.Optimizer):
            check_hyper(
                optimizer, hyper, None if ledger is None else ledger.mirror.host.schedules.columns
            )
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

    @property
    def horizon(self) -> int:
        """Steps that the schedule is computed ahead where it has no opcode of its own."""
        return self.__dict__.get("_horizon", DEFAULT_HORIZON)

    def _enroll(self) -> None:
        """Make the optimizer's ledger know this scheduler and send what it has set."""
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if ledger is not None:
            ledger.mirror.refresh()
            ledger.mirror.host.schedules.register(self, self._children())
            ledger.mirror.sender.upload()

    @skip
    def step(self, *args: Any, **kwargs: Any) -> None:
        """As torch's. Fused, it launches nothing where ``optimizer.step()`` has made it already.

        Raises:
            RuntimeError: under capture, if it has no device form yet.
        """
        cached = self._cached
        if cached is None or args or kwargs or not cached.step():
            self._full_step(*args, **kwargs)

    @torch.compiler.disable
    def _full_step(self, *args: Any, **kwargs: Any) -> None:
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if ledger is not None:
            ledger.scheduler_steps.step(self, *args, **kwargs)
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
        with (
            in_place_of_lr(self.optimizer, self.hyper),
            warned_there() if self._comes_too_early() else nullcontext(),
        ):
            super().step(*args, **kwargs)

    def _comes_too_early(self) -> bool:
        """Whether torch warns of a first step before the optimizer's."""
        if self.__dict__.get("_step_count") != 1:
            return False
        tracked = hasattr(self.optimizer.step, "_wrapped_by_lr_sched")
        return not (tracked and getattr(self.optimizer, "_opt_called", False))

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
            with nullcontext() if ledger is None else ledger.mirror.host.suspend_sync:
                super().load_state_dict(state_dict)
            self._reprogram()

    def get_last_lr(self) -> list[Any]:
        """As torch's."""
        cached = self._cached
        if type(cached) is CachedHostStep and cached.is_current():
            return self.__dict__["_last_lr"]
        ledger = ledger_of(self.__dict__.get("optimizer"))
        last = None if ledger is None else ledger.mirror.last_values(self)
        return super().get_last_lr() if last is None else last

    def history(self, capacity: int) -> History:
        """Keep what the next steps use of lr, and of momentum where it is cycled, on the device.

        The launch writes it, also under replay; nothing is read before ``drain()``.

        Args:
            capacity: steps kept, at least 1.

        Raises:
            TypeError: the optimizer is not one of ``fused_sched.optim``.
            RuntimeError: a captured graph uses the present program.
        """
        ledger = ledger_of(self.optimizer)
        if ledger is None:
            raise TypeError(
                f"{type(self.optimizer).__name__} has no launch that could keep a history; use an "
                "optimizer of fused_sched.optim"
            )
        if not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 1:
            raise ValueError(f"Expected positive integer capacity, but got {capacity}")
        return ledger.keep_history(
            self._moved_columns(ledger.mirror.host.schedules.columns), capacity
        )

    def _moved_columns(self, columns: Sequence[str]) -> list[str]:
        """What this scheduler and those inside it move."""
        cycles = any(getattr(one, "cycle_momentum", False) for one in inside(self))
        momentum = "momentum" if "momentum" in columns else "beta1"
        return list(dict.fromkeys([*hypers_of(self), *[momentum] * cycles]))

    def __setattr__(self, name: str, value: Any) -> None:
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if ledger is None or ledger.mirror.host.suspend_sync.is_entered:
            super().__setattr__(name, value)
            return
        ledger.mirror.refresh()
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
                one.__dict__.pop(CACHED, None)
            raise

    def __getstate__(self) -> dict[str, Any]:
        self._refresh()
        state = {key: value for key, value in self.__dict__.items()}
        for key in (*CACHES, CACHED):
            state.pop(key, None)
        ledger = ledger_of(self.__dict__.get("optimizer"))
        fused = None if ledger is None else ledger.mirror.host.schedules.find(self)
        if fused is not None:
            state["_fused"] = (fused.interval, fused.on_skip, fused.tick)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        fused = state.pop("_fused", None)
        self.__dict__.update(state)
        self._enroll()
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if fused is not None and ledger is not None:
            ledger.mirror.host.schedules.fuse(FusedSchedule(self, *fused))
            ledger.mirror.sender.upload()

    def _refresh(self) -> None:
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if ledger is not None:
            ledger.mirror.refresh()

    def _reprogram(self) -> None:
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if ledger is not None:
            ledger.mirror.host.schedules.forget_tables()
            ledger.mirror.sender.reprogram()

    @contextmanager
    def _on_host(self, optimizer: Any) -> Iterator[None]:
        """Within, torch's code runs on the host's account, on the hyperparameter of this one."""
        ledger = ledger_of(optimizer)
        with (
            nullcontext() if ledger is None else ledger.mirror.host.suspend_sync,
            in_place_of_lr(optimizer, self.hyper),
        ):
            yield


def _caught_up(state_dict: Any) -> Any:
    """A user's own ``state_dict``, which may read ``__dict__`` itself."""

    @functools.wraps(state_dict)
    def caught_up(self: Any) -> Any:
        self._refresh()
        ledger = ledger_of(self.__dict__.get("optimizer"))
        if ledger is not None:
            ledger.mirror.account.drop_cached_schedule()
        for one in inside(self):
            one.__dict__.pop(CACHED, None)
        return state_dict(self)

    return caught_up
