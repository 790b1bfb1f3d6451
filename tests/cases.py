"""The tables that the tests share: optimizers, schedulers, shapes, tolerances.

A new optimizer or scheduler is one more row here. Everything a test must know about a row is in
the row, so that test bodies have no branch per algorithm.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, swa_utils

from fused_sched.tables import layout
from tests import references, schedule_free_reference

# -- optimizers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptimizerCase:
    """One optimizer with one choice of options; ``build`` makes it from torch's module or ours.

    Args:
        reference: the same in plain torch, where torch lacks the class or an option.
        interpreted: it also runs in Triton's interpreter, which takes twenty times as long.
    """

    name: str
    kwargs: dict[str, Any]
    id: str
    reference: Callable[..., Optimizer] | None = None
    interpreted: bool = True

    def build(self, module: ModuleType, params: Any, **overrides: Any) -> Optimizer:
        """``module`` is ``torch.optim`` or ``fused_sched.optim``."""
        if self.reference is not None:  # torch's choices of its own code: here there is one
            overrides = {k: v for k, v in overrides.items() if k not in ("foreach", "fused")}
        theirs = module is torch.optim and self.reference is not None
        make = self.reference if theirs else getattr(module, self.name)
        opt = make(params, **self.kwargs | overrides)
        if hasattr(opt, "train"):  # it has two modes
            opt.train()
        return opt

    def takes(self, option: str) -> bool:
        """Whether the constructor knows an option."""
        known = self.reference or getattr(torch.optim, self.name)
        return option in inspect.signature(known).parameters


def _row(name: str, id: str, reference: Any = None, **kwargs: Any) -> OptimizerCase:
    return OptimizerCase(name, kwargs, f"{name}-{id}", reference)


def _rows(
    name: str, base: dict[str, Any], *more: dict[str, Any], reference: Any = None
) -> list[OptimizerCase]:
    """The defaults, ``base``, it with each set of options in ``more``, and a combination of all.

    Triton's interpreter runs the first and the last. Of two sets of one option the first is in the
    combination.
    """
    combo = {key: value for options in reversed(more) for key, value in options.items()}
    between = [
        OptimizerCase(name, base | options, f"{name}-{_told(options)}", reference, False)
        for options in (base, *more)
    ]
    default = _row(name, "default", reference)
    return [default, *between, _row(name, "combo", reference, **base | combo)]


def _told(options: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}".replace(" ", "") for key, value in options.items())


# The last row of a name is the combination of as many options as go together.
OPTIMIZERS = [
    _row("SGD", "plain", lr=0.05),
    _row("SGD", "momentum", lr=0.05, momentum=0.9),
    _row("SGD", "dampening", lr=0.05, momentum=0.9, dampening=0.3),
    _row("SGD", "nesterov", lr=0.05, momentum=0.9, nesterov=True),
    _row("SGD", "weight_decay", lr=0.05, weight_decay=0.1),
    _row("SGD", "maximize", lr=0.05, maximize=True),
    _row("SGD", "momentum-weight_decay", lr=0.05, momentum=0.9, weight_decay=0.1),
    _row("SGD", "negative-dampening", lr=0.05, momentum=0.5, dampening=-0.5, maximize=True),
    _row("SGD", "nesterov-combo", lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.1),
    _row(
        "SGD",
        "combo",
        lr=0.05,
        momentum=0.9,
        dampening=0.3,
        weight_decay=0.1,
        maximize=True,
    ),
    _row("Adam", "default"),
    _row("Adam", "betas", lr=0.01, betas=(0.8, 0.95)),
    _row("Adam", "beta1-zero", lr=0.01, betas=(0.0, 0.99)),
    _row("Adam", "beta2-zero", lr=0.01, betas=(0.9, 0.0)),
    _row("Adam", "betas-zero", lr=0.01, betas=(0.0, 0.0)),
    _row("Adam", "eps", lr=0.01, eps=1e-3),
    _row("Adam", "weight_decay", lr=0.01, weight_decay=0.1),
    _row("Adam", "decoupled", lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    _row("Adam", "amsgrad", lr=0.01, amsgrad=True),
    _row("Adam", "maximize", lr=0.01, maximize=True),
    _row(
        "Adam",
        "combo",
        lr=0.01,
        betas=(0.8, 0.95),
        eps=1e-6,
        weight_decay=0.1,
        amsgrad=True,
        maximize=True,
    ),
    _row("AdamW", "default"),
    _row("AdamW", "betas", lr=0.01, betas=(0.8, 0.95)),
    _row("AdamW", "beta1-zero", lr=0.01, betas=(0.0, 0.99)),
    _row("AdamW", "eps", lr=0.01, eps=1e-3),
    _row("AdamW", "no-weight_decay", lr=0.01, weight_decay=0.0),
    _row("AdamW", "weight_decay", lr=0.01, weight_decay=0.3),
    _row("AdamW", "amsgrad", lr=0.01, amsgrad=True),
    _row("AdamW", "maximize", lr=0.01, maximize=True),
    _row(
        "AdamW",
        "combo",
        lr=0.01,
        betas=(0.8, 0.95),
        eps=1e-6,
        weight_decay=0.3,
        amsgrad=True,
        maximize=True,
    ),
    *_rows(
        "RMSprop",
        {"lr": 0.01},
        {"momentum": 0.8},
        {"centered": True},
        {"alpha": 0.8},
        {"alpha": 0.3},
        {"eps": 1e-3},
        {"weight_decay": 0.1},
        {"maximize": True},
    ),
    *_rows(
        "Adagrad",
        {"lr": 0.05},
        {"lr_decay": 0.1},
        {"initial_accumulator_value": 0.3},
        {"eps": 1e-3},
        {"weight_decay": 0.1},
        {"maximize": True},
    ),
    *_rows(
        "Adadelta",
        {"lr": 0.5},
        {"rho": 0.8},
        {"eps": 1e-3},
        {"weight_decay": 0.1},
        {"maximize": True},
    ),
    *_rows(
        "Adamax",
        {"lr": 0.01},
        {"betas": (0.8, 0.95)},
        {"betas": (0.0, 0.0)},
        {"eps": 1e-3},
        {"weight_decay": 0.1},
        {"maximize": True},
    ),
    *_rows(
        "RAdam",
        {"lr": 0.01},
        {"betas": (0.8, 0.95)},
        {"betas": (0.0, 0.0)},
        {"eps": 1e-3},
        {"weight_decay": 0.1},
        {"weight_decay": 0.2, "decoupled_weight_decay": True},
        {"maximize": True},
    ),
    *_rows(
        "Rprop",
        {"lr": 0.02},
        {"etas": (0.3, 1.5)},
        {"step_sizes": (0.015, 0.03)},
        {"maximize": True},
    ),
    *_rows(
        "NAdam",
        {"lr": 0.01},
        {"betas": (0.8, 0.95)},
        {"betas": (0.0, 0.0)},
        {"momentum_decay": 0.1},
        {"eps": 1e-3},
        {"weight_decay": 0.1},
        {"weight_decay": 0.2, "decoupled_weight_decay": True},
        {"maximize": True},
    ),
    *_rows(
        "ASGD",
        {"lr": 0.05},
        {"lambd": 0.1},
        {"t0": 2},
        {"t0": 3, "alpha": 0.5, "lambd": 0.01},
        {"weight_decay": 0.1},
        {"maximize": True},
    ),
    *_rows(
        "Lion",
        {"lr": 0.01},
        {"betas": (0.8, 0.95)},
        {"betas": (0.0, 0.0)},
        {"weight_decay": 0.1},
        {"weight_decay": 0.01, "decoupled_weight_decay": True},
        {"weight_decay": 0.1, "cautious_weight_decay": True},
        {"maximize": True},
        reference=references.Lion,
    ),
    *_rows(
        "ADOPT",
        {"lr": 0.01},
        {"betas": (0.8, 0.95)},
        {"betas": (0.0, 0.0)},
        {"eps": 0.1},
        {"clip_exp": None},
        {"clip_exp": 0.1},
        {"weight_decay": 0.2, "decoupled": True, "cautious_weight_decay": True},
        {"weight_decay": 0.2, "decoupled": True},
        {"weight_decay": 0.1},
        {"maximize": True},
        reference=references.ADOPT,
    ),
    *_rows(
        "AdEMAMix",
        {"lr": 0.01},
        {"betas": (0.8, 0.95, 0.98)},
        {"betas": (0.0, 0.0, 0.0)},
        {"alpha": 2.0},
        {"t_alpha": 4},
        {"t_beta3": 4},
        {"t_alpha": 50, "t_beta3": 70},
        {"eps": 1e-3},
        {"weight_decay": 0.2},
        {"weight_decay": 0.2, "cautious_weight_decay": True},
        {"maximize": True},
        reference=references.AdEMAMix,
    ),
    *_rows(
        "Adan",
        {"lr": 0.01},
        {"betas": (0.8, 0.7, 0.95)},
        {"betas": (0.0, 0.0, 0.0)},
        {"eps": 1e-3},
        {"weight_decay": 0.2},
        {"weight_decay": 0.2, "no_prox": True},
        {"weight_decay": 0.2, "cautious_weight_decay": True},
        {"weight_decay": 0.2, "no_prox": True, "cautious_weight_decay": True},
        {"maximize": True},
        reference=references.Adan,
    ),
    *_rows(
        "AdamWScheduleFree",
        {"lr": 0.02},
        {"betas": (0.8, 0.95)},
        {"eps": 1e-3},
        {"weight_decay": 0.1},
        {"warmup_steps": 2},
        {"r": 0.5},
        {"weight_lr_power": 0.0},
        {"weight_lr_power": 1.5},
        reference=schedule_free_reference.AdamWScheduleFree,
    ),
    *_rows(
        "SGDScheduleFree",
        {"lr": 0.1},
        {"momentum": 0.6},
        {"weight_decay": 0.1},
        {"warmup_steps": 3},
        {"r": 1.0},
        {"weight_lr_power": 0.0},
        reference=schedule_free_reference.SGDScheduleFree,
    ),
    *(
        _row(name, f"cautious-{option}={value}", reference, lr=0.01, weight_decay=0.3, **options)
        for name, reference, own in (
            ("Adam", references.AdamW, {"decoupled_weight_decay": True}),
            ("AdamW", references.AdamW, {}),
            ("NAdam", references.NAdam, {"decoupled_weight_decay": True}),
            ("RAdam", references.RAdam, {"decoupled_weight_decay": True}),
        )
        for option, value in (("betas", (0.8, 0.95)), ("maximize", True))
        for options in [own | {option: value, "cautious_weight_decay": True}]
    ),
]

OF_TORCH = [row for row in OPTIMIZERS if row.reference is None]
"""Those that torch has, too."""

ONE_OF_EACH = [row for row in OPTIMIZERS if row.id.endswith("-combo") and "nesterov" not in row.id]
"""One row of each class, with its options."""


# -- schedulers ----------------------------------------------------------------------------------

PROMISE = 1e-12
"""Of the schedule's peak: how far a scheduled value may be from torch's Python float."""

Build = Callable[[ModuleType, Optimizer], Any]


def scheduler_class(module: ModuleType, name: str) -> type:
    """The class of that name; torch keeps SWALR apart from its other schedulers."""
    elsewhere = module is torch.optim.lr_scheduler and name == "SWALR"
    return getattr(swa_utils if elsewhere else module, name)


def plain_step(scheduler: Any, step: int) -> None:
    scheduler.step()


@dataclass(frozen=True)
class SchedulerCase:
    """One scheduler with one choice of arguments.

    Args:
        id: unique.
        name: the class that ``build`` returns an object of.
        build: makes it from ``torch.optim.lr_scheduler`` or ``fused_sched.lr_scheduler``, on any
            optimizer with momentum or betas and any number of groups.
        steps: how many times ``step()`` may be called before torch raises; None: without end.
        tmax: T_max of the cosine recurrence in it, which is ill-conditioned beyond.
        cosine_start: the step at which that cosine begins.
        advance: ``advance(scheduler, step)`` calls ``scheduler.step`` with what it needs; step
            counts from 1.
    """

    id: str
    name: str
    build: Build
    steps: int | None = None
    tmax: float | None = None
    cosine_start: int = 0
    advance: Callable[[Any, int], None] = plain_step

    def horizon(self, wanted: int) -> int:
        """``wanted`` steps, or as many as torch allows."""
        return wanted if self.steps is None else min(wanted, self.steps)

    def tolerance(self, step: int) -> float:
        """The promise after ``step`` calls of ``step()``, as a fraction of the peak."""
        if self.tmax is None or step <= self.cosine_start + self.tmax:
            return PROMISE
        return max(PROMISE, 2 * self.tmax**2 * 2.0**-52)


def per_group(opt: Optimizer, *values: Any) -> list:
    """One value per group, repeated from the first if there are more groups than values."""
    return [values[i % len(values)] for i in range(len(opt.param_groups))]


@dataclass(frozen=True)
class PerGroup:
    """An argument that is a list with one value per group."""

    values: tuple


def each(*values: Any) -> PerGroup:
    return PerGroup(values)


def _argument(opt: Optimizer, value: Any) -> Any:
    return per_group(opt, *value.values) if isinstance(value, PerGroup) else value


def make(name: str, **kwargs: Any) -> Build:
    """A build function for one scheduler class with these arguments."""

    def build(module: ModuleType, opt: Optimizer) -> Any:
        arguments = {key: _argument(opt, value) for key, value in kwargs.items()}
        return scheduler_class(module, name)(opt, **arguments)

    return build


def sequential(milestones: list[int], *children: Build) -> Build:
    def build(module: ModuleType, opt: Optimizer) -> Any:
        schedulers = [child(module, opt) for child in children]
        return module.SequentialLR(opt, schedulers, list(milestones))

    return build


def chained(*children: Build) -> Build:
    def build(module: ModuleType, opt: Optimizer) -> Any:
        return module.ChainedScheduler([child(module, opt) for child in children])

    return build


# Callables for LambdaLR, MultiplicativeLR and CyclicLR, at module level so that they pickle.


def inverse_sqrt(epoch: int) -> float:
    return 1.0 / math.sqrt(1.0 + epoch)


def staircase(epoch: int) -> float:
    return 0.5 ** (epoch // 100)


def warmup_decay(epoch: int, *, warmup_steps: int, decay_steps: int) -> float:
    return min((epoch + 1) / warmup_steps, max(0.0, 1.0 - epoch / decay_steps))


@dataclass
class Wave:
    """A callable object, whose attributes torch puts into the scheduler's state_dict."""

    period: float = 37.0
    depth: float = 0.4

    def __call__(self, epoch: int) -> float:
        return 1.0 + self.depth * math.sin(2 * math.pi * epoch / self.period)


