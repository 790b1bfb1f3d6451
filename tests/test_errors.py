"""Bad and odd input: our classes end as the installed torch's do.

Each row is run on both libraries. Both raise the same type with the same message, or neither
does and both give the same values; both warn the same. No message is written down here.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import Optimizer

import fused_sched
from tests.cases import PROMISE, TOLERANCES, inverse_sqrt, scheduler_class

LR = 0.1


@dataclass(frozen=True)
class Library:
    """Torch's optimizers and schedulers, or ours."""

    optim: ModuleType
    lr_scheduler: ModuleType

    def __getattr__(self, scheduler: str) -> type:
        return scheduler_class(self.lr_scheduler, scheduler)

    def sgd(self, groups: int = 1, **kwargs: Any) -> Optimizer:
        """SGD with lr 0.1 in the first group, 0.2 in the second, and so on."""
        return self.optim.SGD(
            [{"params": [param()], "lr": LR * (i + 1)} for i in range(groups)], **kwargs
        )

    def adam(self, **kwargs: Any) -> Optimizer:
        return self.optim.Adam([param()], lr=LR, **kwargs)


TORCH = Library(torch.optim, torch.optim.lr_scheduler)
OURS = Library(fused_sched.optim, fused_sched.lr_scheduler)

Attempt = Callable[[Library], list]


def param(*shape: int) -> Parameter:
    made = Parameter(torch.ones(shape or (1,)))
    made.grad = torch.ones_like(made)
    return made


# -- what a row does -----------------------------------------------------------------------------


def lrs(opt: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in opt.param_groups]


def run(scheduler: Any, opt: Optimizer, steps: int, *arguments: Any) -> list[float]:
    """The lr of every group after each of the steps, the first one without a step."""
    seen = lrs(opt)
    for _ in range(steps):
        opt.step()
        scheduler.step(*arguments)
        seen += lrs(opt)
    return seen


def stepped(name: str, steps: int = 0, *, groups: int = 1, **kwargs: Any) -> Attempt:
    """Build the scheduler on SGD, step it, and give all lr on the way."""

    def attempt(lib: Library) -> list:
        opt = lib.sgd(groups)
        return run(getattr(lib, name)(opt, **kwargs), opt, steps)

    return attempt


def stepped_to(name: str, epoch: float, **kwargs: Any) -> Attempt:
    """Build the scheduler on SGD and call its ``step(epoch)``: the closed form where it has one."""

    def attempt(lib: Library) -> list:
        opt = lib.sgd(groups=2)
        return run(getattr(lib, name)(opt, **kwargs), opt, 1, epoch)

    return attempt


def on_not_an_optimizer(name: str, **kwargs: Any) -> Attempt:
    return lambda lib: getattr(lib, name)(NotOpt(), **kwargs)


def resumed(name: str, *, last_epoch: int, **kwargs: Any) -> Attempt:
    """Build the scheduler on groups that have an ``initial_lr``, as after a checkpoint."""

    def attempt(lib: Library) -> list:
        opt = lib.sgd(groups=2)
        for group in opt.param_groups:
            group["initial_lr"] = 2 * group["lr"]
        return run(getattr(lib, name)(opt, last_epoch=last_epoch, **kwargs), opt, 3)

    return attempt


def with_late_group(name: str, **kwargs: Any) -> Attempt:
    """Add a param group after the scheduler was built."""

    def attempt(lib: Library) -> list:
        opt = lib.sgd()
        scheduler = getattr(lib, name)(opt, **kwargs)
        opt.add_param_group({"params": [param()]})
        return run(scheduler, opt, 1)

    return attempt


class NotOpt:
    """Not an optimizer."""


class CallableFactor:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, epoch: int) -> float:
        return self.factor

    def method(self, epoch: int) -> float:
        return self.factor


def half(epoch: int) -> float:
    return 0.5**epoch


def double(epoch: int) -> float:
    return 2.0


def takes_nothing() -> float:
    return 1.0


# The least that each class needs, for the rows that every class has.
MINIMAL: dict[str, dict[str, Any]] = {
    "LambdaLR": {"lr_lambda": inverse_sqrt},
    "MultiplicativeLR": {"lr_lambda": double},
    "StepLR": {"step_size": 1},
    "MultiStepLR": {"milestones": [1, 4]},
    "ConstantLR": {"total_iters": 4},
    "LinearLR": {},
    "ExponentialLR": {"gamma": 0.5},
    "PolynomialLR": {"total_iters": 10},
    "CosineAnnealingLR": {"T_max": 4},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.5},
    "OneCycleLR": {"max_lr": 0.5, "total_steps": 20},
    "SWALR": {"swa_lr": 0.01},
}


