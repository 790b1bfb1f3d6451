"""Random trainings for hypothesis: a tree of schedulers, and what is done with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from tests.cases import (
    Wave,
    constant_factor,
    each,
    halve_every_cycle,
    inverse_sqrt,
    make,
    shrink_with_iterations,
    slower_on_odd,
    staircase,
    warmup_decay,
)
from tests.test_state import roundtrip
from tests.twins import RATES

# -- trees of schedulers -------------------------------------------------------------------------


@dataclass(frozen=True)
class Leaf:
    """A scheduler with its arguments."""

    name: str
    arguments: Mapping[str, Any]

    def build(self, module: ModuleType, opt: Any, **resumed: Any) -> Any:
        # Copied: loading a state_dict writes into callable objects.
        return make(self.name, **copy.deepcopy(dict(self.arguments)), **resumed)(module, opt)


@dataclass(frozen=True)
class Plateau(Leaf):
    """ReduceLROnPlateau knows no ``last_epoch``."""

    def build(self, module: ModuleType, opt: Any, **resumed: Any) -> Any:
        return super().build(module, opt)


@dataclass(frozen=True)
class Sequential:
    milestones: list[int]
    children: list[Any]

    def build(self, module: ModuleType, opt: Any, **resumed: Any) -> Any:
        children = [child.build(module, opt, **resumed) for child in self.children]
        return module.SequentialLR(opt, children, list(self.milestones))


@dataclass(frozen=True)
class Chained:
    children: list[Any]

    def build(self, module: ModuleType, opt: Any, **resumed: Any) -> Any:
        return module.ChainedScheduler(
            [child.build(module, opt, **resumed) for child in self.children]
        )


def choice(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


def numbers(low: float, high: float, *edges: Any) -> st.SearchStrategy[Any]:
    """Edges of a range, and what lies inside."""
    return st.sampled_from(edges) | st.floats(low, high)


def listed(epoch: int) -> float:
    """Ends with an error."""
    return (1.0, 0.5, 0.25, 2.0, 1.0, 1.5, 0.1)[epoch]


COUNTS = st.integers(1, 8)
COUNTS_OR_ZERO = st.integers(0, 8)
GAMMAS = numbers(0.5, 1.05, 0.0, 0.1, 0.9, 1.0, -0.5, 1)
FLOORS = choice(0, 0.0, 0.01, 0.5)
HIGHS = choice(0.1, 0.5, 1, each(0.1, 0.3))
MOMENTA = choice(0.1, 0.5, 0.85, 0.95, each(0.9, 0.6))

REQUIRED: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "LambdaLR": {
        "lr_lambda": choice(
            inverse_sqrt,
            staircase,
            each(staircase, inverse_sqrt),
            partial(warmup_decay, warmup_steps=3, decay_steps=9),
            Wave(period=5.0),
            listed,
        )
    },
    "MultiplicativeLR": {
        "lr_lambda": choice(slower_on_odd, Wave(period=5.0), each(constant_factor, slower_on_odd))
    },
    "StepLR": {"step_size": COUNTS | choice(0, -2, 2.5, 10**6)},
    "MultiStepLR": {"milestones": st.lists(st.integers(0, 9) | choice(2.0, 2.5, -1), max_size=4)},
    "ConstantLR": {},
    "LinearLR": {},
    "ExponentialLR": {"gamma": GAMMAS},
    "PolynomialLR": {},
    "CosineAnnealingLR": {"T_max": st.integers(1, 12) | choice(0, -5, 2.5, 40)},
    "CosineAnnealingWarmRestarts": {"T_0": COUNTS},
    "CyclicLR": {"base_lr": choice(0.0, 0.001, 0.1, each(0.01, 0.02)), "max_lr": HIGHS},
    "OneCycleLR": {"max_lr": HIGHS, "total_steps": st.integers(1, 20)},
    "SWALR": {"swa_lr": choice(0, 0.01, 0.5, each(0.5, 0.02))},
    "ReduceLROnPlateau": {},
}

OPTIONAL: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "StepLR": {"gamma": GAMMAS},
    "MultiStepLR": {"gamma": GAMMAS},
    "ConstantLR": {"factor": numbers(0.01, 1.0, 0, 0.0, 1, 1.0), "total_iters": COUNTS_OR_ZERO},
    "LinearLR": {
        "start_factor": numbers(0.01, 1.0, 1e-3, 1, 1.0),
        "end_factor": numbers(0.0, 1.0, 0, 0.0, 1.0),
        "total_iters": COUNTS_OR_ZERO,
    },
    "PolynomialLR": {
        "total_iters": COUNTS_OR_ZERO,
        "power": numbers(0.25, 3.0, 0, 0.5, 1, 1.0, 2, -1),
    },
    "CosineAnnealingLR": {"eta_min": FLOORS},
    "CosineAnnealingWarmRestarts": {"T_mult": st.integers(1, 3), "eta_min": FLOORS},
    "CyclicLR": {
        "step_size_up": COUNTS | choice(0, 2.5),
        "step_size_down": COUNTS_OR_ZERO | choice(None, 1.5),
        "mode": choice("triangular", "triangular2", "exp_range"),
        "gamma": numbers(0.5, 1.0, 0.0, 1.0),
        "scale_fn": choice(None, halve_every_cycle, shrink_with_iterations, Wave(depth=0.0)),
        "scale_mode": choice("cycle", "iterations"),
        "cycle_momentum": st.booleans(),
        "base_momentum": MOMENTA,
        "max_momentum": MOMENTA,
    },
    "OneCycleLR": {
        "pct_start": numbers(0.0, 1.0, 0.0, 0.3, 1.0),
        "anneal_strategy": choice("cos", "linear"),
        "cycle_momentum": st.booleans(),
        "base_momentum": MOMENTA,
        "max_momentum": MOMENTA,
        "div_factor": choice(1.0, 10.0, 25),
        "final_div_factor": choice(1.0, 1e4),
        "three_phase": st.booleans(),
    },
    "SWALR": {"anneal_epochs": COUNTS_OR_ZERO, "anneal_strategy": choice("cos", "linear")},
    "ReduceLROnPlateau": {
        "mode": choice("min", "max"),
        "factor": numbers(0.1, 0.9, 0.0, 0.5),
        "patience": st.integers(0, 3),
        "threshold": choice(0.0, 1e-4, 0.1),
        "threshold_mode": choice("rel", "abs"),
        "cooldown": st.integers(0, 3),
        "min_lr": choice(0, 0.01, each(0.01, 0.03)),
        "eps": choice(0.0, 1e-8, 0.05),
    },
}


def leaves(name: str, kind: type[Leaf] = Leaf) -> st.SearchStrategy[Leaf]:
    arguments = st.fixed_dictionaries(REQUIRED[name], optional=OPTIONAL.get(name, {}))
    return st.builds(kind, st.just(name), arguments)


def sequentials(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Sequential]:
    def of(count: int) -> st.SearchStrategy[Sequential]:
        milestones = st.lists(st.integers(0, 8), min_size=count - 1, max_size=count - 1)
        sorted_or_not = milestones.map(sorted) | milestones
        inside = st.lists(children, min_size=count, max_size=count)
        return st.builds(Sequential, sorted_or_not, inside)

    return st.integers(1, 3).flatmap(of)


def chains(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Chained]:
    return st.builds(Chained, st.lists(children, min_size=1, max_size=3))


NAMES = [name for name in REQUIRED if name != "ReduceLROnPlateau"]
BY_ITSELF = st.sampled_from(NAMES).flatmap(leaves)
WITHIN = st.one_of(BY_ITSELF, BY_ITSELF, sequentials(BY_ITSELF), chains(BY_ITSELF))

TREES: dict[str, st.SearchStrategy[Any]] = {
    **{name: leaves(name) for name in NAMES},
    "ReduceLROnPlateau": leaves("ReduceLROnPlateau", Plateau),
    "SequentialLR": sequentials(BY_ITSELF),
    "ChainedScheduler": chains(BY_ITSELF),
    "nested": sequentials(WITHIN) | chains(WITHIN),
}
"""Every class as the root of a tree, and composites of composites."""

# -- what is done --------------------------------------------------------------------------------


class Operation(NamedTuple):
    """A method of Side, and what it is called with."""

    name: str
    arguments: tuple = ()

    def on(self, side: Side) -> None:
        getattr(side, self.name)(*self.arguments)


def operations(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Operation]:
    return st.builds(Operation, st.just(name), st.tuples(*arguments))


METRICS = st.floats(-2, 2) | choice(0.5, 0.5, float("nan"), 1)
TENSORS = METRICS.map(lambda value: torch.tensor(value, dtype=torch.float64))
"""Metrics that are compared where they are."""

GROUPS = st.integers(0, 3)

STEP = Operation("step", (0.0,))
LOOK = operations("look")
EDITS = st.one_of(
    operations("edit_lr", GROUPS, choice(0.3, 0.01, 1.0)),
    operations("scale_lr", GROUPS, choice(0.5, 2.0)),
    operations("edit_momentum", GROUPS, choice(0.1, 0.5, 0.99)),
)
CHECKPOINTS = st.one_of(
    operations("save"),
    operations("load"),
    operations("load_into_fresh"),
    operations("resume", choice(-1, 0, -2, 5)),
)
ADDED = operations("add_group", choice(0.05, 0.4), st.booleans())
JUMPS = operations("jump", METRICS, st.integers(0, 12))
ON_DEVICE = st.one_of(LOOK, LOOK, EDITS, CHECKPOINTS)
FUSED = st.one_of(ON_DEVICE, ADDED, JUMPS)
EXPLICIT = st.one_of(
    FUSED,
    operations("schedule_alone", METRICS),
    operations("step_alone"),
    operations("prepare"),
    operations("edit_lr", GROUPS, st.just(0.0)),
)
"""Where no calls govern, ``scheduler.step()`` does nothing, and lr = 0 in every group is how
distributed checkpoints announce a step that must not move the schedule."""


def momentum(value: float) -> dict[str, Any]:
    return {"momentum": value}


def beta1(value: float) -> dict[str, Any]:
    return {"betas": (value, 0.99)}


class Kind(NamedTuple):
    """An optimizer with its arguments, and how its momentum is edited."""

    name: str
    arguments: dict[str, Any]
    momentum: Callable[[float], dict[str, Any]]


KINDS = choice(
    Kind("SGD", {"momentum": 0.9}, momentum),
    Kind("SGD", {}, momentum),
    Kind("Adam", {}, beta1),
    Kind("AdamW", {"betas": (0.0, 0.9)}, beta1),
)


@dataclass(frozen=True)
class Story:
    """A training from its beginning to its end."""

    tree: Any
    kind: Kind
    groups: int
    operations: list[Operation] = field(default_factory=list)


def stories(
    trees: st.SearchStrategy[Any],
    doing: st.SearchStrategy[Operation],
    length: int,
    metrics: st.SearchStrategy[Any] = METRICS,
) -> st.SearchStrategy[Story]:
    """Trainings of so many times some steps and one operation."""
    step = operations("step", metrics)
    steps = st.lists(step, min_size=1, max_size=6)
    chapters = st.lists(st.tuples(steps, doing), min_size=1, max_size=length)
    flat = chapters.map(lambda told: [one for steps, other in told for one in (*steps, other)])
    return st.builds(Story, trees, KINDS, st.integers(1, 3), flat)


class Side:
    """A story as it happens with torch's classes, or with ours.

    Args:
        calls: the loop calls ``scheduler.step()``.
    """

    def __init__(
        self, optim: ModuleType, schedulers: ModuleType, story: Story, calls: bool = True
    ) -> None:
        self.optim, self.schedulers = optim, schedulers
        self.story, self.calls = story, calls
        self.params = [self.param() for _ in range(story.groups)]
        self.opt = self.optimizer()
        self.scheduler: Any = None
        self.saved: Any = None
        self.takes_metric = isinstance(story.tree, Plateau)

    def param(self) -> Tensor:
        return Parameter(torch.full((2,), 1.0))

    def optimizer(self) -> Any:
        groups = [
            {"params": [param], "lr": RATES[number % len(RATES)]}
            for number, param in enumerate(self.params)
        ]
        return getattr(self.optim, self.story.kind.name)(groups, **self.story.kind.arguments)

    def group(self, number: int) -> Any:
        groups = self.opt.param_groups
        return groups[number % len(groups)]

    def begin(self, **resumed: Any) -> None:
        self.scheduler = self.story.tree.build(self.schedulers, self.opt, **resumed)

    # -- the operations --------------------------------------------------------------------------

    def step(self, metric: float) -> None:
        self.step_alone()
        if self.calls:
            self.schedule_alone(metric)

    def step_alone(self) -> None:
        for param in self.params:
            param.grad = 0.1 * param.detach() + 0.01
        self.opt.step()

    def schedule_alone(self, metric: float) -> None:
        self.scheduler.step(*[metric] * self.takes_metric)

    def jump(self, metric: float, epoch: int) -> None:
        self.scheduler.step(*[metric] * self.takes_metric, epoch)

    def edit_lr(self, number: int, value: float) -> None:
        self.group(number)["lr"] = value

    def scale_lr(self, number: int, factor: float) -> None:
        group = self.group(number)
        group["lr"] = group["lr"] * factor or 0.001

    def edit_momentum(self, number: int, value: float) -> None:
        self.group(number).update(self.story.kind.momentum(value))

    def add_group(self, lr: float, with_initial_lr: bool) -> None:
        self.params.append(self.param())
        group = {"params": [self.params[-1]], "lr": lr}
        self.opt.add_param_group(group | ({"initial_lr": lr} if with_initial_lr else {}))

    def save(self) -> None:
        states = self.opt.state_dict(), self.scheduler.state_dict()
        self.saved = roundtrip([*states, [param.detach() for param in self.params]])

    def load(self) -> None:
        if self.saved is not None:
            opt, scheduler, params = copy.deepcopy(self.saved)
            for param, value in zip(self.params, params, strict=False):
                param.data.copy_(value)
            self.opt.load_state_dict(opt)
            self.scheduler.load_state_dict(scheduler)

    def load_into_fresh(self) -> None:
        self.opt = self.optimizer()
        self.begin()
        self.load()

    def resume(self, offset: int) -> None:
        epoch = getattr(self.scheduler, "last_epoch", 3) + offset
        state = copy.deepcopy(self.opt.state_dict())
        self.opt = self.optimizer()
        self.opt.load_state_dict(state)
        self.begin(last_epoch=epoch)

    def prepare(self) -> None:
        """Ours sets its tables up."""
        getattr(self.opt, "prepare", lambda: None)()

    def look(self) -> None:
        """What the host tells is compared after each operation of this name."""
