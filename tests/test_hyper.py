"""``hyper``: torch's schedules, of lr, on another hyperparameter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from tests.cases import PROMISE, inverse_sqrt
from tests.twins import assert_same, record, without_params

pytestmark = [
    pytest.mark.usefixtures("short_runs"),
    pytest.mark.filterwarnings("ignore:Detected call of:UserWarning"),
]

ours = fused_sched.lr_scheduler
theirs = torch.optim.lr_scheduler

DECAYS = (0.1, 0.02, 0.4)
"""The hyperparameter in each group; for the reference, its lr."""

STEPS = 12

SCHEDULES = {
    "LambdaLR": {"lr_lambda": inverse_sqrt},
    "MultiplicativeLR": {"lr_lambda": lambda epoch: 0.9},
    "StepLR": {"step_size": 3},
    "MultiStepLR": {"milestones": [2, 7]},
    "ConstantLR": {"total_iters": 4},
    "LinearLR": {},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {"total_iters": 8},
    "CosineAnnealingLR": {"T_max": 9},
    "CosineAnnealingWarmRestarts": {"T_0": 4},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.2, "step_size_up": 3, "cycle_momentum": False},
    "OneCycleLR": {"max_lr": 0.2, "total_steps": 20, "cycle_momentum": False},
    "SWALR": {"swa_lr": 0.01},
}


def our_optimizer(key: str, name: str = "AdamW") -> Any:
    groups = [{"params": [Parameter(torch.ones(2))], key: value} for value in DECAYS]
    return getattr(fused_sched.optim, name)(groups, lr=0.01)


def reference() -> Any:
    return torch.optim.SGD([{"params": [Parameter(torch.ones(1))], "lr": v} for v in DECAYS])


def step(opt: Any) -> None:
    for group in opt.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    opt.step()


def on_device(opt: Any, key: str) -> list[float]:
    """The column as the next launch will read it."""
    return record(opt)[:, type(opt)._rule.columns.index(key)].tolist()


def stock_class(name: str) -> Any:
    return torch.optim.swa_utils.SWALR if name == "SWALR" else getattr(theirs, name)


@pytest.mark.parametrize("mode", ["explicit", "fused"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_weight_decay_moves_as_lr_would(engine, mode, name):
    opt, stock_opt = our_optimizer("weight_decay"), reference()
    scheduler = getattr(ours, name)(opt, **SCHEDULES[name], hyper="weight_decay")
    stock = stock_class(name)(stock_opt, **SCHEDULES[name])
    if mode == "fused":
        fused_sched.fuse(opt, scheduler, interval=1)
    for _ in range(STEPS):
        step(opt)
        step(stock_opt)
        stock.step()
        if mode == "explicit":
            scheduler.step()
        expected = [group["lr"] for group in stock_opt.param_groups]
        assert on_device(opt, "weight_decay") == pytest.approx(expected, rel=PROMISE)
    assert_same([group["weight_decay"] for group in opt.param_groups], expected)
    assert_same([group["lr"] for group in opt.param_groups], [0.01] * 3)
    assert_same([g["initial_weight_decay"] for g in opt.param_groups], stock_bases(stock_opt))
    assert_same(scheduler.state_dict(), stock.state_dict())
    assert_same(scheduler.get_last_lr(), stock.get_last_lr())


def stock_bases(opt: Any) -> list[float]:
    return [group["initial_lr"] for group in opt.param_groups]


@pytest.mark.parametrize("key", ["lr", "eps", "weight_decay"])
def test_any_number_of_the_groups(engine, key):
    opt = our_optimizer(key)
    scheduler = ours.ExponentialLR(opt, gamma=0.5, hyper=key)
    fused_sched.fuse(opt, scheduler, interval=1)
    assert scheduler.hyper == key
    for _ in range(3):
        step(opt)
    assert [group[key] for group in opt.param_groups] == [value / 8 for value in DECAYS]


def test_momentum_of_sgd(engine):
    opt = our_optimizer("momentum", name="SGD")
    fused_sched.fuse(
        opt, ours.LinearLR(opt, start_factor=0.5, total_iters=2, hyper="momentum"), interval=1
    )
    for _ in range(2):
        step(opt)
    assert_same([group["momentum"] for group in opt.param_groups], list(DECAYS))


def test_lr_and_weight_decay_side_by_side(engine):
    opt = our_optimizer("weight_decay")
    both = [
        ours.OneCycleLR(opt, max_lr=0.1, total_steps=20),
        ours.OneCycleLR(opt, max_lr=0.3, total_steps=30, hyper="weight_decay"),
    ]
    stock_opt = torch.optim.AdamW([Parameter(torch.ones(1))], lr=0.01)
    stock = [
        theirs.OneCycleLR(stock_opt, max_lr=0.1, total_steps=20),
        theirs.OneCycleLR(reference(), max_lr=0.3, total_steps=30),
    ]
    for scheduler in both:
        fused_sched.fuse(opt, scheduler, interval=1)
    for _ in range(STEPS):
        step(opt)
        step(stock_opt)
        for scheduler in stock:
            scheduler.step()
    for mine, reference_ in zip(both, stock):
        assert mine.get_last_lr()[0] == pytest.approx(reference_.get_last_lr()[0], rel=PROMISE)
    assert_same(opt.param_groups[0]["betas"], stock_opt.param_groups[0]["betas"])


def test_sequential_and_chained(engine):
    opt, stock_opt = our_optimizer("weight_decay"), reference()

    def build(lib: Any, opt: Any, **hyper: str) -> tuple[Any, Any]:
        warmup = lib.LinearLR(opt, start_factor=0.1, total_iters=4, **hyper)
        decay = lib.ExponentialLR(opt, gamma=0.9, **hyper)
        sequential = lib.SequentialLR(opt, [warmup, decay], [4])
        return sequential, lib.ConstantLR(opt, total_iters=3, **hyper)

    schedulers, stock = build(ours, opt, hyper="weight_decay"), build(theirs, stock_opt)
    for scheduler in schedulers:
        fused_sched.fuse(opt, scheduler, interval=1)
    for _ in range(9):
        step(opt)
        step(stock_opt)
        for scheduler in stock:
            scheduler.step()
        expected = [group["lr"] for group in stock_opt.param_groups]
        assert on_device(opt, "weight_decay") == pytest.approx(expected, rel=PROMISE)
    assert schedulers[0].hyper == "weight_decay"


def test_chained_schedulers_move_what_each_says(engine):
    opt = our_optimizer("weight_decay")
    scheduler = ours.ChainedScheduler(
        [ours.ExponentialLR(opt, 0.5, hyper="weight_decay"), ours.ExponentialLR(opt, 0.25)]
    )
    fused_sched.fuse(opt, scheduler, interval=1)
    for _ in range(2):
        step(opt)
    assert [group["weight_decay"] for group in opt.param_groups] == [v / 4 for v in DECAYS]
    assert [group["lr"] for group in opt.param_groups] == [0.01 / 16] * 3
    assert scheduler.get_last_lr() == [0.01 / 16] * 3


def test_nested_composite_is_tabulated(engine):
    opt = our_optimizer("weight_decay")
    inner = ours.ChainedScheduler([ours.ExponentialLR(opt, 0.5, hyper="weight_decay")])
    scheduler = ours.ChainedScheduler([inner, ours.ExponentialLR(opt, 0.25)])
    fused_sched.fuse(opt, scheduler, interval=1)
    for _ in range(2):
        step(opt)
    assert [group["weight_decay"] for group in opt.param_groups] == [v / 4 for v in DECAYS]
    assert [group["lr"] for group in opt.param_groups] == [0.01 / 16] * 3


def test_plateau_of_weight_decay(engine):
    opt = our_optimizer("weight_decay")
    scheduler = ours.ReduceLROnPlateau(opt, patience=0, factor=0.5, hyper="weight_decay")
    for metric in (1.0, torch.tensor(1.0), 1.0):
        step(opt)
        scheduler.step(metric)
    assert [group["weight_decay"] for group in opt.param_groups] == [v / 4 for v in DECAYS]
    assert [group["lr"] for group in opt.param_groups] == [0.01] * 3


def test_foreign_optimizer(engine):
    groups = [{"params": [Parameter(torch.ones(2))], "weight_decay": value} for value in DECAYS]
    opt = torch.optim.RMSprop(groups, lr=0.01)
    scheduler = ours.ExponentialLR(opt, gamma=0.5, hyper="weight_decay")
    for _ in range(2):
        step(opt)
        scheduler.step()
    assert [group["weight_decay"] for group in opt.param_groups] == [v / 4 for v in DECAYS]
    assert scheduler.state_dict().keys() == theirs.ExponentialLR(opt, 0.5).state_dict().keys()


def test_copy_and_get_lr_keep_the_hyperparameter(engine):
    opt = our_optimizer("weight_decay")
    scheduler = ours.ExponentialLR(opt, gamma=0.5, hyper="weight_decay")
    step(opt)
    scheduler.step()
    with pytest.warns(UserWarning, match="get_last_lr"):
        assert scheduler.get_lr() == [value / 4 for value in DECAYS]
    copied_opt, copied = copy.deepcopy((opt, scheduler))
    assert copied.hyper == "weight_decay"
    step(copied_opt)
    copied.step()
    assert [group["weight_decay"] for group in copied_opt.param_groups] == [v / 4 for v in DECAYS]
    assert [group["weight_decay"] for group in opt.param_groups] == [v / 2 for v in DECAYS]


def test_error_in_the_recurrence_leaves_the_groups_as_they_were(engine):
    opt = our_optimizer("weight_decay")
    scheduler = ours.OneCycleLR(opt, max_lr=0.1, total_steps=1, hyper="weight_decay")
    scheduler.step()
    before = [without_params(group) for group in opt.param_groups]
    with pytest.raises(ValueError, match="Tried to step 2 times"):
        scheduler.step()
    assert [without_params(group) for group in opt.param_groups] == before


@pytest.mark.parametrize("hyper", ["betas", "amsgrad", "foreach", "params", "no_such_key"])
def test_what_is_not_a_number_is_refused(hyper):
    with pytest.raises(ValueError, match=f"hyper='{hyper}' is not a number.*'weight_decay'"):
        ours.ExponentialLR(our_optimizer("weight_decay"), gamma=0.5, hyper=hyper)


def test_momentum_cycle_of_another_hyperparameter_is_refused():
    with pytest.raises(ValueError, match="pass cycle_momentum=False with hyper='weight_decay'"):
        ours.CyclicLR(
            our_optimizer("weight_decay"), 0.1, 0.2, cycle_momentum=True, hyper="weight_decay"
        )


def test_sequential_of_two_hyperparameters_is_refused():
    opt = our_optimizer("weight_decay")
    children = [ours.ExponentialLR(opt, 0.5), ours.ExponentialLR(opt, 0.5, hyper="weight_decay")]
    with pytest.raises(ValueError, match="one hyperparameter, but got .*'lr', 'weight_decay'"):
        ours.SequentialLR(opt, children, [3])