def every_class(what: str, attempt: Callable[..., Attempt], **fixed: Any) -> Iterator[tuple]:
    for name, kwargs in MINIMAL.items():
        yield f"{name}: {what}", attempt(name, **kwargs, **fixed)


COMMON = [
    *every_class("not an Optimizer", on_not_an_optimizer),
    *every_class("last_epoch=5 without initial_lr", stepped, last_epoch=5),
    *every_class("last_epoch=3 with initial_lr", resumed, last_epoch=3),
    *every_class("step(0)", stepped_to, epoch=0),
    *every_class("step(4)", stepped_to, epoch=4),
    *every_class("param group added later", with_late_group),
    *every_class("unknown argument", stepped, no_such_argument=1),
    ("LRScheduler: instantiated", stepped("LRScheduler")),
]


# -- LambdaLR and MultiplicativeLR ---------------------------------------------------------------


def lambda_states(*callables: Any) -> Attempt:
    """What LambdaLR's state_dict keeps of the callables."""

    def attempt(lib: Library) -> list:
        scheduler = lib.LambdaLR(lib.sgd(len(callables)), list(callables))
        return [repr(scheduler.state_dict()["lr_lambdas"])]

    return attempt


def load_without_lambdas(lib: Library) -> list:
    scheduler = lib.LambdaLR(lib.sgd(), half)
    state = scheduler.state_dict()
    del state["lr_lambdas"]
    scheduler.load_state_dict(state)
    return []


def load_object_state_into_function(lib: Library) -> list:
    saved = lib.LambdaLR(lib.sgd(), CallableFactor(0.5)).state_dict()
    opt = lib.sgd()
    scheduler = lib.LambdaLR(opt, half)
    scheduler.load_state_dict(saved)
    return run(scheduler, opt, 2)


CALLABLES = [
    ("LambdaLR: wrong number of lambdas", stepped("LambdaLR", groups=2, lr_lambda=[half])),
    (
        "LambdaLR: tuple of lambdas",
        stepped("LambdaLR", 2, groups=2, lr_lambda=(half, inverse_sqrt)),
    ),
    ("LambdaLR: None", stepped("LambdaLR", lr_lambda=None)),
    ("LambdaLR: list with None", stepped("LambdaLR", groups=2, lr_lambda=[half, None])),
    ("LambdaLR: float", stepped("LambdaLR", lr_lambda=0.5)),
    ("LambdaLR: builtin class", stepped("LambdaLR", 3, lr_lambda=float)),
    ("LambdaLR: takes no argument", stepped("LambdaLR", lr_lambda=takes_nothing)),
    ("LambdaLR: nothing", stepped("LambdaLR")),
    ("LambdaLR: state of a partial", lambda_states(functools.partial(half))),
    ("LambdaLR: state of a builtin class", lambda_states(float)),
    ("LambdaLR: state of a method", lambda_states(CallableFactor(0.5).method)),
    ("LambdaLR: state of an object", lambda_states(CallableFactor(0.5), half)),
    ("LambdaLR: load without lr_lambdas", load_without_lambdas),
    ("LambdaLR: load an object's state into a function", load_object_state_into_function),
    ("MultiplicativeLR: wrong number", stepped("MultiplicativeLR", groups=2, lr_lambda=[half])),
    ("MultiplicativeLR: float", stepped("MultiplicativeLR", lr_lambda=0.5)),
    (
        "MultiplicativeLR: list with None",
        stepped("MultiplicativeLR", groups=2, lr_lambda=[half, None]),
    ),
    (
        "MultiplicativeLR: takes no argument",
        stepped("MultiplicativeLR", 1, lr_lambda=takes_nothing),
    ),
]


# -- recurrences ---------------------------------------------------------------------------------

