"""Cached launches on a GPU: what they cost, and where they leave the step to Python."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched

from .capture import capture
from .observe import launched, no_sync, nodes
from .test_streams import SLEEP
from .training import (
    ADAMW_ONE_CYCLE,
    PAIRS,
    SGD_COSINE,
    Training,
    assert_same_params,
    assert_same_values,
    lambdas,
    train_both,
)

TENSORS = 148
"""As many as GPT-2 has."""

HOST_MICROSECONDS = 25
"""Of a cached launch of that many. Without the launch 14 were measured, on two cores of an EPYC
(Zen 4) under load; a launch takes some 3, and a copy of new gradients' addresses as much."""


def train_both_fused(pair: Any, device: torch.device) -> tuple[Training, Training]:
    """(ours, stock), a few steps old; ours takes cached ones."""
    ours, stock = train_both(pair, device)
    fused_sched.fuse(ours.opt, ours.sched)
    for _ in range(3):
        ours.iteration()
        stock.iteration()
    assert ours.opt._cached is not None
    return ours, stock


def alone(opt: Any) -> bool:
    """The cached launch by itself, also while somebody profiles."""
    enabled = torch.autograd.profiler._is_profiler_enabled
    torch.autograd.profiler._is_profiler_enabled = False
    try:
        return opt._cached.step(opt)
    finally:
        torch.autograd.profiler._is_profiler_enabled = enabled


CACHED = [pair for pair in PAIRS if pair.schedule is not lambdas]
"""Not those whose next lr the host asks a function for, at each call."""


@pytest.mark.parametrize("pair", CACHED, ids=[pair.id for pair in CACHED])
def test_cached_launches_equal_stock(pair, cuda):
    ours, stock = train_both_fused(pair, cuda)
    for _ in range(50):
        for training in (ours, stock):
            training.load()
            training.opt.zero_grad(set_to_none=True)
            training.backward()
        assert alone(ours.opt)
        stock.opt.step()
        for training in (ours, stock):
            training.sched.step()
    assert_same_values(ours, stock, "after 50 steps")
    assert_same_params(ours, stock, torch.float64, "after 50 steps")
    assert ours.steps() == stock.steps()


def test_cached_launch_is_one_kernel(cuda, engine, tmp_path):
    """New gradients' addresses are parameters of the native kernel, and a copy for Triton's."""
    ours, _ = train_both_fused(ADAMW_ONE_CYCLE, cuda)
    ours.opt.step()
    ours.sched.step()
    for expected in (
        {"kernel": 1},
        {"native": {"kernel": 1}, "triton": {"kernel": 1, "memcpy": 1}},
    ):
        assert launched(lambda: alone(ours.opt), tmp_path) == expected.get(engine, expected)
        ours.sched.step()
        for param in ours.net.parameters():
            param.grad = param.grad.clone()


def test_cached_launch_with_new_gradients_does_not_wait(cuda):
    """What copies their addresses returns while the device is busy."""
    weight = Parameter(torch.zeros(4, device=cuda))
    opt = fused_sched.optim.SGD([weight], lr=1.0)
    grads = [torch.ones_like(weight) for _ in range(6)]
    for weight.grad in grads[:3]:
        opt.step()
    torch.cuda.synchronize()
    torch.cuda._sleep(SLEEP)
    start = torch.cuda.Event()
    start.record()
    for weight.grad in grads[3:]:
        assert alone(opt)
    assert not start.query()
    torch.cuda.synchronize()
    assert weight.tolist() == [-6.0] * 4


def test_cached_launches_and_a_look_at_the_state_do_not_wait(cuda):
    ours, stock = train_both_fused(ADAMW_ONE_CYCLE, cuda)
    with no_sync(cuda):
        for _ in range(5):
            ours.iteration()
        steps = ours.steps()
    for _ in range(5):
        stock.iteration()
    assert steps == stock.steps()


# -- captures ------------------------------------------------------------------------------------


def test_cached_launch_declines_under_capture(cuda):
    ours, _ = train_both_fused(SGD_COSINE, cuda)
    touched = torch.zeros(1, device=cuda)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # so that the stream is no reason
        ours.iteration()
        assert alone(ours.opt)
        ours.sched.step()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    answers = []
    with torch.cuda.graph(graph, stream=stream):
        touched.add_(1)
        answers.append(alone(ours.opt))
    assert answers == [False]
    assert nodes(graph) == {"kernel": 1}


