"""What every optimizer of this package adds to its torch class."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch._dynamo.decorators import skip
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fused_sched import stock
from fused_sched.engines.evaluated_step import forget_counts
from fused_sched.rules.rule import Rule, rule_of
from fused_sched.rules.tuning import Tunings

from .device_state import capturing
from .ledger import Ledger
from .loading import Loading
from .signatures import constructor

Closure = Callable[[], Any]


def _keywords(cls: type[FusedOptimizer]) -> list[inspect.Parameter]:
    """Of the constructor: the optional keys of the param groups."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(key, kind, default=value) for key, value in cls.optional.items()]


class FusedOptimizer(stock.Optimizer):
    """Base of the optimizers: one launch per step and device, hyperparameters on the device.

    A subclass is an optimizer: its constructor, as torch's, and the attributes below. See
    docs/add_optimizer.md.
    """

    states: ClassVar[Mapping[str, bool | str]] = {}
    """Names of the state tensors, and when a param group keeps them.

    True for always, or the key of the group that must not be 0 or False:
    ``{"momentum_buffer": "momentum"}``. Each has the param's shape and starts at
    ``initial_state(name, group)``; ``rule`` gets them in this order.
    """
    optional: ClassVar[Mapping[str, float]] = {}
    """Keys that a param group may lack, or hold None under, and what counts then.

    ``{"cautious_weight_decay": False}``. Each is a keyword of the constructor; it appears in the
    groups only where it is given another value, so that they stay equal to torch's. A checkpoint
    without it leaves it as it is.
    """
    recurrences: ClassVar[Sequence[str]] = ()
    """Names of numbers that a param's steps hand on, each in ``state`` too: ``("mu_product",)``.

    ``coefficients`` takes them right before ``step`` and returns their new values last. They are
    float64 on the device, float32 in ``state``, and start at ``initial_state(name, group)``.
    """
    group_recurrences: ClassVar[Sequence[str]] = ()
    """The same of a param group: ``("weight_sum",)`` is a key of it, which the constructor gives.

    They come after ``recurrences``, and go on at each step of the group, whichever of its params
    have a gradient. On the device each param has its own copy.
    """
    counts_steps: ClassVar[bool] = True
    """Whether ``state`` has torch's ``step``: how many steps the param has made, on the CPU.

    It lies on the param's device with ``fused=True`` or ``capturable=True``, as torch's does.
    """
    native_cuda: ClassVar[bool] = False
    """Whether the native engine has kernels for it on CUDA; of the package's own classes alone.

    The compiler takes half a minute for each. The Triton engine runs every rule there.
    """
    tunings: ClassVar[Tunings] = {}
    """How Triton compiles the step, where the default is not the best.

    Tuning by the bits of the widest array, or by (bits, compute capability);
    ``python -m benchmarks.tuning`` measures and prints rows. A subclass with a rule of its own
    states its own.
    """

    coefficients: ClassVar[Callable[..., Any]]
    """``coefficients(lr, ..., step)``: the numbers that all elements of a group share at a step.

    In float64, once per launch and group. The parameters are keys of the param groups, ``lr``
    first; ``beta1`` is the first of ``betas``, ``log_beta1`` its logarithm, for
    ``bias_correction``. ``step`` counts from 1. It returns a tuple.
    """
    rule: ClassVar[Callable[..., Any]]
    """``rule(p, g, *states, c)``: the new ``p`` and states of one element.

    In float32 (float64 for float64 params). ``c`` is what ``coefficients`` returned. A state that a
    group does not keep reads as 0, and what is returned for it is dropped.
    """

    _rule: ClassVar[Rule]
    _LEDGER = "_fused_sched_ledger"
    _cached: Any = None

    watch_graphs: bool = True
    """Whether torch's hooks on a CUDA graph (torch >= 2.14) report its replays and its end.

    Reading the lr after a replay then asks no device, and ``release_capture()`` happens by itself.
    Assign False before a capture whose graph is launched otherwise than by ``CUDAGraph.replay()``.
    """

    def initial_state(self, name: str, group: Mapping[str, Any]) -> float:
        """What a state starts at: 0, unless overridden; of a complex param in both parts."""
        return 0.0

    def check_step(self) -> None:
        """Raise if no step is possible now; a step that no cached launch makes asks.

        Assigning to a key of a param group other than lr makes the next step such a one.
        """

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError for options of a new param group that do not go together."""

    # -- construction, copies, checkpoints -------------------------------------------------------

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Read the rule, and show torch's signature.

        Raises:
            RuleError: the rule is no arithmetic that a kernel knows; names the line.
        """
        super().__init_subclass__(**kwargs)
        rule = rule_of(cls)
        if rule is not None:
            cls._rule = rule
        cls.__signature__ = constructor(cls, *_keywords(cls))  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__[self._LEDGER] = Ledger(self)
        asked = self._rule.asked(kwargs)
        options = {key: value for key, value in kwargs.items() if key in self._rule.optional}
        super().__init__(*args, **{k: v for k, v in kwargs.items() if k not in options})
        self._ask({key: options[key] for key in asked})
        for group in self.param_groups:
            self.check_group(group)
        self._rule.check_keys(self.param_groups)
        self._ledger.placement.adopt()

    def _ask(self, options: Mapping[str, Any]) -> None:
        """Make optional keys part of the defaults, and of the groups that do not have them."""
        self.defaults.update(options)
        for group in self.param_groups:
            for key, value in options.items():
                group.setdefault(key, value)

    @property
    def _ledger(self) -> Ledger:
        # Through getattr: wrappers (Lightning, Accelerate) forward what they do not have.
        return getattr(self, self._LEDGER)

    @property
    def state(self) -> Any:
        """torch's ``state``, with current step counts."""
        return self._ledger.show_state()

    @state.setter
    def state(self, value: Any) -> None:
        self._ledger.mirror.account.drop_cached()
        state = value if isinstance(value, defaultdict) else defaultdict(dict, value)
        self._ledger.keeper.replace(state, exposed=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if self._LEDGER not in self.__dict__:
            self.__dict__[self._LEDGER] = Ledger(self)
        state = dict(state)
        if "state" in state:
            self.state = state.pop("state")
        super().__setstate__(state)
        ledger = self._ledger
        ledger.placement.adopt()
        if ledger.loading is not None:
            ledger.loading.take()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; raises while a captured graph uses the tables."""
        ledger = self._ledger
        ledger.mirror.refuse_if_captured("add_param_group()")
        if isinstance(param_group, dict):  # torch refuses anything else, below
            self.check_group({**self.defaults, **param_group})
        ledger.mirror.refresh()  # the schedules have moved only the groups that were there
        super().add_param_group(param_group)
        if ledger.mirror.host.device_states:
            ledger.placement.adopt()

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
        ledger.mirror.account.refresh_clock()
        # Not self: a wrapper (Lightning's, Accelerate's) must not be loaded.
        optimizer = ledger.mirror.host.optimizer
        ledger.loading = loading = Loading(ledger.mirror, ledger.keeper, ledger.stepper)
        handle = optimizer.register_load_state_dict_pre_hook(loading.see)
        try:
            with loading.around():
                super(FusedOptimizer, optimizer).load_state_dict(state_dict)
            forget_counts(optimizer)
        finally:
            ledger.loading = None
            handle.remove()

    # -- the step --------------------------------------------------------------------------------

    def _update(self, closure: Closure | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        cached = self._cached
        if cached is not None and cached.update(self):  # hooks and profiler have seen the step
            return loss
        records = torch.is_grad_enabled()
        torch.set_grad_enabled(False)  # a fifth of the time of torch.no_grad()
        try:
            self._ledger.stepper.step()
        finally:
            torch.set_grad_enabled(records)
        return loss

    _hooked_update = stock.Optimizer.profile_hook_step(_update)

    def _has_listeners(self) -> bool:
        """Whether a hook or the profiler must see the step."""
        return bool(
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd.profiler._is_profiler_enabled  # type: ignore[attr-defined]
        )

    @torch.compiler.disable
    def _full_step(self, *args: Any, **kwargs: Any) -> Any:
        self._opt_called = True
        # A subclass with a step() of its own: torch has put the hooks around that one.
        overridden = type(self).step is not FusedOptimizer.step
        unseen = overridden or not self._has_listeners()
        update = self._update if unseen else self._hooked_update
        return update(*args, **kwargs)

    @skip
    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Update every param that has a gradient, and advance the fused schedules.

        Args:
            closure: reevaluates the model and returns the loss, as for torch.

        Returns:
            The closure's value, or None.
        """
        cached = self._cached
        if cached is not None and not kwargs and args in ((), (None,)) and cached.step(self):
            return None
        return self._full_step(*args, **kwargs)  # as they came: the hooks see them

    # torch would wrap step() for its hooks, its profiler range and its schedulers' order check, at
    # 10 microseconds a call. The full step does all three; the cached one runs where none is asked.
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
