"""Every schedule on the device, alone: up to 1,000 steps against stock torch's Python floats."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fused_sched
from fused_sched.engines import engine_for
from tests.cases import PROMISE, SCHEDULERS, SchedulerCase, plain_step
from tests.differences import note_schedule
from tests.twins import RATES, assert_same

STEPS = 1000
FEWER = 120
"""Steps of the rows that are not in LONG: the interpreter takes 3 to 16 ms for each."""

LONG = (
    "LambdaLR-list",
    "MultiplicativeLR-list",
    "StepLR-every-7",
    "MultiStepLR-sorted",
    "ConstantLR-long",
    "LinearLR-decay-to-0",
    "ExponentialLR-slow",
    "PolynomialLR-power-2",
    "CosineAnnealingLR-long",
    "CosineAnnealingWarmRestarts-mult-2",
    "CyclicLR-exp_range",
    "OneCycleLR-three-phase-linear",
    "SequentialLR-warmup-cosine",
    "ChainedScheduler-three",
    "SWALR-linear",
    "ReduceLROnPlateau-min-rel",
)
"""One row of each class."""

BY_ITSELF = [case for case in SCHEDULERS if case.advance is plain_step]
WITH_METRIC = [case for case in SCHEDULERS if case.advance is not plain_step]
CYCLES = [case for case in SCHEDULERS if case.name in ("CyclicLR", "OneCycleLR")]

# A SequentialLR starts its children before any optimizer step, and some cases have no such step.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")


def over(cases: list[SchedulerCase]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


@pytest.fixture(autouse=True)
def _launching(launch_engine: str) -> None:
    """Every test here runs on each engine that launches."""


class Stock:
    """Stock torch's optimizer and scheduler of a case, stepped without gradients."""

    def __init__(self, case: SchedulerCase, name: str) -> None:
        self.case = case
        self.encode = getattr(fused_sched.optim, name)._rule.encode
        self.opt, self.scheduler = pair(case, name, torch.optim, torch.optim.lr_scheduler)

    def record(self) -> list[list[float]]:
        return [self.encode(group) for group in self.opt.param_groups]

    def values(self, steps: int) -> Tensor:
        """The hyper record after 0, 1, ..., steps steps: [steps + 1, columns, groups]."""
        values = [self.record()]
        for step in range(1, steps + 1):
            self.case.advance(self.scheduler, step)
            values.append(self.record())
        return torch.tensor(values, dtype=torch.float64).transpose(1, 2)


def pair(case: SchedulerCase, name: str, optim: Any, schedulers: Any) -> tuple[Optimizer, Any]:
    """An optimizer with one tiny param per group, and the case's scheduler on it."""
    groups = [{"params": [Parameter(torch.ones(1))], "lr": lr} for lr in RATES]
    opt = getattr(optim, name)(groups)
    return opt, case.build(schedulers, opt)


class OnDevice:
    """Our pair of a case, its schedule advanced on the device only."""

    def __init__(self, case: SchedulerCase, name: str) -> None:
        self.opt, self.scheduler = pair(case, name, fused_sched.optim, fused_sched.lr_scheduler)
        self.opt.prepare()
        self.ledger = self.opt._ledger
        (device_state,) = self.ledger.mirror.host.device_states.values()
        self.buffer = device_state.buffer
        self.program = device_state.buffer.programs[
            self.ledger.mirror.host.schedules.program_of(self.scheduler)
        ]

    def advance(self, steps: int = 1, metric: float | None = None) -> Tensor:
        """The hyper record after each step: [steps, columns, groups]."""
        trace = torch.full((steps, *self.buffer.record.shape[1:]), math.nan, dtype=torch.float64)
        given = None if metric is None else torch.tensor([metric], dtype=torch.float64)
        engine = engine_for(torch.device("cpu"))
        engine.advance(self.buffer, self.program, steps, metric=given, trace=trace)
        self.ledger.mirror.account.note_unknown()
        return trace

    def values(self, steps: int) -> Tensor:
        start = self.buffer.record[:1].clone()
        return torch.cat([start, self.advance(steps)])


def assert_promise(case: SchedulerCase, ours: Tensor, stock: Tensor) -> None:
    """Each value of each step; both are [steps + 1, columns, groups], from step 0 on."""
    shares = torch.tensor([case.tolerance(step) for step in range(len(stock))]).double()
    peak = stock.abs().amax(dim=0)
    note_schedule(ours, stock, peak)
    allowed = shares[:, None, None] * peak
    wrong = ~((ours == stock) | ((ours - stock).abs() <= allowed))
    assert not wrong.any(), [
        f"step {step} column {column} group {group}: {ours[step, column, group].item()!r}, "
        f"torch has {stock[step, column, group].item()!r}"
        for step, column, group in wrong.nonzero()[:5].tolist()
    ]


def steps_of(case: SchedulerCase) -> int:
    return case.horizon(STEPS if case.id in LONG else FEWER)


def test_every_class_has_a_long_run():
    names = {case.name for case in SCHEDULERS}
    assert {case.name for case in SCHEDULERS if case.id in LONG} == names
    assert len(LONG) == len(names)


@over(BY_ITSELF)
def test_schedule_equals_stock_at_each_step(case):
    steps = steps_of(case)
    stock, ours = Stock(case, "SGD"), OnDevice(case, "SGD")
    assert_promise(case, ours.values(steps), stock.values(steps))
    tolerance = case.tolerance(steps)
    assert_same(ours.scheduler.state_dict(), stock.scheduler.state_dict(), tolerance)


@over(CYCLES)
def test_beta1_cycles_as_in_stock(case):
    """Adam has beta1 for a momentum, and the record keeps its logarithm."""
    steps = case.horizon(FEWER)
    stock, ours = Stock(case, "Adam"), OnDevice(case, "Adam")
    assert_promise(case, ours.values(steps), stock.values(steps))


class _FedOnDevice:
    """Takes ``step(metric)`` in place of a scheduler, on the device; keeps what comes of it."""

    def __init__(self, ours: OnDevice) -> None:
        self.ours = ours
        self.seen = [ours.buffer.record[:1].clone()]

    def step(self, metric: float) -> None:
        self.seen.append(self.ours.advance(metric=metric))


@over(WITH_METRIC)
def test_plateau_equals_stock_at_each_metric(case):
    steps = steps_of(case)
    stock, ours = Stock(case, "SGD"), OnDevice(case, "SGD")
    fed = _FedOnDevice(ours)
    for step in range(1, steps + 1):
        case.advance(fed, step)
    assert_promise(case, torch.cat(fed.seen), stock.values(steps))
    assert_same(ours.scheduler.state_dict(), stock.scheduler.state_dict(), PROMISE)
