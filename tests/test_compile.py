"""``torch.compile`` around a training step: both ``step()``s run outside compiled code."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import fused_sched
from tests.training import check

pytestmark = [  # both are Dynamo's own doing
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0"),
]


def train(optim, schedulers, fuse=None, backend=None):
    """Params and lr after ten steps, of a step that is compiled if there is a backend."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = torch.nn.Linear(4, 3)
    opt = optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = schedulers.CosineAnnealingLR(opt, 20)
    if fuse:
        fuse(opt, scheduler)

    def step(x):
        opt.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        opt.step()
        scheduler.step()
        return loss

    if backend is not None:
        step = torch.compile(step, backend=backend)
    for _ in range(10):
        step(torch.randn(5, 4))
    return list(model.parameters()), opt.param_groups[0]["lr"], opt


@pytest.mark.parametrize("fuse", [None, fused_sched.fuse], ids=["explicit", "fused"])
def test_compiled_training_step_is_compiled_once(engine, fuse):
    backend = CompileCounter()
    ours, lr, _ = train(fused_sched.optim, fused_sched.lr_scheduler, fuse, backend)
    stock, stock_lr, _ = train(torch.optim, torch.optim.lr_scheduler)
    assert backend.frame_count == 1
    check(ours, stock)
    assert lr == pytest.approx(stock_lr, rel=1e-12)


def test_compiled_training_step_is_cached():
    with fused_sched.use_engine("native"):
        *_, opt = train(
            fused_sched.optim, fused_sched.lr_scheduler, fused_sched.fuse, CompileCounter()
        )
        assert opt._cached.step(opt)


def test_model_alone_may_be_compiled_without_graph_breaks(engine):
    torch._dynamo.reset()
    model = torch.compile(torch.nn.Linear(4, 3), backend="eager", fullgraph=True)
    opt = fused_sched.optim.SGD(model.parameters(), lr=0.1)
    before = [param.detach().clone() for param in model.parameters()]
    model(torch.ones(2, 4)).sum().backward()
    opt.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters()))
