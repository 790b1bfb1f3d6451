"""Captured steps: a thousand replays, captures without warm-up, several graphs."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from tests.cases import PROMISE

from .capture import capture, new_graph, side_stream
from .training import (
    ADAMW_ONE_CYCLE,
    PAIRS,
    SGD_COSINE,
    STEPS,
    WARM_UP,
    Pair,
    Training,
    assert_same_params,
    assert_same_values,
    exponential,
    train_both,
)

REPLAYS = 100_000 if torch.cuda.is_available() else 20

over_pairs = pytest.mark.parametrize("pair", PAIRS, ids=[pair.id for pair in PAIRS])


def assert_replays_follow(ours: Training, stock: Training, graph, dtype, steps: int) -> None:
    """Replay and step stock torch side by side; compare after each."""
    for step in range(steps):
        stock.iteration()
        ours.replay(graph)
        assert_same_values(ours, stock, f"after replay {step + 1}")
    assert ours.steps() == stock.steps()
    assert ours.sched.state_dict().get("last_epoch") == stock.sched.state_dict().get("last_epoch")
    assert ours.sched.get_last_lr() == pytest.approx(stock.sched.get_last_lr(), rel=1e-9)
    assert_same_params(ours, stock, dtype, f"after {steps} replays")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@over_pairs
def test_fused_replays_equal_stock_steps(pair, dtype, device):
    ours, stock = train_both(pair, device, dtype)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    stock.warm_up()
    graph = ours.capture()
    assert_replays_follow(ours, stock, graph, dtype, STEPS)


RECURRENT = [
    name
    for name, cls in vars(fused_sched.optim).items()
    if name in fused_sched.optim.__all__ and (cls.recurrences or cls.group_recurrences)
]


@pytest.mark.parametrize("name", RECURRENT)
def test_each_replay_takes_the_recurrences_that_the_last_one_left(name, device):
    pair = Pair(name, name, {"weight_decay": 0.01}, exponential)
    replayed, eager = (Training(pair, fused_sched, device, torch.float32) for _ in range(2))
    for one in (replayed, eager):
        if hasattr(one.opt, "train"):  # it has two modes
            one.opt.train()
        fused_sched.fuse(one.opt, one.sched)
        one.warm_up()
    graph = replayed.capture()
    for _ in range(STEPS):
        replayed.replay(graph)
        eager.iteration()
    assert torch.equal(replayed.params(), eager.params())
    of_group = replayed.opt.group_recurrences
    numbers = [[one.opt.param_groups[0][key] for key in of_group] for one in (replayed, eager)]
    assert numbers[0] == numbers[1]
    for mine, other in zip(replayed.net.parameters(), eager.net.parameters(), strict=True):
        ours, theirs = (
            [float(opt.state[param][recurrence]) for recurrence in opt.recurrences]
            for opt, param in ((replayed.opt, mine), (eager.opt, other))
        )
        assert ours == theirs


@over_pairs
def test_explicit_replays_with_scheduler_step_inside_equal_stock_steps(pair, device):
    ours, stock = train_both(pair, device)
    ours.opt.prepare()
    ours.warm_up()
    stock.warm_up()
    graph = ours.capture(scheduler_step=True)
    assert_replays_follow(ours, stock, graph, torch.float64, STEPS)


def test_explicit_capture_after_warm_up_needs_no_prepare(cuda):
    """A schedule with a device form has its program since the first step."""
    ours, stock = train_both(SGD_COSINE, cuda)
    ours.warm_up()
    stock.warm_up()
    graph = ours.capture(scheduler_step=True)
    assert_replays_follow(ours, stock, graph, torch.float64, 20)


def test_scheduler_made_after_the_first_step_can_be_captured(device):
    """Its kernel is loaded although nothing was explicit when the tables were made."""
    weight = Parameter(torch.ones(5, device=device))
    weight.grad = torch.zeros_like(weight)
    opt = fused_sched.optim.SGD([weight], lr=0.5)
    opt.step()
    sched = fused_sched.lr_scheduler.ExponentialLR(opt, gamma=0.5)
    opt.prepare()
    graph = new_graph(device)
    with capture(graph):
        opt.step()
        sched.step()
    graph.replay()
    graph.replay()
    assert opt.param_groups[0]["lr"] == 0.125


def test_explicit_step_outside_the_graph_moves_its_lr(device):
    """Once per epoch, from the host, between replays."""
    ours, stock = train_both(SGD_COSINE, device)
    ours.warm_up(scheduler_step=False)
    stock.warm_up(scheduler_step=False)
    graph = ours.capture()
    for epoch in range(4):
        for _ in range(3):
            ours.replay(graph)
            stock.iteration(scheduler_step=False)
        ours.sched.step()
        stock.sched.step()
        assert_same_values(ours, stock, f"epoch {epoch}")
    assert_same_params(ours, stock, torch.float64, "after 4 epochs")


def test_scheduler_step_beside_fused_replays_does_nothing(device):
    ours, stock = train_both(ADAMW_ONE_CYCLE, device)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    stock.warm_up()
    graph = ours.capture()
    ours.replay(graph)
    stock.iteration()
    with pytest.warns(UserWarning, match="a captured graph moves the schedule"):
        ours.sched.step()
    for step in range(4):
        ours.replay(graph)
        ours.sched.step()
        stock.iteration()
        assert_same_values(ours, stock, step)


def test_interval_counts_replays(device):
    ours, stock = train_both(SGD_COSINE, device)
    fused_sched.fuse(ours.opt, ours.sched, interval=3)
    ours.warm_up(scheduler_step=False)
    stock.warm_up(scheduler_step=False)
    stock.sched.step()
    graph = ours.capture()
    for step in range(1, 11):
        ours.replay(graph)
        stock.iteration(scheduler_step=step % 3 == 0)
        assert_same_values(ours, stock, f"after replay {step}")


@over_pairs
def test_capture_after_prepare_needs_no_step(pair, device):
    """No step before the capture, only what cuBLAS wants: forward and backward once."""
    ours, stock = train_both(pair, device)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.opt.prepare()
    with side_stream(device):
        ours.backward()
    graph = ours.capture()
    assert_replays_follow(ours, stock, graph, torch.float64, 6)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_replays_of_a_captured_first_step_equal_eager_steps(name, device):
    """State that were zeroed inside the capture would be zeroed again at each replay."""
    kwargs = {"lr": 0.1, "momentum": 0.9, "dampening": 0.3} if name == "SGD" else {"lr": 0.1}

    def build():
        weight = Parameter(torch.linspace(-1, 1, 3000, device=device))
        weight.grad = torch.linspace(2, -3, 3000, device=device)
        return weight, getattr(fused_sched.optim, name)([weight], **kwargs)

    captured, opt = build()
    opt.prepare()
    graph = new_graph(device)
    with capture(graph):
        opt.step()
    eager, reference = build()
    for _ in range(3):
        graph.replay()
        reference.step()
    assert torch.equal(captured, eager)
    mine, theirs = opt.state[captured], reference.state[eager]
    assert mine.keys() == theirs.keys() and mine
    for key, value in theirs.items():
        assert torch.equal(mine[key], value), f"{key}: {mine[key]} instead of {value}"


def test_first_capture_without_prepare_raises_naming_it(device):
    ours = Training(SGD_COSINE, fused_sched, device, torch.float32)
    ours.backward()
    touched = torch.zeros(1, device=device)
    with capture(new_graph(device)):
        touched.add_(1)  # torch warns of an empty graph
        with pytest.raises(RuntimeError, match=r"optimizer\.prepare\(\) before the capture"):
            ours.opt.step()
    before = ours.params()
    ours.opt.step()
    assert not torch.equal(before, ours.params())


def test_unprepared_scheduler_raises_inside_a_capture(device):
    """A callable is tabulated by prepare() only, since that calls user code."""
    (pair,) = [pair for pair in PAIRS if "LambdaLR" in pair.id]
    ours = Training(pair, fused_sched, device, torch.float32)
    ours.iteration(scheduler_step=False)
    touched = torch.zeros(1, device=device)
    with capture(new_graph(device)):
        touched.add_(1)
        with pytest.raises(RuntimeError, match=r"prepare\(\)"):
            ours.sched.step()


def test_two_graphs_replayed_in_turn_equal_stock(device):
    ours, stock = train_both(ADAMW_ONE_CYCLE, device)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    stock.warm_up()
    graphs = [ours.capture(), ours.capture()]
    for step in range(8):
        ours.replay(graphs[step % 2])
        stock.iteration()
        assert_same_values(ours, stock, f"after replay {step + 1}")
    assert_same_params(ours, stock, torch.float64, "after 8 replays")


def test_two_steps_in_one_graph_equal_two_steps(device):
    ours, stock = train_both(ADAMW_ONE_CYCLE, device)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    stock.warm_up()
    ours.load()
    graph = new_graph(device)
    ours.opt.zero_grad(set_to_none=True)
    with capture(graph):
        for _ in range(2):
            ours.backward()
            ours.opt.step()
            ours.opt.zero_grad(set_to_none=True)
    for replay in range(3):
        graph.replay()
        for _ in range(2):
            stock.done = WARM_UP
            stock.iteration()
        assert_same_values(ours, stock, f"after replay {replay + 1}")
    assert_same_params(ours, stock, torch.float64, "after 3 replays")


def test_eager_steps_between_replays_continue_the_run(device):
    """Eager steps have tables of their own; the graph's addresses stay."""
    ours, stock = train_both(ADAMW_ONE_CYCLE, device)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    stock.warm_up()
    graph = ours.capture()
    for step in range(6):
        stock.iteration()
        if step % 2:
            ours.iteration(scheduler_step=False)
        else:
            ours.replay(graph)
        assert_same_values(ours, stock, f"after step {step + 1}")
    assert ours.steps() == stock.steps()
    assert_same_params(ours, stock, torch.float64, "after 6 steps")


