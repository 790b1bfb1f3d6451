"""A step count that somebody holds: current after a read, and counted when it is written."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from tests.training import check


class Run:
    """Two params under Adam and a schedule, and the step count of the first one, held."""

    def __init__(self, optim: ModuleType, schedulers: ModuleType) -> None:
        torch.manual_seed(3)
        self.params = [Parameter(torch.randn(3)), Parameter(torch.randn(2, 2))]
        self.opt: Any = optim.Adam(self.params, lr=0.1)
        self.scheduler: Any = schedulers.CosineAnnealingLR(self.opt, 50)
        self.steps = 0

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.steps += 1
            for param in self.params:
                param.grad = torch.sin(param.detach() + self.steps)
            self.opt.step()
            self.scheduler.step()

    def hold(self) -> None:
        self.held = self.opt.state[self.params[0]]["step"]


class Both:
    def __init__(self, fused: bool) -> None:
        self.stock = Run(torch.optim, torch.optim.lr_scheduler)
        self.ours = Run(fused_sched.optim, fused_sched.lr_scheduler)
        if fused:
            fused_sched.fuse(self.ours.opt, self.ours.scheduler)
        self.do(lambda run: (run.step(4), run.hold()))

    def do(self, action: Any) -> None:
        for run in (self.stock, self.ours):
            action(run)

    def check(self) -> None:
        check(self.ours.params, self.stock.params)
        read = self.ours.opt.state[self.ours.params[0]]["step"]
        assert read is self.ours.held
        assert float(read) == float(self.stock.held)


@pytest.fixture(params=[False, True], ids=["explicit", "fused"])
def both(request, engine):
    return Both(request.param)


READS = [
    lambda opt, param: opt.state,
    lambda opt, param: opt.state[param],
    lambda opt, param: opt.state_dict(),
]
EDITS = [lambda held: held.fill_(100), lambda held: held.add_(7), lambda held: held.zero_()]


@pytest.mark.parametrize("read", READS, ids=["state", "entry", "state_dict"])
def test_a_held_count_is_current_after_any_read(read, both):
    both.do(lambda run: run.step(5))
    read(both.ours.opt, both.ours.params[0])
    assert float(both.ours.held) == 9.0


@pytest.mark.parametrize("edit", EDITS, ids=["fill", "add", "zero"])
@pytest.mark.parametrize("between", [0, 1, 3])
def test_an_edit_counts_from_the_next_step_on(edit, between, both):
    """Whether or not anybody reads the state between the steps."""
    both.do(lambda run: run.step(between))
    both.do(lambda run: edit(run.held))
    both.do(lambda run: run.step())
    both.check()
    both.do(lambda run: run.step(4))
    both.check()
    both.do(lambda run: edit(run.held))
    both.do(lambda run: run.step(2))
    both.check()


def test_an_edit_counts_through_the_entry_and_through_a_view(both):
    both.do(lambda run: run.step(3))
    both.do(lambda run: run.held.detach().fill_(40))
    both.do(lambda run: run.step(2))
    both.check()
    both.do(lambda run: run.opt.state[run.params[0]]["step"].fill_(3))
    both.do(lambda run: run.step(2))
    both.check()


def test_an_edit_to_the_value_that_it_had_counts(both):
    """And one by somebody who lets go of it at once."""
    both.do(lambda run: run.step(3))
    both.do(lambda run: run.held.fill_(4))
    both.do(lambda run: run.step(2))
    both.check()
    both.do(lambda run: (run.held.fill_(60), delattr(run, "held")))
    both.do(lambda run: run.step(3))
    both.do(lambda run: run.hold())
    both.check()


def test_cached_launches_come_back_when_the_count_is_let_go():
    with fused_sched.use_engine("native"):
        both = Both(fused=False)
        both.ours.step(3)
        assert both.ours.opt._cached is None
        del both.ours.held
        both.ours.step(3)
        assert both.ours.opt._cached is not None
