"""Thousands of tensors: more than the native kernel's parameters hold, and tables of megabytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from tests.cases import TOLERANCES

from .capture import capture, new_graph

GPU = torch.cuda.is_available()
MANY = 4_200 if GPU else 12
VERY_MANY, ROUNDS = (10_000, 100) if GPU else (12, 3)


def _params(count: int, device: torch.device) -> list[Parameter]:
    """Of one to seven elements, each with a gradient."""
    params = [Parameter(torch.full((1 + i % 7,), 1.0 + i % 3, device=device)) for i in range(count)]
    for number, param in enumerate(params):
        param.grad = torch.full_like(param, 0.5 + number % 5)
    return params


def _pair(optim: Any, schedulers: Any, params: list[Parameter]) -> tuple[Any, Any]:
    opt = optim.AdamW(params, lr=0.1)
    return opt, schedulers.ExponentialLR(opt, gamma=0.5)


def test_thousands_of_tensors_equal_stock_eager_and_captured(device):
    mine, theirs = _params(MANY, device), _params(MANY, device)
    opt, sched = _pair(fused_sched.optim, fused_sched.lr_scheduler, mine)
    fused_sched.fuse(opt, sched)
    stock, reference = _pair(torch.optim, torch.optim.lr_scheduler, theirs)
    for _ in range(2):
        opt.step()
        sched.step()
    graph = new_graph(device)
    with capture(graph):
        opt.step()
    for _ in range(2):
        graph.replay()
    for _ in range(4):
        stock.step()
        reference.step()
    allowed = TOLERANCES[torch.float32]
    torch.testing.assert_close(
        torch.cat(mine), torch.cat(theirs), rtol=allowed.rtol, atol=allowed.atol
    )
    assert opt.param_groups[0]["lr"] == pytest.approx(reference.get_last_lr()[0], rel=1e-12)


def _page_locked() -> int:
    """Allocations of page-locked memory that torch has asked CUDA for."""
    return torch.cuda.memory.host_memory_stats()["num_host_alloc"] if GPU else 0


def test_captures_and_releases_in_a_loop_page_lock_nothing(device):
    """CUDA forbids it inside a capture, and memory that is never given back would run out."""
    params = _params(VERY_MANY, device)
    for param in params:
        param.data.zero_()
        param.grad.fill_(1.0)
    opt = fused_sched.optim.SGD(params, lr=1.0)
    opt.prepare()
    for _ in range(ROUNDS):
        graph = new_graph(device)
        with capture(graph):
            before = _page_locked()
            opt.step()
            assert _page_locked() == before
        graph.replay()
        del graph
        opt.release_capture()
    assert torch.cat(params).unique().tolist() == [-float(ROUNDS)]
