"""Two trainings side by side: stock torch's, and ours in explicit or fused mode."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fused_sched
from tests.cases import PROMISE, Build
from tests.differences import note_params, note_schedule

RATES = (0.1, 0.02, 0.4)
"""lr of the groups."""


class Side:
    """An optimizer with one param in each group, and schedulers on it."""

    def __init__(self, optim: ModuleType, schedulers: ModuleType, name: str, builds: list[Build]):
        self.params = [Parameter(torch.full((3,), 1.0 + i)) for i in range(len(RATES))]
        groups = [{"params": [p], "lr": lr} for p, lr in zip(self.params, RATES)]
        extra = {"momentum": 0.9} if name == "SGD" else {}
        self.opt: Any = getattr(optim, name)(groups, **extra)
        self.schedulers = [build(schedulers, self.opt) for build in builds]

    @property
    def scheduler(self) -> Any:
        return self.schedulers[0]

    def backward(self) -> None:
        for param in self.params:
            param.grad = 0.1 * param.detach() + 0.01

    def step(self) -> None:
        self.backward()
        self.opt.step()


def stock_side(*builds: Build, name: str = "SGD") -> Side:
    return Side(torch.optim, torch.optim.lr_scheduler, name, list(builds))


def our_side(*builds: Build, name: str = "SGD") -> Side:
    return Side(fused_sched.optim, fused_sched.lr_scheduler, name, list(builds))


class Twins:
    """Stock torch's training, and ours beside it.

    Args:
        fused: our schedulers are fused, in their order.
        interval: optimizer steps per schedule step.
        answering: the loop calls ``scheduler.step()`` of fused schedules, which govern them then.
        tables: schedules without an opcode get the tables that a graph needs, as for CUDA params.
    """

    def __init__(
        self,
        *builds: Build,
        name: str = "SGD",
        fused: bool = True,
        interval: int = 1,
        answering: bool = False,
        tables: bool = False,
    ) -> None:
        self.stock = stock_side(*builds, name=name)
        self.ours = our_side(*builds, name=name)
        self.called = not fused or answering
        self.ours.opt._ledger.mirror.host.schedules.tables = tables
        self.interval = interval
        self.steps = 0
        self.peak = record(self.stock.opt).abs()
        if fused:
            for scheduler in self.ours.schedulers:
                fused_sched.fuse(self.ours.opt, scheduler, None if answering else interval)

    def sides(self) -> tuple[Side, Side]:
        return self.stock, self.ours

    def step(self) -> None:
        self.steps += 1
        self.stock.step()
        self.ours.step()
        if self.steps % self.interval == 0:
            for side in self.sides() if self.called else (self.stock,):
                for scheduler in side.schedulers:
                    scheduler.step()
        self.check()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def check(self) -> None:
        """The device's record against stock torch's floats, to the promise."""
        stock = record(self.stock.opt)
        peak = self.peak = torch.maximum(self.peak, stock.abs())
        ours = record(self.ours.opt)
        note_schedule(ours, stock, peak)
        wrong = ~((ours == stock) | ((ours - stock).abs() <= PROMISE * peak))
        assert not wrong.any(), f"step {self.steps}: {ours[wrong]}, torch has {stock[wrong]}"

    def check_host(self) -> None:
        """What users read: groups, schedulers' state, params."""
        for mine, theirs in zip(self.ours.opt.param_groups, self.stock.opt.param_groups):
            assert_same(without_params(mine), without_params(theirs))
        for mine, theirs in zip(self.ours.schedulers, self.stock.schedulers):
            assert_same(mine.state_dict(), theirs.state_dict())
            assert_same(mine.get_last_lr(), theirs.get_last_lr())
        note_params(self.ours.params, self.stock.params)
        torch.testing.assert_close(self.ours.params, self.stock.params)


def record(opt: Any) -> Tensor:
    """[groups, columns] float64: what the next launch will use, read on the device if it is there.

    Nothing catches up for it: on the eager engine it is what the groups say.
    """
    ledger = getattr(opt, "_fused_sched_ledger", None)
    for device_state in () if ledger is None else ledger.mirror.host.device_states.values():
        half = (
            int(device_state.buffer.clock[0]) + ledger.mirror.account.cadence.ahead
        )  # it may be taken back
        return device_state.buffer.record[half & 1].t().clone()
    encode = getattr(fused_sched.optim, type(opt).__name__)._rule.encode
    return torch.tensor([encode(group) for group in opt.param_groups], dtype=torch.float64)


def without_params(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def assert_same(ours: Any, stock: Any, tolerance: float = PROMISE) -> None:
    """The same keys, types, counters and tensors; floats to the tolerance; any function."""
    if isinstance(stock, dict):
        assert set(ours) == set(stock)
        for key, value in stock.items():
            assert_same(ours[key], value, tolerance)
    elif isinstance(stock, (list, tuple)):
        assert type(ours) is type(stock) and len(ours) == len(stock)
        for mine, theirs in zip(ours, stock):
            assert_same(mine, theirs, tolerance)
    elif isinstance(stock, Tensor):
        torch.testing.assert_close(ours, stock, rtol=0, atol=0)
    elif isinstance(stock, float):
        assert type(ours) is float
        assert ours == pytest.approx(stock, rel=tolerance, abs=tolerance)
    elif not callable(stock):
        assert type(ours) is type(stock) and ours == stock