def slower_on_odd(epoch: int) -> float:
    return 0.997 if epoch % 2 else 1.001


def constant_factor(epoch: int) -> float:
    return 0.995


def halve_every_cycle(cycle: float) -> float:
    return 0.5 ** (cycle - 1)


def shrink_with_iterations(iterations: float) -> float:
    return 1.0 / (1.0 + 0.01 * iterations)


# Metrics for ReduceLROnPlateau.


def falling_then_flat(step: int) -> float:
    """Improves for 20 steps, stays, improves once more at step 60."""
    return 1.0 / min(step, 20) - 0.01 * (step >= 60)


def noisy(step: int) -> float:
    """Falls on the whole, with a wave on it that makes bad epochs; negative in the end."""
    return 1.0 - 0.01 * step + 0.3 * math.sin(step)


def rising_with_nan(step: int) -> float:
    """Grows to 2; every 17th value is not a number, which counts as bad."""
    return math.nan if step % 17 == 0 else 2.0 - 1.0 / step


def with_metric(metric: Callable[[int], float]) -> Callable[[Any, int], None]:
    return lambda scheduler, step: scheduler.step(metric(step))


def _plateau(id: str, metric: Callable[[int], float], **kwargs: Any) -> SchedulerCase:
    build = make("ReduceLROnPlateau", **kwargs)
    return SchedulerCase(
        f"ReduceLROnPlateau-{id}", "ReduceLROnPlateau", build, advance=with_metric(metric)
    )