RECURRENCES = [
    ("StepLR: step_size=0, built", stepped("StepLR", step_size=0)),
    ("StepLR: step_size=0", stepped("StepLR", 1, step_size=0)),
    ("StepLR: step_size=-2", stepped("StepLR", 4, step_size=-2)),
    ("StepLR: step_size=2.5", stepped("StepLR", 12, step_size=2.5)),
    ("StepLR: gamma=-2", stepped("StepLR", 2, step_size=1, gamma=-2)),
    ("MultiStepLR: unsorted", stepped("MultiStepLR", 9, milestones=[8, 2, 4])),
    ("MultiStepLR: int", stepped("MultiStepLR", milestones=3)),
    ("MultiStepLR: milestone 0", stepped("MultiStepLR", 2, milestones=[0, 2])),
    ("MultiStepLR: float milestone", stepped("MultiStepLR", 3, milestones=[2.0, 2.5])),
    ("ConstantLR: factor=1.1", stepped("ConstantLR", factor=1.1)),
    ("ConstantLR: factor=-0.1", stepped("ConstantLR", factor=-0.1)),
    ("ConstantLR: factor=0", stepped("ConstantLR", 3, factor=0, total_iters=3)),
    ("ConstantLR: total_iters=0", stepped("ConstantLR", 3, factor=0.5, total_iters=0)),
    ("LinearLR: start_factor=0", stepped("LinearLR", start_factor=0)),
    ("LinearLR: start_factor=1.1", stepped("LinearLR", start_factor=1.1)),
    ("LinearLR: end_factor=-0.1", stepped("LinearLR", end_factor=-0.1)),
    ("LinearLR: end_factor=1.1", stepped("LinearLR", end_factor=1.1)),
    ("LinearLR: total_iters=0", stepped("LinearLR", 3, start_factor=0.5, total_iters=0)),
    ("LinearLR: total_iters=0, step(2)", stepped_to("LinearLR", 2, total_iters=0)),
    ("LinearLR: end_factor=0", stepped("LinearLR", 5, end_factor=0, total_iters=4)),
    ("ExponentialLR: gamma=-0.5", stepped("ExponentialLR", 3, gamma=-0.5)),
    ("ExponentialLR: gamma missing", stepped("ExponentialLR")),
    ("PolynomialLR: total_iters=0", stepped("PolynomialLR", 2, total_iters=0)),
    ("PolynomialLR: total_iters=0, step(2)", stepped_to("PolynomialLR", 2, total_iters=0)),
    ("PolynomialLR: power=-1", stepped("PolynomialLR", 3, total_iters=3, power=-1)),
    ("CosineAnnealingLR: T_max=0, built", stepped("CosineAnnealingLR", T_max=0)),
    ("CosineAnnealingLR: T_max=0", stepped("CosineAnnealingLR", 1, T_max=0)),
    ("CosineAnnealingLR: T_max=-5", stepped("CosineAnnealingLR", 4, T_max=-5)),
    ("CosineAnnealingLR: T_max=2.5", stepped("CosineAnnealingLR", 8, T_max=2.5)),
    ("CosineAnnealingLR: T_max=1", stepped("CosineAnnealingLR", 4, T_max=1)),
    ("CosineAnnealingLR: eta_min > lr", stepped("CosineAnnealingLR", 9, T_max=4, eta_min=0.5)),
]


# -- CosineAnnealingWarmRestarts -----------------------------------------------------------------


def restarts(*epochs: float, **kwargs: Any) -> Attempt:
    """``step(epoch)`` for each of the epochs, on a second group as well."""

    def attempt(lib: Library) -> list:
        opt = lib.sgd(groups=2)
        scheduler = lib.CosineAnnealingWarmRestarts(opt, **kwargs)
        return [value for epoch in epochs for value in run(scheduler, opt, 1, epoch)]

    return attempt


CAWR = "CosineAnnealingWarmRestarts"

WARM_RESTARTS = [
    (f"{CAWR}: T_0=0", stepped(CAWR, T_0=0)),
    (f"{CAWR}: T_0=2.5", stepped(CAWR, T_0=2.5)),
    (f"{CAWR}: T_0='a'", stepped(CAWR, T_0="a")),
    (f"{CAWR}: T_mult=0", stepped(CAWR, T_0=3, T_mult=0)),
    (f"{CAWR}: T_mult=1.5", stepped(CAWR, T_0=3, T_mult=1.5)),
    (f"{CAWR}: eta_min a tensor", stepped(CAWR, T_0=3, eta_min=torch.tensor(0.0))),
    (f"{CAWR}: step(-1)", restarts(-1, T_0=3)),
    (f"{CAWR}: fractional epochs", restarts(0.5, 2.75, 3.25, 9.5, T_0=3, T_mult=2)),
    # torch's int(log(...)) is one restart behind at these epochs.
    (f"{CAWR}: rounding log, 10 3", restarts(1209, 1210, 1211, T_0=10, T_mult=3)),
    (f"{CAWR}: rounding log, 5 3", restarts(605, T_0=5, T_mult=3)),
    (f"{CAWR}: rounding log, 1 3", restarts(121, T_0=1, T_mult=3)),
    (f"{CAWR}: rounding log, 1 10", restarts(111, T_0=1, T_mult=10)),
]


# -- OneCycleLR and CyclicLR ---------------------------------------------------------------------


def on_adadelta(name: str, **kwargs: Any) -> Attempt:
    """An optimizer of torch's that has neither momentum nor betas."""
    return lambda lib: getattr(lib, name)(torch.optim.Adadelta([param()]), **kwargs)


def cycled_momentum(lib: Library) -> list:
    opt = lib.sgd()
    lib.CyclicLR(opt, base_lr=0.1, max_lr=0.5)
    return [opt.param_groups[0]["momentum"]]


