"""Schedules that ask users' functions: torch's steps, made without its detours."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch
from torch.nn import Parameter

import fused_sched
from tests.test_cached import (
    lr,
    lr_of_zero,
    other_param,
    plain_group_in_place,
    plain_groups,
    weight_decay,
)
from tests.test_first_step import calls_of
from tests.training import check, named

FACTORS: dict[str, Callable[[int], Any]] = {
    "float": lambda epoch: 1 / (1 + epoch),
    "int": lambda epoch: int(epoch < 6),
    "numpy": lambda epoch: numpy.float64(0.9) ** epoch,
    "tensor": lambda epoch: torch.tensor(0.9**epoch),
}


@pytest.fixture(autouse=True, params=["native", "eager"])
def _engine(request):
    with fused_sched.use_engine(request.param):
        yield


class Run:
    """Two groups, each with its own function."""

    def __init__(self, optim: ModuleType, schedulers: ModuleType, name: str, factor: Any) -> None:
        torch.manual_seed(1)
        self.params = [Parameter(torch.randn(5)) for _ in range(3)]
        groups = [{"params": self.params[:2]}, {"params": self.params[2:], "lr": 0.2}]
        self.opt: Any = optim.AdamW(groups, lr=0.1)
        self.seen: list[Any] = []

        def noted(epoch: int) -> Any:
            self.seen.append((epoch, self.scheduler.__dict__.get("_get_lr_called_within_step")))
            return factor(epoch)

        self.scheduler: Any = None
        make = getattr(schedulers, name)
        self.scheduler = make(self.opt, [factor, factor])
        self.scheduler.lr_lambdas = [noted, factor]
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        torch.manual_seed(self.steps)
        for param in self.params:
            param.grad = torch.randn_like(param.detach())
        self.opt.step()
        self.scheduler.step()

    def facts(self) -> Any:
        state = {k: v for k, v in self.scheduler.state_dict().items() if k != "_is_initial"}
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.opt.param_groups]
        kinds = [type(group["lr"]) for group in self.opt.param_groups]
        return state, groups, kinds, self.scheduler.get_last_lr(), self.seen


class Both:
    def __init__(self, name: str, factor: Any) -> None:
        self.runs = (
            Run(fused_sched.optim, fused_sched.lr_scheduler, name, factor),
            Run(torch.optim, torch.optim.lr_scheduler, name, factor),
        )

    def step(self, times: int) -> None:
        for _ in range(times):
            for run in self.runs:
                run.step()

    def do(self, change: Callable[[Run], Any]) -> None:
        for run in self.runs:
            torch.manual_seed(7)
            change(run)

    def check(self) -> None:
        ours, stock = self.runs
        check(ours.params, stock.params)
        assert ours.facts() == stock.facts()


def other_functions(run: Run) -> None:
    run.scheduler.lr_lambdas = [lambda _: 0.3, lambda _: 0.2]


def other_function_in_place(run: Run) -> None:
    run.scheduler.lr_lambdas[0] = lambda _: 0.3


def other_bases(run: Run) -> None:
    run.scheduler.base_lrs[1] = 0.7


def other_epoch(run: Run) -> None:
    run.scheduler.last_epoch = 3


def loaded(run: Run) -> None:
    run.scheduler.load_state_dict(copy.deepcopy(run.scheduler.state_dict()))


def stepped_to(run: Run) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.scheduler.step(9)


def tensor_lr(run: Run) -> None:
    for group in run.opt.param_groups:
        group["lr"] = torch.tensor(group["lr"])


def another_group(run: Run) -> None:
    run.params.append(Parameter(torch.randn(3)))
    run.opt.add_param_group({"params": [run.params[-1]], "lr": 0.2, "initial_lr": 0.2})
    run.scheduler.base_lrs.append(0.2)
    run.scheduler.lr_lambdas.append(lambda epoch: 0.5)


def raising(run: Run) -> None:
    functions = run.scheduler.lr_lambdas

    def fails(epoch: int) -> float:
        raise KeyError(epoch)

    run.scheduler.lr_lambdas[1] = fails
    for _ in range(2):
        with pytest.raises(KeyError):
            run.scheduler.step()
    run.scheduler.lr_lambdas[1] = functions[0]


def writes_in_function(run: Run) -> None:
    def writes(epoch: int) -> float:
        run.opt.param_groups[1]["weight_decay"] = 0.1 * epoch
        return 0.5

    run.scheduler.lr_lambdas[0] = writes


CHANGES = [
    lr,
    lr_of_zero,
    weight_decay,
    other_param,
    plain_groups,
    plain_group_in_place,
    other_functions,
    other_function_in_place,
    other_bases,
    other_epoch,
    loaded,
    stepped_to,
    tensor_lr,
    another_group,
    raising,
    writes_in_function,
]


@pytest.mark.parametrize("change", **named(CHANGES))
@pytest.mark.parametrize("name", ["LambdaLR", "MultiplicativeLR"])
def test_change_between_steps_is_as_in_torch(name, change):
    both = Both(name, FACTORS["float"])
    both.step(3)
    both.do(change)
    both.step(3)
    both.check()
    both.step(2)
    both.check()


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", ["LambdaLR", "MultiplicativeLR"])
def test_values_of_every_kind_are_torchs(name, factor):
    both = Both(name, FACTORS[factor])
    for _ in range(4):
        both.step(2)
        both.check()


@pytest.mark.parametrize("name", ["LambdaLR", "MultiplicativeLR"])
def test_step_takes_at_most_twice_torchs_calls(name):
    both = Both(name, FACTORS["numpy"])
    both.step(3)
    ours, stock = (calls_of(run.scheduler.step) for run in both.runs)
    assert ours <= 2 * stock
