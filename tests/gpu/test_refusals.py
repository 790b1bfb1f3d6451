"""After a capture: what a graph could not follow raises, and works once it is released."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch.nn import Parameter

import fused_sched

from .capture import capture, new_graph
from .training import (
    Pair,
    Training,
    assert_same_params,
    assert_same_values,
    exponential,
    train_both,
)

PLAIN_SGD = Pair("SGD-ExponentialLR", "SGD", {"lr": 0.01}, exponential)
ADAM = Pair("Adam-ExponentialLR", "Adam", {"lr": 0.01}, exponential)
MOMENTUM = Pair("SGD-momentum", "SGD", {"lr": 0.01, "momentum": 0.9}, exponential)


def new_group(ours: Training) -> dict:
    extra = Parameter(torch.ones(3, device=ours.device, dtype=torch.float64))
    extra.grad = torch.ones_like(extra)
    return {"params": [extra]}


def add_group(ours: Training) -> None:
    ours.opt.add_param_group(new_group(ours))


def append_group(ours: Training) -> None:
    groups = ours.opt.param_groups
    groups.append({**groups[0], **new_group(ours)})
    try:
        ours.opt.step()
    except RuntimeError:
        groups.pop()
        raise


def move_param(ours: Training) -> None:
    param = next(ours.net.parameters())
    memory = param.data
    param.data = memory.clone()
    try:
        ours.opt.step()
    except RuntimeError:
        param.data = memory
        raise


def replace_param(ours: Training) -> None:
    params = ours.opt.param_groups[0]["params"]
    before, (params[0],) = params[0], new_group(ours)["params"]
    try:
        ours.opt.step()
    except RuntimeError:
        params[0] = before
        raise


def fuse_another(ours: Training) -> None:
    fused_sched.fuse(ours.opt, exponential(fused_sched.lr_scheduler, ours.opt))


def unfuse(ours: Training) -> None:
    fused_sched.unfuse(ours.opt)


def keep_history(ours: Training) -> None:
    ours.sched.history(10)


def change_engine(ours: Training) -> None:
    with fused_sched.use_engine("eager"):
        ours.opt.step()


def ask_for_momentum(ours: Training) -> None:
    ours.opt.param_groups[0]["momentum"] = 0.9


def load_amsgrad(ours: Training) -> None:
    saved = deepcopy(ours.opt.state_dict())
    saved["param_groups"][0]["amsgrad"] = True
    for entry in saved["state"].values():
        entry["max_exp_avg_sq"] = entry["exp_avg_sq"].clone()
    ours.opt.load_state_dict(saved)


REFUSED = [
    *((MOMENTUM, change) for change in (add_group, append_group, move_param, replace_param)),
    *((MOMENTUM, change) for change in (fuse_another, unfuse, keep_history, change_engine)),
    *((PLAIN_SGD, ask_for_momentum), (ADAM, load_amsgrad)),
]


@pytest.mark.parametrize("pair, change", REFUSED, ids=[change.__name__ for _, change in REFUSED])
def test_what_a_graph_cannot_follow_waits_for_the_release(
    pair: Pair, change: Callable[[Training], None], device
):
    ours, stock = train_both(pair, device)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    stock.warm_up()
    graph = ours.capture()
    ours.replay(graph)
    stock.iteration()
    with pytest.raises(RuntimeError, match=r"release_capture\(\)"):
        change(ours)
    for replay in range(2):
        ours.replay(graph)
        stock.iteration()
        assert_same_values(ours, stock, f"replay {replay + 1} after the refusal")
    assert_same_params(ours, stock, torch.float64, "after the refusal")
    del graph
    ours.opt.release_capture()
    change(ours)
    ours.iteration()


def test_amsgrad_asked_for_after_a_capture_is_refused(device):
    """Released or not: torch has no such state for steps that were made without it."""
    ours, _ = train_both(ADAM, device)
    ours.warm_up()
    graph = ours.capture()
    with pytest.raises(RuntimeError, match=r"needs more state.*release_capture\(\)"):
        ours.opt.param_groups[0]["amsgrad"] = True
    assert ours.opt.param_groups[0]["amsgrad"] is False
    ours.replay(graph)


def test_schedule_that_grows_after_a_capture_is_refused(device):
    weight = Parameter(torch.zeros(3, device=device))
    weight.grad = torch.ones_like(weight)
    opt = fused_sched.optim.SGD([weight], lr=1.0)
    sched = fused_sched.lr_scheduler.MultiStepLR(opt, [1], gamma=0.5)
    fused_sched.fuse(opt, sched)
    graph = new_graph(device)
    with capture(graph):
        opt.step()
    before, longer = sched.milestones, Counter(range(1, 100))
    with pytest.raises(RuntimeError, match=r"changed its size.*release_capture\(\)"):
        sched.milestones = longer
    sched.milestones = before
    graph.replay()
    graph.replay()
    assert weight.tolist() == [-1.5] * 3
    del graph
    opt.release_capture()
    sched.milestones = longer
    opt.step()


def test_captured_lr_tensor_cannot_be_replaced(device):
    rate = torch.tensor(0.5, dtype=torch.float64, device=device)
    weight = Parameter(torch.zeros(3, device=device))
    weight.grad = torch.ones_like(weight)
    opt = fused_sched.optim.SGD([weight], lr=rate)
    opt.prepare()
    graph = new_graph(device)
    with capture(graph):
        opt.step()
    with pytest.raises(RuntimeError, match=r"fill_\(0.25\)"):
        opt.param_groups[0]["lr"] = 0.25
    rate.fill_(0.25)
    graph.replay()
    assert weight.tolist() == [-0.25] * 3
    del graph
    opt.release_capture()
    opt.param_groups[0]["lr"] = 1.0
    opt.step()
    assert weight.tolist() == [-1.25] * 3