def cycled_betas(lib: Library) -> list:
    opt = lib.adam()
    lib.CyclicLR(opt, base_lr=0.1, max_lr=0.5)
    return list(opt.param_groups[0]["betas"])


def load_cyclic_twice(lib: Library) -> list:
    """Torch's load takes a key out of the caller's dict."""
    scheduler = lib.CyclicLR(lib.sgd(), base_lr=0.1, max_lr=0.5)
    state = scheduler.state_dict()
    scheduler.load_state_dict(state)
    scheduler.load_state_dict(state)
    return []


one_cycle = functools.partial(stepped, "OneCycleLR")
cyclic = functools.partial(stepped, "CyclicLR")
five_steps = functools.partial(stepped, "OneCycleLR", max_lr=0.1, total_steps=5)

CYCLES = [
    ("OneCycleLR: no length", one_cycle(max_lr=0.1)),
    ("OneCycleLR: only epochs", one_cycle(max_lr=0.1, epochs=2)),
    ("OneCycleLR: only steps_per_epoch", one_cycle(max_lr=0.1, steps_per_epoch=2)),
    ("OneCycleLR: total_steps=0", one_cycle(max_lr=0.1, total_steps=0)),
    ("OneCycleLR: total_steps=1.5", one_cycle(max_lr=0.1, total_steps=1.5)),
    ("OneCycleLR: epochs=0", one_cycle(max_lr=0.1, epochs=0, steps_per_epoch=2)),
    ("OneCycleLR: steps_per_epoch=-1", one_cycle(max_lr=0.1, epochs=2, steps_per_epoch=-1)),
    ("OneCycleLR: pct_start=1.1", one_cycle(max_lr=0.1, total_steps=5, pct_start=1.1)),
    ("OneCycleLR: pct_start=1", one_cycle(max_lr=0.1, total_steps=5, pct_start=1)),
    ("OneCycleLR: pct_start=0.0", one_cycle(max_lr=0.1, total_steps=5, pct_start=0.0)),
    ("OneCycleLR: total_steps=1", one_cycle(max_lr=0.1, total_steps=1)),
    ("OneCycleLR: total_steps=3", one_cycle(2, max_lr=0.1, total_steps=3)),
    ("OneCycleLR: anneal CATS", one_cycle(max_lr=0.1, total_steps=5, anneal_strategy="CATS")),
    ("OneCycleLR: max_lr too long", one_cycle(max_lr=[0.1, 0.2], total_steps=5)),
    (
        "OneCycleLR: base_momentum too long",
        one_cycle(max_lr=0.1, total_steps=5, base_momentum=[0.8, 0.9]),
    ),
    (
        "OneCycleLR: max_momentum too long",
        one_cycle(max_lr=0.1, total_steps=5, max_momentum=[0.8, 0.9]),
    ),
    ("OneCycleLR: no momentum", on_adadelta("OneCycleLR", max_lr=0.1, total_steps=5)),
    ("OneCycleLR: last step", five_steps(4)),
    ("OneCycleLR: one past the last", five_steps(5)),
    ("OneCycleLR: two past the last", five_steps(6)),
    ("OneCycleLR: step(total_steps + 1)", stepped_to("OneCycleLR", 6, max_lr=0.1, total_steps=5)),
    ("CyclicLR: mode CATS", cyclic(base_lr=0.1, max_lr=0.5, mode="CATS")),
    (
        "CyclicLR: mode CATS with scale_fn",
        cyclic(2, base_lr=0.1, max_lr=0.5, mode="CATS", scale_fn=half),
    ),
    ("CyclicLR: base_lr too long", cyclic(base_lr=[0.1, 0.2], max_lr=0.5)),
    ("CyclicLR: max_lr too long", cyclic(base_lr=0.1, max_lr=[0.5, 0.6])),
    (
        "CyclicLR: base_momentum too long",
        cyclic(base_lr=0.1, max_lr=0.5, base_momentum=[0.8, 0.9]),
    ),
    ("CyclicLR: max_momentum too long", cyclic(base_lr=0.1, max_lr=0.5, max_momentum=[0.8, 0.9])),
    ("CyclicLR: no momentum", on_adadelta("CyclicLR", base_lr=0.1, max_lr=0.5)),
    ("CyclicLR: momentum of SGD without", cycled_momentum),
    ("CyclicLR: betas of Adam", cycled_betas),
    ("CyclicLR: step_size_up=0", cyclic(base_lr=0.1, max_lr=0.5, step_size_up=0)),
    (
        "CyclicLR: both step sizes 0",
        cyclic(base_lr=0.1, max_lr=0.5, step_size_up=0, step_size_down=0),
    ),
    (
        "CyclicLR: step_size_down=0",
        cyclic(7, base_lr=0.1, max_lr=0.5, step_size_up=6, step_size_down=0),
    ),
    (
        "CyclicLR: scale_mode CATS",
        cyclic(3, base_lr=0.1, max_lr=0.5, step_size_up=4, scale_mode="CATS", scale_fn=half),
    ),
    ("CyclicLR: state loaded twice", load_cyclic_twice),
]