def _case(name: str, id: str, **kwargs: Any) -> SchedulerCase:
    return SchedulerCase(f"{name}-{id}", name, make(name, **kwargs))


def _cosine(id: str, T_max: float, **kwargs: Any) -> SchedulerCase:
    build = make("CosineAnnealingLR", T_max=T_max, **kwargs)
    return SchedulerCase(f"CosineAnnealingLR-{id}", "CosineAnnealingLR", build, tmax=T_max)


def _one_cycle(id: str, total_steps: int, **kwargs: Any) -> SchedulerCase:
    build = make("OneCycleLR", total_steps=total_steps, **kwargs)
    return SchedulerCase(f"OneCycleLR-{id}", "OneCycleLR", build, steps=total_steps)


def _sequential(id: str, milestones: list[int], *children: Build, **limits: Any) -> SchedulerCase:
    build = sequential(milestones, *children)
    return SchedulerCase(f"SequentialLR-{id}", "SequentialLR", build, **limits)


def _chained(id: str, *children: Build, **limits: Any) -> SchedulerCase:
    build = chained(*children)
    return SchedulerCase(f"ChainedScheduler-{id}", "ChainedScheduler", build, **limits)


LONG = 1200  # Steps of the schedules that end: past the 1,000 that the tests run.

_WARMUP = make("LinearLR", start_factor=0.1, total_iters=10)

