"""Every scheduler row, a thousand steps on the device, against stock torch's Python floats."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fused_sched
from fused_sched.engines import engine_for
from tests.cases import SchedulerCase
from tests.test_schedules import BY_ITSELF, RATES, WITH_METRIC, Stock, assert_promise, over

STEPS = 1000 if torch.cuda.is_available() else 30

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")


class OnDevice:
    """Our pair of a case, its schedule advanced on the device only."""

    def __init__(self, case: SchedulerCase, name: str, rates: list[float], device: torch.device):
        groups = [{"params": [Parameter(torch.ones(1, device=device))], "lr": lr} for lr in rates]
        self.opt = getattr(fused_sched.optim, name)(groups)
        self.scheduler = case.build(fused_sched.lr_scheduler, self.opt)
        self.opt.prepare()
        ledger = self.opt._ledger
        (device_state,) = ledger.mirror.host.device_states.values()
        self.buffer = device_state.buffer
        self.program = device_state.buffer.programs[
            ledger.mirror.host.schedules.program_of(self.scheduler)
        ]

    def advance(self, steps: int = 1, metric: float | None = None) -> Tensor:
        """The hyper record after each step: [steps, columns, groups]."""
        where = {"dtype": torch.float64, "device": self.buffer.device}
        trace = torch.full((steps, *self.buffer.record.shape[1:]), math.nan, **where)
        given = None if metric is None else torch.tensor([metric], **where)
        engine = engine_for(self.buffer.device)
        engine.advance(self.buffer, self.program, steps, metric=given, trace=trace)
        return trace.cpu()

    def start(self) -> Tensor:
        return self.buffer.record[:1].to("cpu", copy=True)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@over(BY_ITSELF)
def test_schedule_on_the_device_equals_stock(case, name, device):
    steps = case.horizon(STEPS)
    stock, ours = Stock(case, name), OnDevice(case, name, list(RATES), device)
    assert_promise(case, torch.cat([ours.start(), ours.advance(steps)]), stock.values(steps))


@over(WITH_METRIC)
def test_plateau_on_the_device_equals_stock(case, device):
    stock, ours = Stock(case, "SGD"), OnDevice(case, "SGD", list(RATES), device)
    values = [ours.start()]

    class Fed:
        def step(self, metric: float) -> None:
            values.append(ours.advance(metric=metric))

    for step in range(1, STEPS + 1):
        case.advance(Fed(), step)
    assert_promise(case, torch.cat(values), stock.values(STEPS))


_MANY = (
    "CosineAnnealingWarmRestarts-mult-2",
    "LambdaLR-function",
    "OneCycleLR-default",
    "SequentialLR-warmup-cosine",
    "ChainedScheduler-three",
)
MANY = [case for case in BY_ITSELF if case.id in _MANY]


@pytest.mark.parametrize("groups", [128, 129, 465])
@over(MANY)
def test_more_groups_than_lanes(case, groups, device):
    """The program takes 128 groups at a time and moves the rows' scalars with the last."""
    rates = [RATES[i % len(RATES)] for i in range(groups)]
    steps = case.horizon(STEPS // 5)
    ours = OnDevice(case, "SGD", rates, device)
    values = torch.cat([ours.start(), ours.advance(steps)])
    stock = Stock(case, "SGD").values(steps)
    assert_promise(case, values, stock[:, :, [g % len(RATES) for g in range(groups)]])