# -- ReduceLROnPlateau ---------------------------------------------------------------------------


def plateau(*arguments: Any, steps: int = 1, **kwargs: Any) -> Attempt:
    """Build it on SGD and call ``step`` with the arguments."""

    def attempt(lib: Library) -> list:
        opt = lib.sgd()
        scheduler = lib.ReduceLROnPlateau(opt, **kwargs)
        return [*run(scheduler, opt, steps, *arguments), scheduler.num_bad_epochs]

    return attempt


def plateau_get_lr(lib: Library) -> list:
    return lib.ReduceLROnPlateau(lib.sgd()).get_lr()


def plateau_late_group(**kwargs: Any) -> Attempt:
    def attempt(lib: Library) -> list:
        opt = lib.sgd()
        scheduler = lib.ReduceLROnPlateau(opt, patience=0, **kwargs)
        opt.add_param_group({"params": [param()]})
        return run(scheduler, opt, 2, 1.0)

    return attempt


PLATEAU = [
    ("ReduceLROnPlateau: not an Optimizer", on_not_an_optimizer("ReduceLROnPlateau")),
    ("ReduceLROnPlateau: factor=1.0", plateau(steps=0, factor=1.0)),
    ("ReduceLROnPlateau: mode foo", plateau(steps=0, mode="foo")),
    ("ReduceLROnPlateau: threshold_mode foo", plateau(steps=0, threshold_mode="foo")),
    ("ReduceLROnPlateau: mode None", plateau(steps=0, mode=None)),
    ("ReduceLROnPlateau: min_lr too long", plateau(steps=0, min_lr=[0.1, 0.2])),
    ("ReduceLROnPlateau: step() without metrics", plateau()),
    ("ReduceLROnPlateau: step(None)", plateau(None)),
    ("ReduceLROnPlateau: step('a')", plateau("a")),
    ("ReduceLROnPlateau: step(two elements)", plateau(torch.ones(2))),
    ("ReduceLROnPlateau: step(one element)", plateau(torch.ones(1), steps=3, patience=0)),
    ("ReduceLROnPlateau: step(metric, epoch)", plateau(1.0, 3)),
    ("ReduceLROnPlateau: NaN counts as bad", plateau(float("nan"), steps=3, patience=1)),
    ("ReduceLROnPlateau: get_lr()", plateau_get_lr),
    ("ReduceLROnPlateau: param group added later", plateau_late_group()),
    ("ReduceLROnPlateau: added later, list of min_lr", plateau_late_group(min_lr=[0.01])),
]


# -- SequentialLR and ChainedScheduler -----------------------------------------------------------


def sequential(milestones: list[int], *names: str, steps: int = 0) -> Attempt:
    def attempt(lib: Library) -> list:
        opt = lib.sgd(groups=2)
        children = [getattr(lib, name)(opt, **MINIMAL[name]) for name in names]
        return run(lib.SequentialLR(opt, children, milestones), opt, steps)

    return attempt


def sequential_of(*children: Callable[[Library, Optimizer], Any]) -> Attempt:
    """A SequentialLR that switches at steps 1, 2, ...; two steps of it."""

    def attempt(lib: Library) -> list:
        opt = lib.sgd()
        made = [child(lib, opt) for child in children]
        return run(lib.SequentialLR(opt, made, list(range(1, len(made)))), opt, 2)

    return attempt


def chained_of(*children: Callable[[Library, Optimizer], Any]) -> Attempt:
    def attempt(lib: Library) -> list:
        opt = lib.sgd()
        return run(lib.ChainedScheduler([child(lib, opt) for child in children]), opt, 2)

    return attempt


def exponential(lib: Library, opt: Optimizer) -> Any:
    return lib.ExponentialLR(opt, gamma=0.5)


def plateau_child(lib: Library, opt: Optimizer) -> Any:
    return lib.ReduceLROnPlateau(opt)


def foreign_child(lib: Library, opt: Optimizer) -> Any:
    """A scheduler of another optimizer."""
    return lib.StepLR(lib.sgd(), step_size=1)


def not_a_scheduler(lib: Library, opt: Optimizer) -> Any:
    return object()


def chained_child(lib: Library, opt: Optimizer) -> Any:
    return lib.ChainedScheduler([exponential(lib, opt)])


def sequential_child(lib: Library, opt: Optimizer) -> Any:
    return lib.SequentialLR(opt, [exponential(lib, opt), exponential(lib, opt)], [1])


