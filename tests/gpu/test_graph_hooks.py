"""With torch >= 2.14: reads after a replay ask no device, and a graph's end releases its tables."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from fused_sched.runtime.captures import watch_captures

from .observe import no_sync
from .training import SGD_COSINE, assert_same_values, train_both


@pytest.fixture(autouse=True)
def _torch_has_hooks() -> None:
    if not watch_captures():
        pytest.skip("torch has no hooks on graphs before 2.14")


def graphed(device):
    """(ours, stock, graph) of SGD with a fused cosine, after the warm-up."""
    ours, stock = train_both(SGD_COSINE, device)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    stock.warm_up()
    return ours, stock, ours.capture()


def test_reads_after_replays_do_not_wait(cuda):
    ours, stock, graph = graphed(cuda)
    for step in range(100):
        with no_sync(cuda):
            ours.replay(graph)
            ours.values()
        stock.iteration()
        assert_same_values(ours, stock, f"after replay {step + 1}")


def test_replays_on_another_stream_are_counted(cuda):
    ours, stock, graph = graphed(cuda)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(10):
            ours.replay(graph)
    for _ in range(10):
        stock.iteration()
    with no_sync(cuda):
        assert_same_values(ours, stock, "after 10 replays")
    torch.cuda.current_stream().wait_stream(side)


def test_values_of_the_host_are_those_of_the_device(cuda):
    ours, _, graph = graphed(cuda)
    for _ in range(50):
        ours.replay(graph)
    told = ours.values()
    ours.opt._ledger.mirror.account.note_unknown()  # so that the next read fetches
    assert ours.values() == pytest.approx(told, rel=1e-12)


def test_tables_may_change_when_the_graph_is_gone(cuda):
    ours, stock, graph = graphed(cuda)
    ours.replay(graph)
    stock.iteration()
    added = {"params": [Parameter(torch.ones(2, device=cuda))]}
    with pytest.raises(RuntimeError, match="release_capture"):
        ours.opt.add_param_group(added)
    del graph
    gc.collect()
    ours.opt.add_param_group(added)
    assert not ours.opt._ledger.mirror.account.captured
