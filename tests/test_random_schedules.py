"""Random schedules, used at random: ours and stock torch's in lock-step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import fused_sched
from fused_sched.schedules import base
from tests import differences
from tests.cases import PROMISE, halve_every_cycle, inverse_sqrt
from tests.interpreter import quick
from tests.random_schedules import (
    EXPLICIT,
    FUSED,
    ON_DEVICE,
    STEP,
    TENSORS,
    TREES,
    Kind,
    Leaf,
    Operation,
    Sequential,
    Side,
    Story,
    beta1,
    listed,
    momentum,
    stories,
)
from tests.twins import record, without_params

EXAMPLES = 60
LENGTH = 6
SHORT = 2
FEW = 40
FUSIBLE = [name for name in TREES if name != "ReduceLROnPlateau"]

HORIZON = 7
"""Steps of a table: short, so that it is renewed."""


class Outcome(NamedTuple):
    """How an operation ended."""

    error: tuple[type, str] | None
    warned: list[tuple[type, str]]


def outcome(operation: Callable[[Side], None], side: Side) -> Outcome:
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", RuntimeWarning)  # of the interpreter's numpy
        try:
            operation(side)
        except Exception as raised:
            error = type(raised), str(raised)
    return Outcome(error, [(each.category, str(each.message)) for each in caught])


def told(side: Side) -> Any:
    """What users read."""
    scheduler = side.scheduler
    return {
        "groups": [without_params(group) for group in side.opt.param_groups],
        "state": scheduler.state_dict(),
        "last_lr": scheduler.get_last_lr(),
        "last_epoch": getattr(scheduler, "last_epoch", None),
    }


def assert_told(ours: Any, stock: Any, where: str, allowed: float) -> None:
    """The same keys in the same order, types and counters; floats to what is allowed."""
    if isinstance(stock, dict):
        assert list(ours) == list(stock), where
        for key in stock:
            assert_told(ours[key], stock[key], f"{where}.{key}", allowed)
    elif isinstance(stock, (list, tuple)):
        assert (type(ours), len(ours)) == (type(stock), len(stock)), where
        for number, (mine, theirs) in enumerate(zip(ours, stock, strict=True)):
            assert_told(mine, theirs, f"[{number}]{where}", allowed)
    elif isinstance(stock, float) or (type(ours) is float and where.endswith("lr")):
        assert type(ours) is float, where  # also where torch hands on an int, SWALR(swa_lr=0)
        assert ours == pytest.approx(stock, rel=0, abs=allowed, nan_ok=True), where
    elif not callable(stock):
        assert (type(ours), ours) == (type(stock), stock), where


class Both:
    """A story with stock torch's classes and with ours.

    Args:
        calls: our loop calls ``scheduler.step()``, as stock's always does.
    """

    def __init__(self, story: Story, calls: bool = True) -> None:
        self.stock = Side(torch.optim, torch.optim.lr_scheduler, story)
        self.ours = Side(fused_sched.optim, fused_sched.lr_scheduler, story, calls)
        self.peak = record(self.stock.opt).abs()

    def do(self, operation: Callable[[Side], None]) -> Outcome:
        stock, ours = outcome(operation, self.stock), outcome(operation, self.ours)
        assert ours == stock
        return stock

    def check(self) -> None:
        """What the next launch uses, to the promise."""
        stock, ours = record(self.stock.opt), record(self.ours.opt)
        assert ours.shape == stock.shape
        new_groups = len(stock) - len(self.peak)
        peak = torch.nn.functional.pad(self.peak, (0, 0, 0, new_groups))
        self.peak = torch.maximum(peak, stock.abs())
        differences.note_schedule(ours, stock, self.peak)
        wrong = ~((ours == stock) | ((ours - stock).abs() <= PROMISE * self.peak))
        assert not wrong.any(), f"{ours[wrong]}, torch has {stock[wrong]}"

    def check_told(self) -> None:
        allowed = PROMISE * float(self.peak[:, 0].max())
        assert_told(told(self.ours), told(self.stock), "", allowed)
        params = self.ours.params, self.stock.params
        differences.note_params(*params)
        torch.testing.assert_close(*params, rtol=1e-5, atol=1e-5, equal_nan=True)

    def fuse(self) -> bool:
        """Fuse ours; refused is what has no value after the next step, as torch says then."""
        refused = outcome(fuse_each_step, self.ours).error
        assert refused is None or refused == outcome(STEP.on, self.stock).error
        return refused is None


def begin(side: Side) -> None:
    side.begin()


def fuse(side: Side) -> None:
    fused_sched.fuse(side.opt, side.scheduler)


def fuse_each_step(side: Side) -> None:
    fused_sched.fuse(side.opt, side.scheduler, interval=1)


def tell_explicit(story: Story) -> None:
    tell_by_calls(story, lambda side: None)


def tell_fused(story: Story) -> None:
    tell_by_calls(story, fuse)


def tell_by_calls(story: Story, once_built: Callable[[Side], None]) -> None:
    both = Both(story)
    begun = both.do(begin).error is None
    scheduler = None
    for operation in story.operations if begun else ():
        if both.ours.scheduler is not scheduler:
            scheduler = both.ours.scheduler
            once_built(both.ours)
        both.do(operation.on)
        both.check()
        if operation.name == "look":
            both.check_told()


def tell_by_steps(story: Story) -> None:
    """To the first error: ours comes before the step that torch has made when it raises."""
    both = Both(story, calls=False)
    alive = both.do(begin).error is None and both.fuse()
    for operation in story.operations:
        scheduler = both.ours.scheduler
        alive = alive and both.do(operation.on).error is None
        if alive and both.ours.scheduler is not scheduler:
            alive = both.fuse()
        if not alive:
            return
        both.check()
        if operation.name == "look":
            both.check_told()


def run_examples(engine: str, tell: Callable[[Story], None], told: Any, count: int) -> None:
    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(told)
    def every(story: Story) -> None:
        differences.note(differences.EXAMPLES, 1)
        tell(story)

    with fused_sched.use_engine(engine), quick():
        every()


@pytest.fixture
def times(request):
    """How many times as many examples `make conformance` wants."""
    return request.config.getoption("times_examples", 1)


@pytest.fixture(autouse=True)
def _short_tables(monkeypatch):
    monkeypatch.setattr(base, "DEFAULT_HORIZON", HORIZON)


@pytest.mark.parametrize("engine", ["native", "eager"])
@pytest.mark.parametrize("name", TREES)
def test_explicit_schedule_does_as_stock(name, engine, times):
    told = stories(TREES[name], EXPLICIT, LENGTH)
    run_examples(engine, tell_explicit, told, EXAMPLES * times)


@pytest.mark.parametrize("engine", ["native", "eager"])
@pytest.mark.parametrize("name", FUSIBLE)
def test_fused_schedule_does_as_stock(name, engine, times):
    run_examples(engine, tell_fused, stories(TREES[name], EXPLICIT, LENGTH), EXAMPLES * times)


@pytest.mark.parametrize("engine", ["native", "eager"])
@pytest.mark.parametrize("name", FUSIBLE)
def test_schedule_with_an_interval_does_as_stock(name, engine, times):
    run_examples(engine, tell_by_steps, stories(TREES[name], FUSED, LENGTH), EXAMPLES * times)


@pytest.mark.parametrize("engine", ["native", "eager"])
def test_plateau_with_metrics_on_the_device_does_as_stock(engine, times):
    told = stories(TREES["ReduceLROnPlateau"], ON_DEVICE, LENGTH, metrics=TENSORS)
    run_examples(engine, tell_explicit, told, EXAMPLES * times)


# The interpreter takes 10 ms for a launch: fewer and shorter stories, of any class.
ANY = st.one_of(*TREES.values())
ANY_FUSIBLE = st.one_of(*(TREES[name] for name in FUSIBLE))


@pytest.mark.parametrize(
    ("tell", "told"),
    [
        (tell_explicit, stories(ANY, EXPLICIT, SHORT)),
        (tell_explicit, stories(TREES["ReduceLROnPlateau"], ON_DEVICE, SHORT, metrics=TENSORS)),
        (tell_fused, stories(ANY_FUSIBLE, EXPLICIT, SHORT)),
        (tell_by_steps, stories(ANY_FUSIBLE, FUSED, SHORT)),
    ],
    ids=["explicit", "plateau", "fused", "interval"],
)
def test_the_interpreter_does_as_stock(tell, told, times):
    run_examples("triton", tell, told, FEW * times)


# -- what was found once -------------------------------------------------------------------------


def story(tree: Any, *operations: Any) -> Story:
    return Story(tree, SGD, 1, operations=list(operations))


def leaf(name: str, **arguments: Any) -> Leaf:
    return Leaf(name, arguments)


SGD = Kind("SGD", {"momentum": 0.9}, momentum)
ADAM = Kind("Adam", {}, beta1)
LAMBDA = leaf("LambdaLR", lr_lambda=inverse_sqrt)
MORE = HORIZON + 3
STEPS, LOOK, PREPARE = [STEP] * MORE, Operation("look"), Operation("prepare")
LATE_GROUP = Operation("add_group", (0.05, False))

THROUGH_ZERO = leaf("CyclicLR", base_lr=0.1, max_lr=0.1, step_size_up=2, max_momentum=0.0)
HELD_MOMENTUM = leaf(
    "CyclicLR",
    base_lr=0.1,
    max_lr=0.2,
    base_momentum=0.5,
    max_momentum=0.5,
    scale_fn=halve_every_cycle,
)
WITHOUT_LAST_PHASE = leaf("OneCycleLR", max_lr=0.1, total_steps=3, pct_start=1.0)
TURN_IS_OVER = Sequential([1], [leaf("SWALR", swa_lr=0.0), leaf("StepLR", step_size=2)])

ENDS_AT_BETA_0 = leaf(
    "OneCycleLR",
    max_lr=0.1,
    total_steps=1,
    anneal_strategy="linear",
    final_div_factor=1.0,
    pct_start=0.0,
    max_momentum=0.1,
)

BOTH_WAYS = {
    "beta-rounded-below-0": Story(ENDS_AT_BETA_0, ADAM, 1, [STEP, LOOK]),
    "child-past-its-table": story(Sequential([2], [leaf("LinearLR"), LAMBDA]), PREPARE, *STEPS),
    "only-child-past-its-table": story(Sequential([], [LAMBDA]), PREPARE, *STEPS, *STEPS),
    "resumed-child-restarts": story(
        Sequential([4], [leaf("ExponentialLR", gamma=0.9), LAMBDA]),
        *(STEP, STEP, Operation("resume", (5,)), *STEPS),
    ),
    "one-cycle-without-last-phase": story(WITHOUT_LAST_PHASE, *STEPS),
    "momentum-passes-zero": story(THROUGH_ZERO, *STEPS, LOOK),
    "cycled-momentum-edited": story(
        HELD_MOMENTUM, STEP, STEP, Operation("edit_momentum", (0, 0.1)), *STEPS
    ),
    "group-after-the-turn-of-a-child": story(TURN_IS_OVER, STEP, STEP, LATE_GROUP, *STEPS),
    "edit-after-the-end": story(
        leaf("CosineAnnealingLR", T_max=3),
        *(STEP, LATE_GROUP, STEP, STEP, Operation("edit_lr", (0, 0.3)), STEP),
    ),
    "load-after-the-end": story(
        leaf("LambdaLR", lr_lambda=listed),
        *([STEP] * 6),
        *(Operation("save"), Operation("load"), LOOK, STEP),
    ),
    "late-group-raises-after-a-write": story(LAMBDA, STEP, LATE_GROUP, STEP, STEP),
    "late-group-of-a-child-with-functions": story(
        Sequential([0, 0], [leaf("SWALR", swa_lr=0.0), LAMBDA, LAMBDA]),
        *(STEP, LATE_GROUP, STEP, LOOK),
    ),
    "restarts-jump-to-a-fraction": story(
        leaf("CosineAnnealingWarmRestarts", T_0=1, T_mult=2),
        *(STEP, Operation("jump", (0.0, 1)), STEP, LOOK),
    ),
    "one-cycle-jumps-to-its-end": story(
        leaf("OneCycleLR", max_lr=0.1, total_steps=2),
        *(STEP, Operation("jump", (0.0, 2)), STEP, LOOK),
    ),
}


@pytest.mark.parametrize("id", BOTH_WAYS)
def test_what_was_found_once_explicit(id, engine):
    tell_explicit(BOTH_WAYS[id])


@pytest.mark.parametrize("id", BOTH_WAYS)
def test_what_was_found_once_fused(id, engine):
    tell_fused(BOTH_WAYS[id])


@pytest.mark.parametrize("id", BOTH_WAYS)
def test_what_was_found_once_with_an_interval(id, engine):
    tell_by_steps(BOTH_WAYS[id])
