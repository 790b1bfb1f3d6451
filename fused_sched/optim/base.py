"""What every optimizer of this package adds to its torch class."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._dynamo.decorators import skip
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fused_sched import stock

from .ledger import Ledger
from .loading import Loading
from .plan import capturing
from .signatures import constructor

Closure = Callable[[], Any]


class FusedOptimizer(stock.Optimizer):
    """Base of the optimizers: one launch per step and device, hyperparameters on the device.

    A subclass names its update rule and its columns of the hyper record; the arithmetic lies in
    ``kernels/rules.py`` and, for the eager engine, in torch.
    """

    _RULE: ClassVar[str]
    _COLUMNS: ClassVar[tuple[str, ...]]
    _KEYS: ClassVar[Mapping[str, tuple[str, ...]]]
    """Columns that each key of a param group fills."""
    _STATES: ClassVar[tuple[str, ...]]
    _HAS_STEP: ClassVar[bool]
    _LEDGER = "_fused_sched_ledger"
    _lean: Any = None

    watch_graphs: bool = True
    """Whether torch's hooks on a CUDA graph (torch >= 2.14) tell of its replays and of its end.

    Reading the lr after a replay then asks no device, and ``release_capture()`` happens by itself.
    Assign False before a capture whose graph is launched otherwise than by ``CUDAGraph.replay()``.
    """

    @staticmethod
    def _encode(group: Mapping[str, Any]) -> list[float]:
        """A group's values in the order of the columns."""
        raise NotImplementedError

    @staticmethod
    def _decode(group: dict[str, Any], column: str, value: float) -> None:
        """Put a column's value into a group, if it is another than the group's.

        Past the group's own methods, which would send it to the device.
        """
        here = dict.__getitem__(group, column)
        if not isinstance(here, Tensor) and here != value:
            dict.__setitem__(group, column, value)

    @classmethod
    def _state_names(cls, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The state tensors that a param of this group has."""
        raise NotImplementedError

    # -- construction, copies, checkpoints -------------------------------------------------------

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show torch's signature."""
        super().__init_subclass__(**kwargs)
        cls.__signature__ = constructor(cls)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__[self._LEDGER] = Ledger(self)
        super().__init__(*args, **kwargs)
        self._ledger.stepper.adopt()

    @property
    def _ledger(self) -> Ledger:
        # Through getattr: wrappers (Lightning, Accelerate) forward what they do not have.
        return getattr(self, self._LEDGER)

    @property
    def state(self) -> Any:
        """torch's ``state``, with the step counts of now."""
        return self._ledger.show_state()

    @state.setter
    def state(self, value: Any) -> None:
        self._ledger.mirror.drop_lean()
        keeper = self._ledger.keeper
        keeper.state = value if isinstance(value, defaultdict) else defaultdict(dict, value)
        keeper.shown = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        if self._LEDGER not in self.__dict__:
            self.__dict__[self._LEDGER] = Ledger(self)
        state = dict(state)
        if "state" in state:
            self.state = state.pop("state")
        super().__setstate__(state)
        ledger = self._ledger
        ledger.stepper.adopt()
        if ledger.loading is not None:
            ledger.loading.take()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; raises while a captured graph uses the tables."""
        ledger = self._ledger
        ledger.mirror.refuse_if_captured("add_param_group()")
        ledger.mirror.refresh()  # what the schedules did, they did to the groups that were there
        super().add_param_group(param_group)
        if ledger.mirror.plans:
            ledger.stepper.adopt()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but in place: device addresses stay, so captured graphs stay valid.

        A moment keeps its own dtype (torch casts it to the param's).

        Raises:
            ValueError: the groups differ from the optimizer's, or a state tensor has another shape
                than its param; then nothing was loaded.
        """
        ledger = self._ledger
        if capturing():
            raise RuntimeError("load_state_dict() cannot run while a CUDA graph is being captured")
        ledger.mirror.refresh()
        ledger.mirror.refresh_clock()
        optimizer = (
            ledger.mirror.optimizer
        )  # a wrapper (Lightning's, Accelerate's) must not be loaded
        ledger.loading = loading = Loading(ledger.mirror, ledger.keeper, ledger.stepper)
        handle = optimizer.register_load_state_dict_pre_hook(loading.see)
        try:
            with loading.around():
                super(FusedOptimizer, optimizer).load_state_dict(state_dict)
        finally:
            ledger.loading = None
            handle.remove()

    # -- the step --------------------------------------------------------------------------------

    def _update(self, closure: Closure | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lean = self._lean
        if lean is not None and lean.update(self):  # hooks and profiler have been told
            return loss
        records = torch.is_grad_enabled()
        torch.set_grad_enabled(False)  # a fifth of what torch.no_grad() takes
        try:
            self._ledger.stepper.step()
        finally:
            torch.set_grad_enabled(records)
        return loss

    _hooked_update = stock.Optimizer.profile_hook_step(_update)

    def _has_listeners(self) -> bool:
        """Whether somebody hears of the step: a hook, or the profiler."""
        return bool(
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd.profiler._is_profiler_enabled  # type: ignore[attr-defined]
        )

    @torch.compiler.disable
    def _whole_step(self, *args: Any, **kwargs: Any) -> Any:
        self._opt_called = True
        # A subclass with a step() of its own has had its hooks around that.
        overridden = type(self).step is not FusedOptimizer.step
        alone = overridden or not self._has_listeners()
        update = self._update if alone else self._hooked_update
        return update(*args, **kwargs)

    @skip
    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Update every param that has a gradient, and advance the fused schedules.

        Args:
            closure: reevaluates the model and returns the loss, as for torch.

        Returns:
            The closure's value, or None.
        """
        lean = self._lean
        if lean is not None and not kwargs and args in ((), (None,)) and lean.step(self):
            return None
        return self._whole_step(*args, **kwargs)  # as they came: the hooks see them

    # torch would wrap step() for its hooks, its profiler range and its schedulers' order check, at
    # 10 microseconds a call. The whole step does all three; the lean one runs where none is asked.
    step.hooked = True  # type: ignore[attr-defined]
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    step.__signature__ = inspect.signature(_update)  # type: ignore[attr-defined]

    def prepare(self) -> None:
        """Allocate all state and tables and load every kernel, without a step.

        After it the first ``step()`` may be captured. Schedulers without a device form (any
        callable, any class of your own) are tabulated here.
        """
        self._ledger.stepper.prepare()

    def release_capture(self) -> None:
        """Declare every graph that captured this optimizer gone; its tables may change again.

        From torch 2.14 on it happens by itself, see ``watch_graphs``.
        """
        self._ledger.stepper.release()