def test_a_new_capture_after_release_continues_the_run(device):
    ours, stock = train_both(ADAMW_ONE_CYCLE, device)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    stock.warm_up()
    for attempt in range(3):
        graph = ours.capture()
        for step in range(3):
            ours.replay(graph)
            stock.iteration()
            assert_same_values(ours, stock, f"capture {attempt}, replay {step + 1}")
        del graph
        ours.opt.release_capture()
    assert_same_params(ours, stock, torch.float64, "after 3 captures")


@pytest.mark.parametrize("halving", [False, True], ids=["alone", "fused"])
def test_lr_tensor_is_read_and_written_by_replays(halving, device):
    """torch's convention: the user's own tensor, filled between replays, moved by the schedule."""
    lr = torch.tensor(1.0, dtype=torch.float64, device=device)
    weight = Parameter(torch.zeros(4, device=device))
    weight.grad = torch.ones_like(weight)
    opt = fused_sched.optim.SGD([weight], lr=lr)
    sched = fused_sched.lr_scheduler.ExponentialLR(opt, gamma=0.5 if halving else 1.0)
    fused_sched.fuse(opt, sched)
    opt.step()
    assert weight.tolist() == [-1.0] * 4
    sched.step()
    graph = new_graph(device)
    with capture(graph):
        opt.step()
    graph.replay()
    assert (weight[0].item(), lr.item()) == ((-1.5, 0.25) if halving else (-2.0, 1.0))
    lr.fill_(4.0)
    graph.replay()
    assert (weight[0].item(), lr.item()) == ((-5.5, 2.0) if halving else (-6.0, 4.0))
    assert opt.param_groups[0]["lr"] is lr


