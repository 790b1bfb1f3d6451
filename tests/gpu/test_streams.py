"""Several streams: what the host writes and the device computes stays in order."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

import fused_sched

from .training import (
    PAIRS,
    SGD_COSINE,
    assert_same_params,
    assert_same_values,
    train_both,
)

SLEEP = 50_000_000
"""Clock cycles: some 30 ms, far longer than the host needs for what follows."""


@pytest.mark.parametrize("pair", PAIRS, ids=[pair.id for pair in PAIRS])
def test_iterations_on_changing_streams_equal_stock(pair, cuda):
    ours, stock = train_both(pair, cuda)
    fused_sched.fuse(ours.opt, ours.sched)
    streams = [torch.cuda.Stream() for _ in range(3)]
    last = torch.cuda.current_stream()
    for step in range(12):
        stream = streams[step % 3]
        stream.wait_stream(last)
        with torch.cuda.stream(stream):
            torch.cuda._sleep(SLEEP // 50)
            ours.iteration()
        last = stream
    torch.cuda.current_stream().wait_stream(last)
    for _ in range(12):
        stock.iteration()
    assert_same_values(ours, stock, "after 12 steps")
    assert_same_params(ours, stock, torch.float64, "after 12 steps")


def test_lr_written_on_another_stream_waits_for_the_last_step(cuda):
    """The step that is still in a queue keeps the lr that it was called with."""
    weight = Parameter(torch.zeros(4, device=cuda))
    weight.grad = torch.ones_like(weight)
    opt = fused_sched.optim.SGD([weight], lr=1.0)
    opt.prepare()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP)
        opt.step()
    opt.param_groups[0]["lr"] = 16.0  # on the default stream, behind that step
    with torch.cuda.stream(stream):
        opt.step()  # behind that assignment
    torch.cuda.synchronize()
    assert weight.tolist() == [-17.0] * 4


def test_checkpoint_loaded_on_another_stream_waits_for_the_last_step(cuda):
    weight = Parameter(torch.zeros(4, device=cuda))
    weight.grad = torch.ones_like(weight)
    opt = fused_sched.optim.AdamW([weight], lr=1.0, weight_decay=0.0, fused=True)
    opt.step()
    saved = opt.state_dict()
    saved["state"] = {0: {key: value.clone() for key, value in saved["state"][0].items()}}
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP)
        opt.step()
    opt.load_state_dict(saved)
    torch.cuda.synchronize()
    assert float(opt.state[weight]["step"]) == 1
    assert torch.equal(opt.state[weight]["exp_avg"], saved["state"][0]["exp_avg"])


def test_replays_on_another_stream_are_seen_by_the_next_read(cuda):
    ours, stock = train_both(SGD_COSINE, cuda)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    stock.warm_up()
    graph = ours.capture()
    stream = torch.cuda.Stream()
    for step in range(5):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(SLEEP // 10)
            ours.replay(graph)
        stock.iteration()
        assert_same_values(ours, stock, f"after replay {step + 1}")
    torch.cuda.synchronize()
    assert_same_params(ours, stock, torch.float64, "after 5 replays")


def test_host_that_runs_far_ahead_of_the_device(cuda):
    """A hundred steps in a queue, each with gradients of its own: none reads another's table."""
    weight = Parameter(torch.zeros(4, device=cuda, dtype=torch.float64))
    grads = [torch.full((4,), float(2**k % 1021), device=cuda).double() for k in range(100)]
    opt = fused_sched.optim.SGD([weight], lr=1.0)
    fused_sched.fuse(opt, fused_sched.lr_scheduler.ExponentialLR(opt, gamma=1.0))
    torch.cuda.synchronize()
    torch.cuda._sleep(SLEEP)
    for grad in grads:
        weight.grad = grad
        opt.step()
    expected = -sum(float(2**k % 1021) for k in range(100))
    assert weight.tolist() == [expected] * 4


def test_tables_let_go_stay_until_the_launch_that_reads_them_is_done(cuda):
    """Nothing else gets their memory while that launch waits in another stream's queue."""
    first, second = (Parameter(torch.zeros(4, device=cuda)) for _ in range(2))
    first.grad = torch.ones_like(first)
    opt = fused_sched.optim.SGD([first, second], lr=1.0)
    opt.step()  # its tables belong to the default stream
    torch.cuda.synchronize()
    busy, third = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(busy):
        torch.cuda._sleep(SLEEP)
        opt.step()
    with torch.cuda.stream(third):
        second.grad = torch.ones_like(second)
        opt.step()  # with other tables, which hold the second param too
    rubbish = [torch.zeros(64, dtype=torch.int64, device=cuda) for _ in range(1000)]
    torch.cuda.synchronize()
    del rubbish
    assert (first.tolist(), second.tolist()) == ([-3.0] * 4, [-1.0] * 4)
