"""Long horizons: schedules on the native engine, alone, against stock torch's recurrences."""

from __future__ import annotations

import math
from array import array
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_sched
from fused_sched.optim import SGD
from fused_sched.schedules import base
from tests import test_schedules
from tests.cases import (
    SCHEDULERS,
    SchedulerCase,
    chained,
    inverse_sqrt,
    make,
    plain_step,
    sequential,
)
from tests.differences import note_schedule
from tests.test_schedules import OnDevice, over, pair

STEPS = 20_000
MILLION = 1_000_000
BLOCK = 20_000
"""Steps between two comparisons."""

CYCLED = [SGD._rule.columns.index(name) for name in ("lr", "momentum")]

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")


@pytest.fixture(autouse=True)
def _native():
    with fused_sched.use_engine("native"):
        yield


class Stock:
    """Stock torch's optimizer and scheduler of a case, stepped without gradients."""

    def __init__(self, case: SchedulerCase) -> None:
        self.advance_one = case.advance
        self.opt, self.scheduler = pair(case, "SGD", torch.optim, torch.optim.lr_scheduler)
        self.steps = 0

    def advance(self, steps: int) -> Tensor:
        """lr and momentum after each step: [steps, 2, groups]."""
        groups, seen = self.opt.param_groups, array("d")
        for step in range(self.steps + 1, self.steps + steps + 1):
            self.advance_one(self.scheduler, step)
            for group in groups:
                seen.append(group["lr"])
                seen.append(group["momentum"])
        self.steps += steps
        values = torch.frombuffer(seen, dtype=torch.float64)
        return values.view(steps, len(groups), 2).transpose(1, 2)


class Native:
    """Our optimizer and scheduler of a case, the schedule advanced on the device only."""

    def __init__(self, case: SchedulerCase) -> None:
        self.device, self.case = OnDevice(case, "SGD"), case
        self.traces: list[Tensor] = []
        self.steps = 0

    def advance(self, steps: int) -> Tensor:
        """As of Stock; a schedule without metrics takes all steps at once."""
        self.traces.clear()
        if self.case.advance is plain_step:
            return self.device.advance(steps)[:, CYCLED]
        for step in range(self.steps + 1, self.steps + steps + 1):
            self.case.advance(self, step)
        self.steps += steps
        return torch.cat(self.traces)[:, CYCLED]

    def step(self, metric: float) -> None:
        self.traces.append(self.device.advance(metric=metric))


def worst_share(case: SchedulerCase, steps: int) -> float:
    """The largest deviation, as a share of what is promised; all values of all steps."""
    stock, native = Stock(case), Native(case)
    peak, worst = torch.zeros(()), 0.0
    for start in range(0, steps, BLOCK):
        count = min(BLOCK, steps - start)
        expected, values = stock.advance(count), native.advance(count)
        peak = torch.maximum(peak, expected.abs().amax(dim=0))
        note_schedule(values, expected, peak)
        promised = [case.tolerance(step) for step in range(start + 1, start + count + 1)]
        allowed = torch.tensor(promised, dtype=torch.float64)[:, None, None] * peak
        distance = torch.where(values == expected, 0.0, (values - expected).abs() / allowed)
        worst = max(worst, distance.max().item())
        assert not math.isnan(worst)
    return worst


@over(SCHEDULERS)
def test_20_000_steps_keep_the_promise(case, monkeypatch, record_property):
    steps = case.horizon(STEPS)
    monkeypatch.setattr(base, "DEFAULT_HORIZON", steps)
    worst = worst_share(case, steps)
    record_property("share of the promise", worst)
    assert worst <= 1.0


# -- a million -----------------------------------------------------------------------------------


def about_one(epoch: int) -> float:
    """A factor whose products neither vanish nor grow beyond measure."""
    return 1.0 + 1e-3 * math.sin(epoch)


def in_plateaus(step: int) -> float:
    """Better in the first of every 1,000 steps."""
    return -float(step // 1000)


def million(name: str, build: Any = None, **arguments: Any) -> SchedulerCase:
    limits = {key: arguments.pop(key) for key in ("tmax", "cosine_start") if key in arguments}
    return SchedulerCase(name, name, build or make(name, **arguments), **limits)


MILLIONS = [
    million("LambdaLR", lr_lambda=inverse_sqrt),
    million("MultiplicativeLR", lr_lambda=about_one),
    million("StepLR", step_size=1000, gamma=0.99),
    million("MultiStepLR", milestones=range(0, MILLION, 997), gamma=0.99),
    million("ConstantLR", factor=0.3, total_iters=MILLION - 1000),
    million("LinearLR", start_factor=1.0, end_factor=0.0, total_iters=MILLION),
    million("ExponentialLR", gamma=1 - 1e-5),
    million("PolynomialLR", total_iters=MILLION, power=2.0),
    million("CosineAnnealingLR", T_max=MILLION, eta_min=0.001, tmax=MILLION),
    million("CosineAnnealingWarmRestarts", T_0=1000, T_mult=2),
    million("CyclicLR", base_lr=0.001, max_lr=0.1, mode="exp_range", gamma=1 - 1e-6),
    million("OneCycleLR", max_lr=0.1, total_steps=MILLION, three_phase=True),
    million(
        "SequentialLR",
        sequential(
            [1000, 600_000],
            make("LinearLR", start_factor=1e-3, total_iters=1000),
            make("CosineAnnealingLR", T_max=599_000),
            make("CyclicLR", base_lr=0.001, max_lr=0.1),
        ),
        tmax=599_000,
        cosine_start=1000,
    ),
    million(
        "ChainedScheduler",
        chained(
            make("LinearLR", start_factor=1e-3, total_iters=100_000),
            make("StepLR", step_size=1000, gamma=0.999),
            make("ExponentialLR", gamma=1 - 1e-6),
        ),
    ),
    million("SWALR", swa_lr=0.01, anneal_epochs=MILLION),
    SchedulerCase(
        "ReduceLROnPlateau",
        "ReduceLROnPlateau",
        make("ReduceLROnPlateau", factor=0.99, patience=300, cooldown=20),
        advance=lambda scheduler, step: scheduler.step(in_plateaus(step)),
    ),
    SchedulerCase(
        "CosineAnnealingLR-beyond",
        "CosineAnnealingLR",
        make("CosineAnnealingLR", T_max=400),
        tmax=400,
    ),
]


def test_every_class_goes_a_million_steps():
    assert {case.name for case in MILLIONS} == {case.name for case in SCHEDULERS}


@over(MILLIONS)
def test_a_million_steps_keep_the_promise(case, monkeypatch, record_property):
    """One param group: what costs time here is stock torch."""
    monkeypatch.setattr(test_schedules, "RATES", (0.1,))
    monkeypatch.setattr(base, "DEFAULT_HORIZON", MILLION)
    worst = worst_share(case, MILLION)
    record_property("share of the promise", worst)
    assert worst <= 1.0
