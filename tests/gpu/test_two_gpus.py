"""Params on two GPUs in one optimizer, and an optimizer beside the current GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched


@pytest.fixture
def both(cuda) -> list[torch.device]:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    return [torch.device("cuda", number) for number in (0, 1)]


def _run(optim: Any, schedulers: Any, devices: list[torch.device], fuse: bool) -> list[Parameter]:
    params = [
        Parameter(torch.linspace(-1, 1, 700, device=device, dtype=torch.float64))
        for device in devices
    ]
    opt = optim.AdamW(params, lr=0.1)
    sched = schedulers.CosineAnnealingLR(opt, T_max=10)
    if fuse:
        fused_sched.fuse(opt, sched)
    for step in range(5):
        for number, param in enumerate(params):
            param.grad = torch.full_like(param, 0.25 + step + number)
        opt.step()
        sched.step()
    opt.param_groups[0]["weight_decay"] = 0.5
    opt.step()
    return params


@pytest.mark.parametrize("fuse", [False, True], ids=["explicit", "fused"])
def test_params_on_two_gpus_equal_stock(fuse, both):
    mine = _run(fused_sched.optim, fused_sched.lr_scheduler, both, fuse)
    theirs = _run(torch.optim, torch.optim.lr_scheduler, both, False)
    for ours, stock in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-12, atol=1e-12)
    assert torch.cuda.current_device() == 0


def test_graph_on_the_gpu_that_is_not_the_first(both):
    with torch.cuda.device(1):
        weight = Parameter(torch.zeros(4, device=both[1]))
        weight.grad = torch.ones_like(weight)
        opt = fused_sched.optim.SGD([weight], lr=1.0)
        fused_sched.fuse(opt, fused_sched.lr_scheduler.ExponentialLR(opt, gamma=0.5))
        opt.step()
        opt.prepare()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # torch's own may be GPU 0's
            opt.step()
        graph.replay()
        graph.replay()
    assert opt.param_groups[0]["lr"] == 0.25
    assert weight.tolist() == [-2.5] * 4