def test_capture_between_cached_launches(cuda):
    """The captured step is one node; eager steps around it are the full ones'."""
    ours, stock = train_both_fused(SGD_COSINE, cuda)
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    ours.opt.zero_grad(set_to_none=True)
    ours.backward()
    with capture(graph):
        ours.opt.step()
    assert nodes(graph) == {"kernel": 1}
    assert ours.opt._cached is None
    graph.replay()
    stock.opt.zero_grad(set_to_none=True)
    stock.backward()
    stock.opt.step()
    stock.sched.step()
    for _ in range(3):
        ours.iteration(scheduler_step=False)
        stock.iteration()
    assert ours.opt._cached is None  # replays may go on
    del graph
    ours.opt.release_capture()
    for _ in range(4):
        ours.iteration()
        stock.iteration()
    assert ours.opt._cached is not None
    assert_same_values(ours, stock, "after the release")
    assert_same_params(ours, stock, torch.float64, "after the release")


# -- streams -------------------------------------------------------------------------------------


def test_cached_launches_follow_the_current_stream(cuda):
    """The first step on another stream is a full one, which waits; those after it are cached."""
    ours, stock = train_both_fused(SGD_COSINE, cuda)
    last = torch.cuda.current_stream()
    for stream in (torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.default_stream()):
        stream.wait_stream(last)
        with torch.cuda.stream(stream):
            torch.cuda._sleep(SLEEP // 10)
            assert not alone(ours.opt)
            for _ in range(2):
                ours.iteration()
            assert ours.opt._cached is not None
            ours.iteration()
        last = stream
    torch.cuda.current_stream().wait_stream(last)
    for _ in range(9):
        stock.iteration()
    assert_same_values(ours, stock, "after 9 steps")
    assert_same_params(ours, stock, torch.float64, "after 9 steps")


def test_step_on_another_stream_waits_for_the_cached_one(cuda):
    weight = Parameter(torch.zeros(4, device=cuda))
    weight.grad = torch.ones_like(weight)
    opt = fused_sched.optim.SGD([weight], lr=1.0, momentum=0.5)
    for _ in range(2):
        opt.step()  # by -1, by -1.5
    torch.cuda.synchronize()
    torch.cuda._sleep(SLEEP)
    assert alone(opt)  # by -1.75, in a queue
    with torch.cuda.stream(torch.cuda.Stream()):
        opt.step()  # by -1.875
    torch.cuda.synchronize()
    assert weight.tolist() == [-6.125] * 4


def test_lr_written_on_another_stream_reaches_the_cached_step(cuda):
    weight = Parameter(torch.zeros(4, device=cuda))
    weight.grad = torch.ones_like(weight)
    opt = fused_sched.optim.SGD([weight], lr=1.0)
    for _ in range(2):
        opt.step()
    assert opt._cached is not None
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(SLEEP)
        opt.param_groups[0]["lr"] = 16.0
    opt.step()
    torch.cuda.synchronize()
    assert weight.tolist() == [-18.0] * 4


def test_gpu_that_is_not_the_current_one(cuda, engine):
    """The native engine changes to it; Triton's kernel is left to the full step."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    weight = Parameter(torch.zeros(4, device="cuda:1"))
    weight.grad = torch.ones_like(weight)
    opt = fused_sched.optim.SGD([weight], lr=1.0)
    for _ in range(4):
        opt.step()
    steps = 4 + alone(opt)
    assert steps == {"native": 5, "triton": 4}[engine]
    assert torch.cuda.current_device() == 0
    assert weight.tolist() == [-steps] * 4


# -- the host's time -----------------------------------------------------------------------------


def host_microseconds(call: Callable[[], object]) -> float:
    """Median of a call, while the device's queue has room."""
    samples = []
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(50):
            call()
        samples.append((time.perf_counter() - start) / 50)
    return 1e6 * statistics.median(samples)


@pytest.mark.alone
def test_host_time_of_a_fused_step(cuda, record_property):
    params = [Parameter(torch.ones(64, device=cuda)) for _ in range(TENSORS)]
    for param in params:
        param.grad = torch.ones_like(param)
    opt = fused_sched.optim.AdamW(params, lr=1e-3)
    scheduler = fused_sched.lr_scheduler.CosineAnnealingLR(opt, T_max=100_000)
    fused_sched.fuse(opt, scheduler)
    for _ in range(3):
        opt.step()
    assert opt._cached is not None
    cached = host_microseconds(opt.step)
    grads = itertools.cycle([torch.ones_like(param) for param in params] for _ in range(2))

    def step_with_new_gradients() -> None:
        for param, grad in zip(params, next(grads), strict=True):
            param.grad = grad
        opt.step()

    def assign() -> None:
        for param, grad in zip(params, next(grads), strict=True):
            param.grad = grad

    moved = host_microseconds(step_with_new_gradients) - host_microseconds(assign)
    full = host_microseconds(opt._ledger.stepper.step)
    told = f"{TENSORS} tensors: cached {cached:.1f} us, new gradients {moved:.1f}, full {full:.1f}"
    record_property("host_time", told)
    print(told)
    assert cached < HOST_MICROSECONDS, told
