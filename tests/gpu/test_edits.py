"""Between replays: edits, checkpoints, reads. During a capture: reads return, writes raise."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch.nn import Parameter

import fused_sched

from .capture import capture, new_graph
from .observe import no_sync
from .training import (
    ADAMW_COSINE,
    ADAMW_ONE_CYCLE,
    PAIRS,
    SGD_COSINE,
    Pair,
    Training,
    assert_same_params,
    assert_same_values,
    cosine,
    train_both,
)


def fused_and_captured(pair, device):
    """(ours, stock, graph), after the warm-up."""
    ours, stock = train_both(pair, device)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    stock.warm_up()
    return ours, stock, ours.capture()


@pytest.fixture
def graphed(device):
    """Of SGD with a cosine."""
    return fused_and_captured(SGD_COSINE, device)


def assert_follows(graphed, replays: int, when: str) -> None:
    ours, stock, graph = graphed
    for step in range(replays):
        ours.replay(graph)
        stock.iteration()
        assert_same_values(ours, stock, f"{when}, replay {step + 1}")
    assert_same_params(ours, stock, torch.float64, when)


# -- edits between replays -----------------------------------------------------------------------


EDITS = [
    *((SGD_COSINE, "lr", 0.2), (SGD_COSINE, "momentum", 0.5), (SGD_COSINE, "dampening", 0.3)),
    *((SGD_COSINE, "weight_decay", 0.3), (SGD_COSINE, "maximize", True)),
    (SGD_COSINE, "nesterov", False),
    *((ADAMW_COSINE, "lr", 0.2), (ADAMW_COSINE, "betas", (0.5, 0.9)), (ADAMW_COSINE, "eps", 0.01)),
    *((ADAMW_COSINE, "weight_decay", 0.3), (ADAMW_COSINE, "maximize", True)),
]


@pytest.mark.parametrize("pair, key, value", EDITS, ids=[f"{e[0].optimizer}-{e[1]}" for e in EDITS])
def test_value_assigned_between_replays_takes_effect_at_the_next(pair, key, value, device):
    ours, stock, graph = graphed = fused_and_captured(pair, device)
    assert_follows(graphed, 2, "before the edit")
    stock.opt.param_groups[0][key] = value
    with no_sync(device):
        ours.opt.param_groups[0][key] = value
        ours.replay(graph)
    stock.iteration()
    assert_same_values(ours, stock, "one replay after the edit")
    assert_same_params(ours, stock, torch.float64, "one replay after the edit")
    assert_follows(graphed, 3, "after the edit")


def test_lr_assigned_between_replays_without_a_scheduler(device):
    weight = Parameter(torch.zeros(4, device=device))
    weight.grad = torch.ones(4, device=device)
    opt = fused_sched.optim.SGD([weight], lr=1.0)
    opt.prepare()
    graph = new_graph(device)
    with capture(graph):
        opt.step()
    expected = 0.0
    for lr in (1.0, 0.5, 0.25, 0.25, 2.0):
        opt.param_groups[0]["lr"] = lr
        graph.replay()
        expected -= lr
        assert weight.tolist() == [expected] * 4


def test_scheduler_attribute_assigned_between_replays_takes_effect(graphed):
    ours, stock, _ = graphed
    assert_follows(graphed, 2, "before")
    ours.sched.eta_min = stock.sched.eta_min = 0.03
    assert_follows(graphed, 3, "after eta_min was assigned")


def test_stock_scheduler_between_replays_moves_the_lr(device):
    """torch's own class on our optimizer: it assigns lr, and replays use it."""
    pair = Pair("stock", "AdamW", {"lr": 0.01}, lambda _, o: cosine(torch.optim.lr_scheduler, o))
    ours, stock = train_both(pair, device)
    ours.warm_up()
    stock.warm_up()
    graph = ours.capture()
    for replay in range(4):
        ours.replay(graph)
        ours.sched.step()
        stock.iteration()
        assert_same_values(ours, stock, f"after replay {replay + 1}")
    assert_same_params(ours, stock, torch.float64, "after 4 replays")


