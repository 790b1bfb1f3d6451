"""Warnings name the user's line, as torch's do."""

from __future__ import annotations

import linecache
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from tests.training import named

MODULES = (fused_sched.lr_scheduler, torch.optim.lr_scheduler)


def optimizer(schedulers: ModuleType) -> Any:
    optim = fused_sched.optim if schedulers is fused_sched.lr_scheduler else torch.optim
    param = Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    return optim.SGD([param], lr=0.1)


def alone(module: ModuleType, opt: Any) -> Any:
    return module.StepLR(opt, 3)


def inside(module: ModuleType, opt: Any) -> Any:
    return module.SequentialLR(opt, [module.StepLR(opt, 3), module.StepLR(opt, 2)], [2])


def called(module: ModuleType, opt: Any) -> Any:
    return module.LambdaLR(opt, lambda epoch: 0.5)


@pytest.mark.parametrize("build", **named([alone, inside, called]))
def test_a_step_before_the_optimizers_is_told_as_by_torch(build):
    told = []
    for module in MODULES:
        scheduler = build(module, optimizer(module))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scheduler.step()
        told.append([(str(one.message), one.category) for one in caught])
        if build is not inside:  # of a child torch names the composite's line
            assert {one.filename for one in caught} == {__file__}
    assert told[0] == told[1]
    assert told[0]


@pytest.mark.parametrize("action", ["error", "ignore", "once"])
def test_filters_are_obeyed_as_by_torch(action):
    outcomes = []
    for module in MODULES:
        scheduler = alone(module, optimizer(module))
        shown: list[Any] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter(action)  # type: ignore[arg-type]
            try:
                scheduler.step()
            except UserWarning as error:
                shown.append(str(error))
            shown += [str(one.message) for one in caught]
        outcomes.append((shown, scheduler.last_epoch, scheduler._step_count))
    assert outcomes[0] == outcomes[1]


def test_a_call_that_does_nothing_is_told_at_its_line():
    opt = optimizer(fused_sched.lr_scheduler)
    scheduler = fused_sched.lr_scheduler.StepLR(opt, 3)
    fused_sched.fuse(opt, scheduler, interval=1)
    opt.step()
    with pytest.warns(UserWarning, match="advances by itself") as caught:
        scheduler.step()
    (one,) = caught
    assert one.filename == __file__
    assert linecache.getline(one.filename, one.lineno).strip() == "scheduler.step()"


def test_a_step_in_order_leaves_the_filters_alone(monkeypatch):
    """Python forgets which warnings it has shown where they are held back."""

    def refuse(*_: Any, **__: Any) -> Callable[..., Any]:
        raise AssertionError

    opt = optimizer(fused_sched.lr_scheduler)
    scheduler = alone(fused_sched.lr_scheduler, opt)
    opt.step()
    monkeypatch.setattr(warnings, "catch_warnings", refuse)
    scheduler.step()