def sequential_on_not_an_optimizer(lib: Library) -> Any:
    return lib.SequentialLR(NotOpt(), [lib.StepLR(lib.sgd(), step_size=1)], [])


def chained_of_tuple(lib: Library) -> list:
    opt = lib.sgd()
    return run(lib.ChainedScheduler((exponential(lib, opt), exponential(lib, opt))), opt, 2)


def chained_on_other_optimizer(lib: Library) -> Any:
    return lib.ChainedScheduler([exponential(lib, lib.sgd())], optimizer=lib.sgd())


def call(method: str, composite: Callable[[Library, Optimizer], Any], *arguments: Any) -> Attempt:
    """Call one method of a composite."""
    return lambda lib: getattr(composite(lib, lib.sgd()), method)(*arguments)


COMPOSITES = [
    ("SequentialLR: empty", sequential([])),
    ("SequentialLR: not an Optimizer", sequential_on_not_an_optimizer),
    ("SequentialLR: child without optimizer", sequential_of(not_a_scheduler)),
    ("SequentialLR: plateau inside", sequential_of(exponential, plateau_child)),
    ("SequentialLR: other optimizer", sequential_of(exponential, foreign_child)),
    ("SequentialLR: too many milestones", sequential([1], "StepLR")),
    ("SequentialLR: too few milestones", sequential([], "StepLR", "ExponentialLR")),
    (
        "SequentialLR: unsorted milestones",
        sequential([4, 2], "ExponentialLR", "LinearLR", "StepLR", steps=6),
    ),
    (
        "SequentialLR: equal milestones",
        sequential([2, 2], "ExponentialLR", "LinearLR", "StepLR", steps=5),
    ),
    ("SequentialLR: OneCycleLR later", sequential([3], "LinearLR", "OneCycleLR", steps=9)),
    ("SequentialLR: milestone 0", sequential([0], "ExponentialLR", "LinearLR", steps=3)),
    ("SequentialLR: step(epoch)", call("step", sequential_child, 1)),
    ("SequentialLR: get_lr()", call("get_lr", sequential_child)),
    ("SequentialLR: chained first", sequential_of(chained_child, exponential)),
    ("SequentialLR: chained later", sequential_of(exponential, chained_child)),
    ("SequentialLR: sequential first", sequential_of(sequential_child, exponential)),
    ("SequentialLR: sequential later", sequential_of(exponential, sequential_child)),
    ("ChainedScheduler: empty", chained_of()),
    ("ChainedScheduler: first without optimizer", chained_of(not_a_scheduler)),
    ("ChainedScheduler: second without optimizer", chained_of(exponential, not_a_scheduler)),
    ("ChainedScheduler: plateau inside", chained_of(plateau_child)),
    ("ChainedScheduler: other optimizer", chained_of(exponential, foreign_child)),
    ("ChainedScheduler: optimizer of its own", chained_on_other_optimizer),
    ("ChainedScheduler: tuple", chained_of_tuple),
    ("ChainedScheduler: chained inside", chained_of(chained_child, exponential)),
    ("ChainedScheduler: step(epoch)", call("step", chained_child, 1)),
    ("ChainedScheduler: last_epoch", call("__getattribute__", chained_child, "last_epoch")),
]


# -- SWALR ---------------------------------------------------------------------------------------

SWA = [
    ("SWALR: strategy", stepped("SWALR", swa_lr=0.01, anneal_strategy="x")),
    ("SWALR: anneal_epochs=-1", stepped("SWALR", swa_lr=0.01, anneal_epochs=-1)),
    ("SWALR: anneal_epochs=1.7", stepped("SWALR", swa_lr=0.01, anneal_epochs=1.7)),
    ("SWALR: swa_lr too long", stepped("SWALR", swa_lr=[0.01, 0.02])),
    ("SWALR: anneal_epochs=0", stepped("SWALR", 2, swa_lr=0.01, anneal_epochs=0)),
]


# -- several schedulers, warnings, lr as a tensor ------------------------------------------------


def second_scheduler(lib: Library) -> list:
    """It starts from the initial_lr of the first."""
    opt = lib.sgd()
    first = exponential(lib, opt)
    return [*run(first, opt, 2), *run(lib.LambdaLR(opt, half), opt, 2)]


def get_lr_outside_step(lib: Library) -> list:
    return exponential(lib, lib.sgd()).get_lr()


def scheduler_before_optimizer(lib: Library) -> list:
    opt = lib.sgd()
    exponential(lib, opt).step()
    return lrs(opt)


def overridden_step(lib: Library) -> list:
    opt = lib.sgd()
    scheduler = exponential(lib, opt)
    opt.step = functools.partial(type(opt).step, opt)
    opt.step()
    scheduler.step()
    return lrs(opt)