@pytest.mark.parametrize("pair", [ADAMW_COSINE, SGD_COSINE], ids=["AdamW", "SGD"])
def test_state_cleared_between_replays_starts_anew_in_place(pair, device):
    graphed = ours, stock, _ = fused_and_captured(pair, device)
    assert_follows(graphed, 2, "before")
    before = addresses(ours)
    ours.opt.state.clear()
    ours.opt.prepare()
    stock.opt.state.clear()
    assert_follows(graphed, 3, "after")
    assert addresses(ours) == before
    assert ours.steps() == stock.steps()


def test_edits_of_each_group_reach_that_group(device):
    groups = [
        {"params": [Parameter(torch.zeros(3, device=device))], "lr": lr} for lr in (1.0, 2.0, 4.0)
    ]
    for group in groups:
        group["params"][0].grad = torch.ones(3, device=device)
    opt = fused_sched.optim.SGD(groups)
    opt.prepare()
    graph = new_graph(device)
    with capture(graph):
        opt.step()
    graph.replay()
    opt.param_groups[1]["lr"] = 16.0
    graph.replay()
    assert [group["params"][0].tolist()[0] for group in groups] == [-2.0, -18.0, -8.0]


# -- checkpoints between replays -----------------------------------------------------------------


def addresses(ours: Training) -> list[int]:
    """Every address that a graph may know, but the gradients'."""
    (device_state,) = ours.opt._ledger.mirror.host.device_states.values()
    state = ours.opt.state
    tensors = [state[p][key] for p in state for key in state[p] if key != "step"]
    tables = [device_state.buffer.memory, device_state.table.info, device_state.table.chunks]
    return [tensor.data_ptr() for tensor in [*ours.net.parameters(), *tensors, *tables]]


@pytest.mark.parametrize("pair", PAIRS, ids=[pair.id for pair in PAIRS])
def test_checkpoint_loaded_between_replays_takes_effect(pair, device):
    """The same three steps twice: from the checkpoint on, values and params repeat exactly."""
    ours = Training(pair, fused_sched, device, torch.float64)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    graph = ours.capture()
    for _ in range(2):
        ours.replay(graph)
    saved = deepcopy((ours.net.state_dict(), ours.opt.state_dict(), ours.sched.state_dict()))
    done, before = ours.done, addresses(ours)

    def three_replays() -> list:
        seen = []
        for _ in range(3):
            ours.replay(graph)
            seen.append((ours.values(), ours.params().tolist()))
        return [*seen, ours.steps(), ours.sched.state_dict().get("last_epoch")]

    first = three_replays()
    ours.net.load_state_dict(saved[0])
    ours.opt.load_state_dict(saved[1])
    ours.sched.load_state_dict(saved[2])
    ours.done = done
    assert addresses(ours) == before
    assert three_replays() == first


def test_stock_checkpoint_loaded_between_replays_takes_effect(device):
    ours, stock = train_both(ADAMW_ONE_CYCLE, device)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    graph = ours.capture()
    ours.replay(graph)
    for _ in range(7):
        stock.iteration()
    ours.net.load_state_dict(stock.net.state_dict())
    ours.opt.load_state_dict(deepcopy(stock.opt.state_dict()))
    ours.sched.load_state_dict(deepcopy(stock.sched.state_dict()))
    ours.done = stock.done
    assert_same_values(ours, stock, "after the load")
    assert_follows((ours, stock, graph), 4, "after the load")
    assert ours.steps() == stock.steps()


# -- during a capture ----------------------------------------------------------------------------


def test_reads_during_a_capture_return_the_last_values(graphed):
    ours, stock, graph = graphed
    assert_follows((ours, stock, graph), 2, "before")
    expected = ours.values(), ours.sched.get_last_lr(), ours.sched.last_epoch
    ours.opt.zero_grad(set_to_none=True)
    with capture(new_graph(ours.device)):
        ours.backward()
        ours.opt.step()
        during = ours.values(), ours.sched.get_last_lr(), ours.sched.last_epoch
        dict(ours.opt.param_groups[0])
        repr(ours.opt)
        ours.opt.state_dict()
        ours.sched.state_dict()
    assert during == expected


