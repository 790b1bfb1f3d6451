"""The step path never waits for the device."""

from __future__ import annotations

import pytest
import torch

import fused_sched
from tests.cases import SCHEDULERS, plain_step

from .capture import capture, new_graph
from .observe import no_sync
from .training import (
    PAIRS,
    Pair,
    Training,
    assert_same_params,
    assert_same_values,
    train_both,
)

over_pairs = pytest.mark.parametrize("pair", PAIRS, ids=[pair.id for pair in PAIRS])
PLATEAUS = [case for case in SCHEDULERS if case.advance is not plain_step]
over_plateaus = pytest.mark.parametrize("case", PLATEAUS, ids=[case.id for case in PLATEAUS])


@over_pairs
def test_fused_steps_with_fresh_gradients_do_not_wait(pair, device):
    ours, stock = train_both(pair, device)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    stock.warm_up()
    with no_sync(device):
        for _ in range(5):
            ours.iteration()
    for _ in range(5):
        stock.iteration()
    assert_same_values(ours, stock, "after 5 steps")
    assert_same_params(ours, stock, torch.float64, "after 5 steps")


@over_pairs
def test_fused_steps_with_gradients_at_rest_do_not_wait(pair, device):
    ours, stock = train_both(pair, device)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    stock.warm_up()
    with no_sync(device):
        for _ in range(5):
            ours.opt.step()
            ours.sched.step()
    for _ in range(5):
        stock.opt.step()
        stock.sched.step()
    assert_same_values(ours, stock, "after 5 steps")
    assert_same_params(ours, stock, torch.float64, "after 5 steps")


@over_pairs
def test_explicit_steps_do_not_wait(pair, device):
    ours, stock = train_both(pair, device)
    ours.warm_up()
    stock.warm_up()
    with no_sync(device):
        for _ in range(5):
            ours.iteration()
            ours.values()
    for _ in range(5):
        stock.iteration()
    assert_same_values(ours, stock, "after 5 steps")
    assert_same_params(ours, stock, torch.float64, "after 5 steps")


def test_reading_lr_of_a_fused_schedule_does_not_wait(device):
    """The host replays torch's recurrence; the device is not asked."""
    ours, stock = train_both(PAIRS[0], device)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    stock.warm_up()
    for step in range(4):
        stock.iteration()
        with no_sync(device):
            ours.iteration()
            assert_same_values(ours, stock, f"step {step + 1}")


def test_gradients_that_come_and_go_do_not_wait(device):
    ours, stock = train_both(PAIRS[0], device)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    stock.warm_up()

    def steps(training: Training) -> None:
        for step in range(6):
            training.load()
            training.opt.zero_grad(set_to_none=True)
            training.backward()
            for number, param in enumerate(training.net.parameters()):
                if (step + number) % 3 == 0:
                    param.grad = None
            training.opt.step()
            training.sched.step()

    with no_sync(device):
        steps(ours)
    steps(stock)
    assert ours.steps() == stock.steps()
    assert_same_params(ours, stock, torch.float64, "after 6 steps")


# -- ReduceLROnPlateau ---------------------------------------------------------------------------

METRICS = 100 if torch.cuda.is_available() else 25


def _metrics(case) -> list[float]:
    seen: list[float] = []

    class Ear:
        def step(self, metric: float) -> None:
            seen.append(metric)

    for step in range(1, METRICS + 1):
        case.advance(Ear(), step)
    return seen


@over_plateaus
def test_plateau_with_a_device_metric_does_not_wait(case, device):
    pair = Pair(case.id, "SGD", {"lr": 0.1, "momentum": 0.9}, case.build)
    ours, stock = train_both(pair, device)
    metrics = _metrics(case)
    on_device = torch.tensor(metrics, dtype=torch.float64, device=device)
    ours.opt.prepare()
    ours.warm_up(scheduler_step=False)
    stock.warm_up(scheduler_step=False)
    with no_sync(device):
        for metric in on_device:
            ours.opt.step()
            ours.sched.step(metric)
    for metric in metrics:
        stock.opt.step()
        stock.sched.step(metric)
    assert_same_values(ours, stock, f"after {METRICS} metrics")
    for name in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch"):
        mine, theirs = getattr(ours.sched, name), getattr(stock.sched, name)
        assert mine == theirs, f"{name}: {mine} instead of {theirs}"


@over_plateaus
def test_captured_plateau_equals_stock(case, device):
    pair = Pair(case.id, "SGD", {"lr": 0.1, "momentum": 0.9}, case.build)
    ours, stock = train_both(pair, device)
    metric = torch.zeros((), dtype=torch.float64, device=device)
    ours.opt.prepare()
    ours.warm_up(scheduler_step=False)
    stock.warm_up(scheduler_step=False)
    graph = new_graph(device)
    with capture(graph):
        ours.opt.step()
        ours.sched.step(metric)
    for number, value in enumerate(_metrics(case)):
        metric.fill_(value)
        graph.replay()
        stock.opt.step()
        stock.sched.step(value)
        assert_same_values(ours, stock, f"after metric {number + 1}")
