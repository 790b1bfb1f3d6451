"""Reads of what a schedule has set: what they give, and what they take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from tests.cases import PROMISE
from tests.test_first_step import calls_of

SCHEDULES: dict[str, Callable[[Any, Any], Any]] = {
    "cosine": lambda module, opt: module.CosineAnnealingLR(opt, 50),
    "step": lambda module, opt: module.StepLR(opt, 6, 0.5),
    "one-cycle": lambda module, opt: module.OneCycleLR(opt, [0.1, 0.3], total_steps=100),
    "lambda": lambda module, opt: module.LambdaLR(opt, lambda epoch: 1 / (1 + epoch)),
    "plateau": lambda module, opt: module.ReduceLROnPlateau(opt, patience=0),
    "chained": lambda module, opt: module.ChainedScheduler(
        [module.ConstantLR(opt, 0.5, 3), module.ExponentialLR(opt, 0.9)]
    ),
}
MODES: dict[str, dict[str, Any] | None] = {
    "explicit": None,
    "fused": {},
    "interval": {"interval": 1},
}


class Run:
    """A loop that logs."""

    def __init__(self, ours: bool, schedule: str, mode: str, lrs: Any = (0.1, 0.2)) -> None:
        optim = fused_sched.optim if ours else torch.optim
        module = fused_sched.lr_scheduler if ours else torch.optim.lr_scheduler
        params = [Parameter(torch.ones(3)) for _ in lrs]
        for param in params:
            param.grad = torch.ones(3)
        groups = [{"params": [p], "lr": lr} for p, lr in zip(params, lrs)]
        self.opt: Any = optim.AdamW(groups, lr=0.1)
        self.scheduler: Any = SCHEDULES[schedule](module, self.opt)
        self.arguments = (1.0,) if schedule == "plateau" else ()
        options = MODES[mode]
        if ours and options is not None:
            fused_sched.fuse(self.opt, self.scheduler, **options)
        self.calls = not ours or mode != "interval"

    def read(self) -> Any:
        keys = ("lr", "betas", "weight_decay")
        groups = [[group[key] for key in keys] for group in self.opt.param_groups]
        return groups, self.scheduler.get_last_lr()

    def step(self, between: bool = False) -> Any:
        """What is read in the middle, if asked for, and after it."""
        self.opt.step()
        middle = self.read() if between else None
        if self.calls:
            self.scheduler.step(*self.arguments)
        return middle, self.read()


def alike(ours: Any, stock: Any) -> None:
    if isinstance(stock, (list, tuple)):
        assert len(ours) == len(stock)
        for mine, theirs in zip(ours, stock):
            alike(mine, theirs)
    elif stock is not None:
        assert type(ours) is type(stock)
        assert ours == pytest.approx(stock, rel=0, abs=0.3 * PROMISE)


@pytest.fixture(params=["native", "eager"])
def engine(request):
    with fused_sched.use_engine(request.param):
        yield request.param


@pytest.mark.parametrize("between", [False, True], ids=["after", "between"])
@pytest.mark.parametrize("mode", ["explicit", "fused"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_read_gives_torchs_values(schedule, mode, between, engine):
    if schedule == "plateau":
        mode = "explicit"  # it takes a metric
    runs = [Run(ours, schedule, mode) for ours in (True, False)]
    for number in range(12):
        alike(*(run.step(between and number > 3) for run in runs))
        if number == 7:
            for run in runs:
                run.opt.param_groups[1]["lr"] = 0.25
            alike(*(run.read() for run in runs))
    alike(*(getattr(run.scheduler, "last_epoch", None) for run in runs))


@pytest.mark.parametrize("schedule", ["cosine", "step", "one-cycle", "chained"])
def test_a_schedule_with_an_interval_shows_torchs_values(schedule, engine):
    runs = [Run(ours, schedule, "interval") for ours in (True, False)]
    for _ in range(12):
        alike(*(run.step() for run in runs))


@pytest.mark.parametrize("mode", ["explicit", "fused"])
def test_an_int_that_no_step_changes_stays_one(mode, engine):
    runs = [Run(ours, "step", mode, lrs=(1, 0.5)) for ours in (True, False)]
    for number in range(10):
        alike(*(run.step(between=number == 1) for run in runs))
        if number == 2:
            for run in runs:
                run.opt.param_groups[0]["lr"] = 2


@pytest.mark.parametrize("mode", ["explicit", "fused"])
@pytest.mark.parametrize(
    "read",
    [
        lambda run: run.opt.param_groups[0]["lr"],
        lambda run: run.scheduler.get_last_lr(),
    ],
    ids=["group", "last"],
)
def test_a_read_takes_no_more_calls_than_torchs_scheduler(read, mode):
    with fused_sched.use_engine("native"):
        ours, stock = Run(True, "cosine", mode, (0.1,)), Run(False, "cosine", mode, (0.1,))
        for run in (ours, stock):
            for _ in range(5):
                run.step()
            run.opt.step()
        theirs = calls_of(stock.scheduler.step) + calls_of(lambda: read(stock))

        def step_and_read() -> None:
            ours.scheduler.step()
            read(ours)

        assert calls_of(step_and_read) <= theirs


def test_another_thread_reads_only_values_that_there_were():
    """A launch of many elements runs while the reader does."""
    with fused_sched.use_engine("native"):
        param = Parameter(torch.ones(1 << 18))
        param.grad = torch.ones_like(param)
        opt = fused_sched.optim.SGD([param], lr=1.0)
        scheduler = fused_sched.lr_scheduler.StepLR(opt, 1, 0.5)
        fused_sched.fuse(opt, scheduler)
        seen: list[float] = []
        done = threading.Event()

        def log() -> None:
            while not done.is_set():
                seen.append(opt.param_groups[0]["lr"])

        reader = threading.Thread(target=log)
        reader.start()
        for _ in range(60):
            opt.step()
            scheduler.step()
        done.set()
        reader.join()
    assert all(value == 0.5 ** round(-torch.log2(torch.tensor(value)).item()) for value in seen)
    assert seen == sorted(seen, reverse=True)
