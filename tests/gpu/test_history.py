"""The history of lr under replay: written by the launch, read once."""

from __future__ import annotations

import pytest
import torch

import fused_sched
from tests.cases import PROMISE

from .training import PAIRS, STEPS, train_both

over_pairs = pytest.mark.parametrize("pair", PAIRS, ids=[pair.id for pair in PAIRS])


@pytest.mark.parametrize("fuse", [False, True], ids=["explicit", "fused"])
@over_pairs
def test_history_of_replays_is_that_of_stock_torch(pair, fuse, device):
    ours, stock = train_both(pair, device, torch.float64)
    if fuse:
        fused_sched.fuse(ours.opt, ours.sched)
    history = ours.sched.history(STEPS + 10)
    ours.opt.prepare()
    ours.warm_up()
    stock.warm_up()
    graph = ours.capture(scheduler_step=not fuse)
    drained = history.drain()["lr"]
    for _ in range(STEPS):
        ours.replay(graph)
    replayed = history.drain()
    assert len(drained) + STEPS == int(replayed["step"][-1]) + 1
    used = []
    for _ in range(STEPS):
        used.append([group["lr"] for group in stock.opt.param_groups])
        stock.iteration()
    expected = torch.tensor(used, dtype=torch.float64)
    allowed = PROMISE * float(expected.max())
    torch.testing.assert_close(replayed["lr"], expected, rtol=0, atol=allowed)


def test_history_may_not_leave_a_graph(device):
    ours, _ = train_both(PAIRS[0], device, torch.float64)
    fused_sched.fuse(ours.opt, ours.sched)
    history = ours.sched.history(10)
    ours.warm_up()
    graph = ours.capture()
    with pytest.raises(RuntimeError, match=r"history.close\(\) changes the tables"):
        history.close()
    ours.replay(graph)
    assert len(history.drain()["lr"]) == 4
    del graph
    ours.opt.release_capture()
    history.close()
    ours.iteration()


def test_history_may_not_come_into_a_graph(device):
    ours, _ = train_both(PAIRS[0], device, torch.float64)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    ours.capture()
    with pytest.raises(RuntimeError, match=r"history\(\) changes the tables"):
        ours.sched.history(10)