def lr_that_requires_grad(lib: Library) -> list:
    lr = torch.tensor(LR, requires_grad=True)
    return run(exponential(lib, opt := lib.optim.SGD([param()], lr=lr)), opt, 1)


def tensor_lr(lib: Library) -> list:
    """The tensor stays in the group and is written in place."""
    lr = torch.tensor(LR, dtype=torch.float64)
    opt = lib.optim.SGD([param()], lr=lr)
    scheduler = exponential(lib, opt)
    return [*run(scheduler, opt, 3), opt.param_groups[0]["lr"] is lr, float(lr)]


MIXED = [
    ("second scheduler on one optimizer", second_scheduler),
    ("get_lr() outside step", get_lr_outside_step),
    ("scheduler.step() before optimizer.step()", scheduler_before_optimizer),
    ("optimizer.step overridden", overridden_step),
    ("lr tensor that requires grad", lr_that_requires_grad),
    ("lr tensor", tensor_lr),
]


# -- optimizers ----------------------------------------------------------------------------------


def built(name: str, params: Callable[[], Any] = lambda: [param()], **kwargs: Any) -> Attempt:
    """Build the optimizer, step it once, and give what the first param has become."""

    def attempt(lib: Library) -> list:
        opt = getattr(lib.optim, name)(params(), **kwargs)
        opt.step()
        return opt.param_groups[0]["params"][0].tolist()

    return attempt


def listed_betas(name: str) -> Attempt:
    """What kind of sequence a list of betas is and becomes, by a step and by a schedule."""

    def attempt(lib: Library) -> list[str]:
        opt = getattr(lib.optim, name)([param()], betas=[0.9, 0.99])
        (group,) = opt.param_groups
        kinds = [str(group["betas"])]
        opt.step()
        kinds.append(str(group["betas"]))
        group["betas"] = [0.8, 0.99]
        scheduler = lib.CyclicLR(opt, 0.1, 0.2, base_momentum=0.8, max_momentum=0.8)
        opt.step()
        kinds.append(str(group["betas"]))
        scheduler.step()
        return [*kinds, str(group["betas"])]

    return attempt


def constructed(name: str, params: Callable[[], Any], **kwargs: Any) -> Attempt:
    """Build the optimizer, and give its group's other values."""

    def attempt(lib: Library) -> list:
        (group,) = getattr(lib.optim, name)(params(), **kwargs).param_groups
        return [f"{key}={value}" for key, value in group.items() if key != "params"]

    return attempt


def added(*more: Callable[[Optimizer], Any]) -> Attempt:
    """Call ``add_param_group`` with what each function makes of the optimizer."""

    def attempt(lib: Library) -> list:
        opt = lib.sgd()
        for group in more:
            opt.add_param_group(group(opt))
        return [len(group["params"]) for group in opt.param_groups]

    return attempt


def loaded(make: Callable[[Library], Optimizer]) -> Attempt:
    """Load another optimizer's state_dict into SGD with one param."""

    def attempt(lib: Library) -> list:
        opt = lib.sgd()
        opt.load_state_dict(make(lib).state_dict())
        return lrs(opt)

    return attempt


def two_params(lib: Library) -> Optimizer:
    return lib.optim.SGD([param(), param()], lr=LR)


def non_leaf() -> list:
    return [param() * 2]


def duplicate() -> list:
    return [param()] * 2


def duplicate_groups() -> list[dict]:
    return [{"params": [same]} for same in duplicate()]


def step_with_closure(lib: Library) -> list:
    """The closure runs, and its value comes back."""
    return [lib.sgd().step(lambda: 3.0)]


def every_optimizer(what: str, attempt: Callable[..., Attempt], **kwargs: Any) -> Iterator[tuple]:
    for name in ("SGD", "Adam", "AdamW"):
        yield f"{name}: {what}", attempt(name, **kwargs)


def every_adam(what: str, **kwargs: Any) -> Iterator[tuple]:
    for name in ("Adam", "AdamW"):
        yield f"{name}: {what}", built(name, **kwargs)