SCHEDULERS = [
    _case("LambdaLR", "function", lr_lambda=inverse_sqrt),
    _case("LambdaLR", "list", lr_lambda=each(staircase, inverse_sqrt)),
    _case(
        "LambdaLR",
        "partial",
        lr_lambda=partial(warmup_decay, warmup_steps=30, decay_steps=900),
    ),
    _case("LambdaLR", "object", lr_lambda=Wave()),
    _case("MultiplicativeLR", "function", lr_lambda=slower_on_odd),
    _case("MultiplicativeLR", "list", lr_lambda=each(constant_factor, slower_on_odd)),
    _case("StepLR", "every-7", step_size=7, gamma=0.9),
    _case("StepLR", "every-step", step_size=1, gamma=0.99),
    _case("StepLR", "default-gamma", step_size=300),
    _case("StepLR", "growing", step_size=50, gamma=1.1),
    _case("MultiStepLR", "sorted", milestones=[10, 100, 500], gamma=0.3),
    _case("MultiStepLR", "unsorted", milestones=[80, 20, 40]),
    _case("MultiStepLR", "duplicates", milestones=[5, 5, 9, 5], gamma=0.5),
    _case("MultiStepLR", "at-0", milestones=[0, 3], gamma=0.5),
    _case("MultiStepLR", "empty", milestones=[]),
    _case("ConstantLR", "default"),
    _case("ConstantLR", "long", factor=0.25, total_iters=200),
    _case("ConstantLR", "never-undone", factor=0.5, total_iters=0),
    _case("ConstantLR", "factor-1", factor=1.0, total_iters=3),
    _case("LinearLR", "default"),
    _case("LinearLR", "warmup", start_factor=1e-3, total_iters=500),
    _case("LinearLR", "decay-to-0", start_factor=1.0, end_factor=0.0, total_iters=1000),
    _case("LinearLR", "flat", start_factor=0.5, end_factor=0.5, total_iters=20),
    _case("LinearLR", "no-iters", start_factor=0.5, total_iters=0),
    _case("ExponentialLR", "slow", gamma=0.9999),
    _case("ExponentialLR", "fast", gamma=0.9),
    _case("ExponentialLR", "growing", gamma=1.001),
    _case("ExponentialLR", "constant", gamma=1.0),
    _case("PolynomialLR", "default"),
    _case("PolynomialLR", "power-1", total_iters=700, power=1.0),
    _case("PolynomialLR", "power-2", total_iters=1000, power=2.0),
    _case("PolynomialLR", "power-half", total_iters=333, power=0.5),
    _case("PolynomialLR", "no-iters", total_iters=0),
    _cosine("10", 10),
    _cosine("1", 1),
    _cosine("odd", 77, eta_min=0.001),
    _cosine("long", 400, eta_min=0.01),
    _cosine("longer-than-run", LONG),
    _cosine("eta_min-above-lr", 30, eta_min=0.5),
    _cosine("float", 12.5),
    _case("CosineAnnealingWarmRestarts", "mult-1", T_0=13),
    _case("CosineAnnealingWarmRestarts", "mult-2", T_0=5, T_mult=2, eta_min=0.001),
    _case("CosineAnnealingWarmRestarts", "mult-3", T_0=7, T_mult=3),
    _case("CosineAnnealingWarmRestarts", "every-step", T_0=1),
    _case("CyclicLR", "triangular", base_lr=0.001, max_lr=0.1, step_size_up=40),
    _case(
        "CyclicLR",
        "triangular2",
        base_lr=0.001,
        max_lr=0.1,
        step_size_up=30,
        mode="triangular2",
    ),
    _case(
        "CyclicLR",
        "exp_range",
        base_lr=0.001,
        max_lr=0.1,
        step_size_up=30,
        mode="exp_range",
        gamma=0.995,
    ),
    _case(
        "CyclicLR",
        "asymmetric",
        base_lr=0.01,
        max_lr=0.2,
        step_size_up=7,
        step_size_down=23,
        base_momentum=0.7,
        max_momentum=0.95,
    ),
    _case(
        "CyclicLR",
        "no-momentum",
        base_lr=0.01,
        max_lr=0.2,
        step_size_up=11,
        mode="triangular2",
        cycle_momentum=False,
    ),
    _case(
        "CyclicLR",
        "per-group",
        base_lr=each(0.001, 0.01),
        max_lr=each(0.1, 0.3),
        step_size_up=15,
        base_momentum=each(0.8, 0.6),
        max_momentum=each(0.9, 0.95),
    ),
    _case(
        "CyclicLR",
        "scale_fn-cycle",
        base_lr=0.001,
        max_lr=0.1,
        step_size_up=20,
        scale_fn=halve_every_cycle,
        scale_mode="cycle",
    ),
    _case(
        "CyclicLR",
        "scale_fn-iterations",
        base_lr=0.001,
        max_lr=0.1,
        step_size_up=20,
        step_size_down=5,
        scale_fn=shrink_with_iterations,
        scale_mode="iterations",
        cycle_momentum=False,
    ),
    _one_cycle("default", LONG, max_lr=0.1),
    _one_cycle("linear", LONG, max_lr=0.1, anneal_strategy="linear"),
    _one_cycle("three-phase", LONG, max_lr=0.1, three_phase=True),
    _one_cycle(
        "three-phase-linear",
        LONG,
        max_lr=0.1,
        three_phase=True,
        anneal_strategy="linear",
        pct_start=0.2,
        div_factor=10.0,
        final_div_factor=100.0,
    ),
    _one_cycle("no-momentum", LONG, max_lr=0.1, cycle_momentum=False),
    _one_cycle(
        "per-group",
        LONG,
        max_lr=each(0.1, 0.4),
        base_momentum=each(0.85, 0.7),
        max_momentum=each(0.95, 0.9),
    ),
    _one_cycle("short", 50, max_lr=0.1),
    _one_cycle("starts-in-phase-2", 20, max_lr=0.1, pct_start=0.0),
    _one_cycle("1-step", 1, max_lr=0.1),
    SchedulerCase(
        "OneCycleLR-epochs",
        "OneCycleLR",
        make("OneCycleLR", max_lr=0.1, epochs=12, steps_per_epoch=100),
        steps=12 * 100,
    ),
    _sequential(
        "warmup-cosine",
        [10],
        _WARMUP,
        make("CosineAnnealingLR", T_max=490, eta_min=0.001),
        tmax=490,
        cosine_start=10,
    ),
    _sequential(
        "warmup-one-cycle",
        [100],
        make("LinearLR", start_factor=0.1, total_iters=100),
        make("OneCycleLR", max_lr=0.1, total_steps=LONG),
        steps=100 + LONG,
    ),
    _sequential(
        "three-children",
        [20, 60],
        make("ConstantLR", factor=0.1, total_iters=5),
        make("StepLR", step_size=10, gamma=0.5),
        make("ExponentialLR", gamma=0.99),
    ),
    _sequential(
        "unsorted-milestones",
        [40, 20],
        _WARMUP,
        make("ExponentialLR", gamma=0.9),
        make("PolynomialLR", total_iters=100, power=2.0),
    ),
    _sequential(
        "duplicate-milestones",
        [15, 15],
        _WARMUP,
        make("ExponentialLR", gamma=0.9),
        make("LinearLR", start_factor=1.0, end_factor=0.1, total_iters=200),
    ),
    _sequential(
        "without-closed-form",
        [10, 30],
        make("LambdaLR", lr_lambda=inverse_sqrt),
        make("MultiplicativeLR", lr_lambda=slower_on_odd),
        make("SWALR", swa_lr=0.001, anneal_epochs=25),
    ),
    _sequential(
        "warm-restarts-then-cyclic",
        [50],
        make("CosineAnnealingWarmRestarts", T_0=8, T_mult=2),
        make("CyclicLR", base_lr=0.001, max_lr=0.1, step_size_up=20),
    ),
    _sequential("milestone-0", [0], make("ExponentialLR", gamma=0.5), _WARMUP),
    _sequential("one-child", [], make("ExponentialLR", gamma=0.99)),
    _chained(
        "two", make("ConstantLR", factor=0.1, total_iters=20), make("ExponentialLR", gamma=0.99)
    ),
    _chained(
        "three",
        make("LinearLR", start_factor=0.2, total_iters=30),
        make("MultiStepLR", milestones=[50, 100], gamma=0.5),
        make("ExponentialLR", gamma=0.999),
    ),
    _chained(
        "cosine-and-warmup",
        make("CosineAnnealingLR", T_max=600),
        make("LinearLR", start_factor=0.1, total_iters=50),
        tmax=600,
    ),
    _case("SWALR", "cos", swa_lr=0.01),
    _case("SWALR", "linear", swa_lr=0.01, anneal_epochs=200, anneal_strategy="linear"),
    _case("SWALR", "0-epochs", swa_lr=0.01, anneal_epochs=0),
    _case("SWALR", "per-group-upward", swa_lr=each(0.5, 0.02), anneal_epochs=60),
    _plateau("default", falling_then_flat),
    _plateau("min-rel", noisy, factor=0.5, patience=2, threshold=0.05),
    _plateau("min-abs", noisy, factor=0.7, patience=1, threshold=0.1, threshold_mode="abs"),
    _plateau("max-rel", rising_with_nan, mode="max", factor=0.5, patience=3, threshold=0.01),
    _plateau(
        "max-abs",
        rising_with_nan,
        mode="max",
        factor=0.9,
        patience=4,
        threshold=1e-3,
        threshold_mode="abs",
    ),
    _plateau("cooldown", noisy, factor=0.8, patience=1, cooldown=5, threshold=0.2),
    _plateau("min_lr", noisy, factor=0.3, patience=0, threshold=0.5, min_lr=each(1e-3, 1e-2)),
    _plateau("eps", falling_then_flat, factor=0.1, patience=2, eps=1e-3),
]


