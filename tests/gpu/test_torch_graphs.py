"""Beside torch's own uses of CUDA graphs: graphed callables, and ``reduce-overhead``."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import mse_loss

import fused_sched

from .capture import capture
from .training import (
    ADAMW_ONE_CYCLE,
    Training,
    assert_same_params,
    assert_same_values,
    train_both,
)

pytestmark = pytest.mark.filterwarnings("default")  # torch.compile's own

STEPS = 8
"""``reduce-overhead`` warms up once, records once, and replays from then on."""


def _fused(device: torch.device) -> tuple[Training, Training]:
    ours, stock = train_both(ADAMW_ONE_CYCLE, device)
    fused_sched.fuse(ours.opt, ours.sched)
    return ours, stock


def _assert_same(ours: Training, stock: Training) -> None:
    assert_same_values(ours, stock, f"after {STEPS} steps")
    assert_same_params(ours, stock, torch.float64, f"after {STEPS} steps")
    assert ours.steps() == stock.steps()


def test_eager_steps_beside_graphed_callables(cuda):
    ours, stock = _fused(cuda)
    sample = torch.zeros_like(ours.x)
    ours.net = torch.cuda.make_graphed_callables(ours.net, (sample,))
    for _ in range(STEPS):
        ours.iteration()
        stock.iteration()
    _assert_same(ours, stock)


@pytest.fixture
def compiled(cuda):
    """``compiled(net)``: its forward and backward in graphs of torch.compile's own."""
    from torch._inductor import config

    torch._dynamo.reset()
    with config.patch(compile_threads=1):  # the tests' processes are as many as cores
        yield lambda net: torch.compile(net, mode="reduce-overhead")
    torch._dynamo.reset()


def test_eager_steps_beside_reduce_overhead(compiled, cuda):
    ours, stock = _fused(cuda)
    forward = compiled(ours.net)
    for _ in range(STEPS):
        torch.compiler.cudagraph_mark_step_begin()
        ours.load()
        ours.opt.zero_grad(set_to_none=True)
        mse_loss(forward(ours.x), ours.y).backward()
        ours.opt.step()
        ours.sched.step()
        stock.iteration()
    _assert_same(ours, stock)


def test_captured_step_beside_reduce_overhead(compiled, cuda):
    """Gradients accumulate in memory of their own, which the captured step reads."""
    ours, stock = _fused(cuda)
    for param in ours.net.parameters():
        param.grad = torch.zeros_like(param)
    graph = torch.cuda.CUDAGraph()
    with capture(graph):
        ours.opt.step()
    forward = compiled(ours.net)
    for _ in range(STEPS):
        torch.compiler.cudagraph_mark_step_begin()
        ours.load()
        ours.opt.zero_grad(set_to_none=False)
        mse_loss(forward(ours.x), ours.y).backward()
        graph.replay()
        stock.iteration()
    _assert_same(ours, stock)