OPTIMIZER_INPUTS = [
    *every_optimizer("lr=-0.1", built, lr=-0.1),
    *every_optimizer("lr=nan", built, lr=float("nan")),
    *every_optimizer("lr='a'", built, lr="a"),
    *every_optimizer("lr tensor of two", built, lr=torch.ones(2)),
    *every_optimizer("lr tensor of shape (1, 1)", built, lr=torch.full((1, 1), 0.5)),
    *every_optimizer("lr tensor, negative", built, lr=torch.tensor(-0.1)),
    *every_optimizer("lr=0", built, lr=0.0),
    *every_optimizer("weight_decay=-0.1", built, weight_decay=-0.1),
    *every_optimizer("unknown argument", built, no_such_argument=1),
    *every_optimizer("fused and foreach", built, fused=True, foreach=True),
    *every_optimizer("fused and differentiable", built, fused=True, differentiable=True),
    *every_optimizer("no params", built, params=list),
    *every_optimizer("a tensor for params", built, params=lambda: torch.ones(2)),
    *every_optimizer("a set", built, params=lambda: {param()}),
    *every_optimizer("a set of params", built, params=lambda: [{"params": {param()}}]),
    *every_optimizer("a float among params", built, params=lambda: [param(), 1.0]),
    *every_optimizer("a non-leaf param", built, params=non_leaf),
    *every_optimizer("the same param twice", constructed, params=duplicate),
    *every_optimizer("the same param in two groups", built, params=duplicate_groups),
    *every_optimizer("a group without params", built, params=lambda: [{"lr": 0.1}]),
    *every_optimizer("half of the params named", built, params=lambda: [("a", param()), param()]),
    ("SGD: momentum=-0.1", built("SGD", momentum=-0.1)),
    ("SGD: nesterov without momentum", built("SGD", nesterov=True)),
    (
        "SGD: nesterov with dampening",
        built("SGD", momentum=0.9, dampening=0.1, nesterov=True),
    ),
    *every_adam("eps=-1", eps=-1.0),
    *every_adam("beta1=1", betas=(1.0, 0.9)),
    *every_adam("beta1=-0.1", betas=(-0.1, 0.9)),
    *every_adam("beta2=1", betas=(0.9, 1.0)),
    *every_adam("one beta", betas=(0.9,)),
    *every_adam("betas of mixed types", betas=(0.9, torch.tensor(0.99))),
    *every_adam("int beta", betas=(0, 0.99)),
    ("Adam: a list for betas", listed_betas("Adam")),
    ("AdamW: a list for betas", listed_betas("AdamW")),
    *every_adam("beta tensors of two", betas=(torch.ones(2) / 2, torch.ones(2) / 2)),
    *every_adam("lr tensor with foreach", lr=torch.tensor(0.1), foreach=True),
    ("add_param_group: list", added(lambda opt: [param()])),
    ("add_param_group: no params", added(lambda opt: {"lr": 0.1})),
    ("add_param_group: a set", added(lambda opt: {"params": {param()}})),
    (
        "add_param_group: a param it has",
        added(lambda opt: {"params": opt.param_groups[0]["params"]}),
    ),
    ("add_param_group: a non-leaf", added(lambda opt: {"params": non_leaf()})),
    ("add_param_group: a tensor", added(lambda opt: {"params": param()})),
    ("add_param_group: empty", added(lambda opt: {"params": []})),
    ("load_state_dict: more groups", loaded(lambda lib: lib.sgd(groups=2))),
    ("load_state_dict: more params", loaded(two_params)),
    ("step: closure", step_with_closure),
]


# -- the comparison ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    error: type[BaseException] | None
    message: str
    warned: list[tuple[type[Warning], str]]
    values: list

    def numbers(self) -> list:
        return [value for value in self.values if isinstance(value, (int, float))]

    def facts(self) -> list:
        return [value for value in self.values if not isinstance(value, (int, float))]


def outcome(attempt: Attempt, lib: Library) -> Outcome:
    error, values = None, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            values = attempt(lib)
        except Exception as raised:
            error = raised
    warned = [(warning.category, str(warning.message)) for warning in caught]
    return Outcome(error and type(error), str(error), warned, values)


SCHEDULER_INPUTS = [
    *COMMON,
    *CALLABLES,
    *RECURRENCES,
    *WARM_RESTARTS,
    *CYCLES,
    *PLATEAU,
    *COMPOSITES,
    *SWA,
    *MIXED,
]


def over(inputs: list[tuple[str, Attempt]]) -> Any:
    return pytest.mark.parametrize(
        "attempt", [attempt for _, attempt in inputs], ids=[id for id, _ in inputs]
    )


def check(attempt: Attempt, rtol: float, atol: float) -> None:
    ours, torchs = outcome(attempt, OURS), outcome(attempt, TORCH)
    assert (ours.error, ours.message) == (torchs.error, torchs.message)
    assert ours.warned == torchs.warned
    assert ours.facts() == torchs.facts()
    assert ours.numbers() == pytest.approx(torchs.numbers(), rel=rtol, abs=atol, nan_ok=True)


@over(SCHEDULER_INPUTS)
def test_odd_scheduler_input_ends_as_in_torch(attempt):
    check(attempt, rtol=PROMISE, atol=PROMISE * LR)


@over(OPTIMIZER_INPUTS)
def test_odd_optimizer_input_ends_as_in_torch(attempt):
    check(attempt, **vars(TOLERANCES[torch.float32]))
