"""Calls of ``scheduler.step()`` govern eager training, replays a graph."""

from __future__ import annotations

import itertools

import pytest
import torch

import fused_sched

from .training import PAIRS, SGD_COSINE, assert_same_params, assert_same_values, train_both

over_pairs = pytest.mark.parametrize("pair", PAIRS, ids=[pair.id for pair in PAIRS])

CADENCES = {
    "each-step": [1],
    "epochs-of-3": [0, 0, 1],
    "two-calls-a-step": [2],
    "guarded": [1, 1, 0],
}


@pytest.mark.parametrize("reading", [False, True], ids=["", "reading"])
@pytest.mark.parametrize("cadence", CADENCES.values(), ids=CADENCES)
@over_pairs
def test_eager_fused_loop_equals_stock_loop(pair, cadence, reading, device):
    ours, stock = train_both(pair, device)
    fused_sched.fuse(ours.opt, ours.sched)
    for calls in itertools.islice(itertools.cycle(cadence), 7):
        for training in (ours, stock):
            training.iteration(scheduler_step=False)
        if reading:
            assert_same_values(ours, stock, "between the two calls")
        for training in (ours, stock):
            for _ in range(calls):
                training.sched.step()
    assert_same_values(ours, stock, "at the end")
    assert ours.sched.state_dict().get("last_epoch") == stock.sched.state_dict().get("last_epoch")
    assert_same_params(ours, stock, torch.float64, "at the end")


def test_warm_up_without_calls_leaves_the_schedule_to_the_replays(device):
    ours, stock = train_both(SGD_COSINE, device)
    fused_sched.fuse(ours.opt, ours.sched)
    for training in (ours, stock):
        training.warm_up(scheduler_step=False)
    graph = ours.capture()
    for replay in range(5):
        ours.replay(graph)
        stock.iteration()
        assert_same_values(ours, stock, f"after replay {replay + 1}")
    ours.opt.release_capture()
    for _ in range(3):  # and the calls govern again
        for training in (ours, stock):
            training.iteration()
        assert_same_values(ours, stock, "after the release")