def test_lr_tensor_on_the_cpu_is_refused_in_a_capture(cuda):
    """A graph would go on reading the host memory of a copy that is gone."""
    weight = Parameter(torch.zeros(4, device=cuda))
    weight.grad = torch.ones_like(weight)
    opt = fused_sched.optim.SGD([weight], lr=torch.tensor(1.0))
    opt.step()
    touched = torch.zeros(1, device=cuda)
    with capture(new_graph(cuda)):
        touched.add_(1)
        with pytest.raises(RuntimeError, match="tensor on the CPU"):
            opt.step()
    opt.step()
    assert weight.tolist() == [-2.0] * 4


@pytest.mark.parametrize("name", ["one-cycle", "exponential"])
def test_100000_replays_count_exactly(name, device):
    weight = Parameter(torch.ones(8, device=device, dtype=torch.float64))
    weight.grad = torch.zeros_like(weight)

    def schedule(module, opt):
        if name == "one-cycle":
            return module.OneCycleLR(opt, max_lr=0.1, total_steps=REPLAYS + 5)
        return module.ExponentialLR(opt, gamma=0.99999)

    opt = fused_sched.optim.AdamW([weight], lr=0.1)
    sched = schedule(fused_sched.lr_scheduler, opt)
    fused_sched.fuse(opt, sched)
    opt.prepare()
    graph = new_graph(device)
    with capture(graph):
        opt.step()
    for _ in range(REPLAYS):
        graph.replay()
    assert float(opt.state[weight]["step"]) == REPLAYS
    assert sched.last_epoch == REPLAYS
    assert sched._step_count == REPLAYS + 1

    stock = torch.optim.AdamW([Parameter(torch.ones(1))], lr=0.1)
    reference = schedule(torch.optim.lr_scheduler, stock)
    stock.step()
    for _ in range(REPLAYS):
        reference.step()
    expected = stock.param_groups[0]["lr"]
    got = opt.param_groups[0]["lr"]
    assert abs(got - expected) <= PROMISE * 0.1, f"{got!r} instead of {expected!r}"


def test_graph_survives_pressure_on_the_allocators(cuda):
    """Memory that the graph reads is handed to nobody: neither device nor page-locked."""
    ours, stock = train_both(ADAMW_ONE_CYCLE, cuda)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    stock.warm_up()
    graph = ours.capture()
    for step in range(5):
        torch.cuda.empty_cache()
        rubbish = [
            torch.full((1 << k,), -1, dtype=torch.int64, pin_memory=True) for k in range(3, 18)
        ]
        rubbish += [torch.full((1 << k,), -1, device=cuda) for k in range(3, 18)]
        del rubbish
        ours.replay(graph)
        stock.iteration()
        assert_same_values(ours, stock, f"after replay {step + 1}")
    assert_same_params(ours, stock, torch.float64, "after 5 replays")