# -- shapes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShapeCase:
    """A leaf tensor that hurts; ``build(dtype, device)`` makes it, the same values every time."""

    id: str
    build: Callable[..., Tensor]


def _normal(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    return torch.randn(shape, generator=generator, dtype=dtype)


def _itself(values: Tensor) -> Tensor:
    return values


def _shape(id: str, *shape: int, view: Callable[[Tensor], Tensor] = _itself) -> ShapeCase:
    def build(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
        return view(_normal(dtype, shape).to(device)).requires_grad_()

    return ShapeCase(id, build)


CHUNK = layout.CHUNK_UNIT
"""Elements that one program of the kernel owns; the shapes lie around it."""

SHAPES = [
    _shape("1-element", 1),
    _shape("0-dim"),
    _shape("empty", 0),
    _shape("empty-2d", 3, 0),
    _shape("chunk-1", CHUNK - 1),
    _shape("chunk", CHUNK),
    _shape("chunk+1", CHUNK + 1),
    _shape("prime", 127),
    _shape("prime-over-chunks", 4099),
    _shape("primes", 31, 67),
    _shape("transposed", 45, 46, view=Tensor.t),
    _shape("gaps-in-rows", 41, 100, view=lambda x: x[:, ::2]),
    _shape("gaps-between-rows", 70, 60, view=lambda x: x[::2, 3:50]),
    _shape("channels_last", 2, 3, 17, 21, view=lambda x: x.to(memory_format=torch.channels_last)),
    _shape("misaligned", CHUNK + 2, view=lambda x: x[1:]),
    _shape("misaligned-1-element", 2, view=lambda x: x[1:]),
    _shape("misaligned-2d", 2089, view=lambda x: x[1:].view(36, 58)),
]


def gradient(param: Tensor, step: int) -> Tensor:
    """A gradient for that step, the same one every time; dense, also where param has gaps.

    No element is near zero (a real part between 0.5 and 1.5 in magnitude): float16 can hold Adam's
    second moment of it.
    """
    generator = torch.Generator().manual_seed(1000 * step + param.numel())
    size = torch.rand(param.shape, generator=generator, dtype=torch.float64) + 0.5
    sign = torch.randint(2, param.shape, generator=generator) * 2 - 1
    phase = 1.0 + 0.5j if param.is_complex() else 1.0
    return torch.empty_like(param, requires_grad=False).copy_(size * sign * phase)


# -- tolerances ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerance:
    """What a param may differ by from the same steps in float64: ``torch.testing``'s arguments."""

    rtol: float
    atol: float


# After ten steps of any row of OPTIMIZERS, from SHAPES, with gradient(). One rounding a step at
# the store; twice the worst |difference| / (1 + |param|) seen on a CPU with torch 2.13 for float32
# arithmetic on params and moments stored in that dtype: 5.6e-7, 2.5e-3, 2.0e-2. In float64 what is
# left is the order of operations.
TOLERANCES = {
    torch.float64: Tolerance(rtol=1e-12, atol=1e-12),
    torch.float32: Tolerance(rtol=1.2e-6, atol=1.2e-6),
    torch.float16: Tolerance(rtol=5e-3, atol=5e-3),
    torch.bfloat16: Tolerance(rtol=4e-2, atol=4e-2),
    torch.complex128: Tolerance(rtol=1e-12, atol=1e-12),
    torch.complex64: Tolerance(rtol=1.2e-6, atol=1.2e-6),
}

ERROR_RATIO = 2.0
"""Our error against float64 is at most this many times stock torch's at the same dtype."""