def test_writes_during_a_capture_raise_and_change_nothing(graphed):
    ours, stock, graph = graphed
    state = ours.opt.state_dict()
    ours.opt.zero_grad(set_to_none=True)
    with capture(new_graph(ours.device)):
        ours.backward()
        with pytest.raises(RuntimeError, match="captured"):
            ours.opt.param_groups[0]["lr"] = 9.0
        with pytest.raises(RuntimeError, match="captured"):
            ours.opt.param_groups[0].update(momentum=0.1)
        with pytest.raises(RuntimeError, match="captured"):
            ours.opt.load_state_dict(state)
        with pytest.raises(RuntimeError, match="capture"):
            ours.opt.prepare()
    assert_follows((ours, stock, graph), 3, "after the refusals")


# -- after a capture -----------------------------------------------------------------------------


def test_add_param_group_after_a_capture_raises_until_released(graphed):
    ours, stock, graph = graphed
    extra = Parameter(torch.ones(3, device=ours.device, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"release_capture\(\)"):
        ours.opt.add_param_group({"params": [extra]})
    assert_follows((ours, stock, graph), 2, "after the refusal")
    del graph
    ours.opt.release_capture()
    ours.opt.add_param_group({"params": [extra], "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0})
    extra.grad = torch.ones_like(extra)
    ours.opt.param_groups[1]["nesterov"] = False
    ours.opt.step()
    assert extra.tolist() == [0.5] * 3


def test_a_new_param_after_a_capture_raises_until_released(device):
    first, second = (Parameter(torch.zeros(3, device=device)) for _ in range(2))
    first.grad = torch.ones_like(first)
    opt = fused_sched.optim.SGD([first, second], lr=1.0)
    opt.step()
    graph = new_graph(device)
    with capture(graph):
        opt.step()
    second.grad = torch.ones_like(second)
    with pytest.raises(RuntimeError, match=r"release_capture\(\)"):
        opt.step()
    graph.replay()
    assert (first.tolist(), second.tolist()) == ([-2.0] * 3, [0.0] * 3)
    opt.release_capture()
    opt.step()
    assert (first.tolist(), second.tolist()) == ([-3.0] * 3, [-1.0] * 3)


def test_a_table_that_ends_inside_a_graph_holds_and_then_raises(device):
    weight = Parameter(torch.zeros(3, device=device))
    weight.grad = torch.ones_like(weight)
    opt = fused_sched.optim.SGD([weight], lr=1.0)
    sched = fused_sched.lr_scheduler.LambdaLR(opt, lambda epoch: 0.5**epoch, horizon=3)
    fused_sched.fuse(opt, sched)
    graph = new_graph(device)
    with capture(graph):
        opt.step()
    for _ in range(5):
        graph.replay()
    assert weight.tolist() == [-(1 + 0.5 + 0.25 + 0.125 + 0.125)] * 3
    with pytest.raises(RuntimeError, match="horizon"):
        opt.param_groups[0]["lr"]


def test_one_cycle_that_ends_inside_a_graph_holds_and_then_raises(device):
    weight = Parameter(torch.zeros(3, device=device, dtype=torch.float64))
    weight.grad = torch.ones_like(weight)
    opt = fused_sched.optim.SGD([weight], lr=1.0)
    plan = {"max_lr": 1.0, "total_steps": 4, "cycle_momentum": False}
    fused_sched.fuse(opt, fused_sched.lr_scheduler.OneCycleLR(opt, **plan))
    stock = torch.optim.SGD([Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(stock, **plan)
    stock.step()
    rates = [stock.param_groups[0]["lr"]]
    for _ in range(4):  # torch's raises at the fifth
        reference.step()
        rates.append(stock.param_groups[0]["lr"])
    graph = new_graph(device)
    with capture(graph):
        opt.step()
    for _ in range(len(rates) + 2):
        graph.replay()
    expected = -(sum(rates) + 2 * rates[-1])
    assert weight.tolist() == pytest.approx([expected] * 3, rel=1e-12)
    with pytest.raises(RuntimeError, match="total_steps"):
        opt.param_groups[0]["lr"]
