"""Recorded programs do to the bit what Triton's own interpreter does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import InterpreterError

import fused_sched
from tests.cases import ONE_OF_EACH, SCHEDULERS, OptimizerCase, SchedulerCase, make
from tests.interpreter import quick
from tests.replay import traces
from tests.training import named, set_grads

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")

ONE_OF_EACH_SCHEDULER = list({case.name: case for case in reversed(SCHEDULERS)}.values())
EXPONENTIAL = SchedulerCase("exp", "ExponentialLR", make("ExponentialLR", gamma=0.9))
STEPS = 4


@triton.jit
def halved(x, DEEP: tl.constexpr):
    if DEEP:
        x = x * 0.5
    return x * 0.5, x > 8.0


@triton.jit
def branching_kernel(x_ptr, count_ptr, out_ptr, limit, DEEP: tl.constexpr):
    """Halve x until it is below the limit; count how often, and the programs."""
    pid = tl.program_id(0)
    x = tl.load(x_ptr + pid)
    times = pid * 0
    while x > limit:
        x, large = halved(x, DEEP)
        if large:
            times += 10
        times += 1
    tl.atomic_add(count_ptr, 1)
    tl.store(out_ptr + pid, x + times)


@triton.jit
def scanning_kernel(x_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(x_ptr + at, tl.cumsum(tl.load(x_ptr + at)))


def branched(*numbers: float) -> list[Tensor]:
    found = []
    for deep in (False, True):
        for limit in (3, 20, 3):
            count, out = torch.zeros(1, dtype=torch.int32), torch.zeros(len(numbers))
            branching_kernel[(len(numbers),)](torch.tensor(numbers), count, out, limit, deep)
            found += [count, out]
    return found


def trained(row: OptimizerCase, scheduler: SchedulerCase, dtype: torch.dtype) -> list[Tensor]:
    """Params, states and schedule after some steps, explicit and then fused."""
    params = [torch.linspace(-1, 1, n).to(dtype).requires_grad_() for n in (1, 130)]
    groups = [{"params": [param]} for param in params]
    with fused_sched.use_engine("triton"):
        opt = row.build(fused_sched.optim, groups)
        sched = scheduler.build(fused_sched.lr_scheduler, opt)
        for step in range(1, 1 + STEPS):
            if step == 3 and not isinstance(sched, fused_sched.lr_scheduler.ReduceLROnPlateau):
                fused_sched.fuse(opt, sched)
            set_grads(params, step)
            opt.step()
            scheduler.advance(sched, step)
        states = [state[key] for state in opt.state.values() for key in sorted(state)]
        lrs = [torch.tensor(group["lr"], dtype=torch.float64) for group in opt.param_groups]
        return [*params, *(torch.as_tensor(state) for state in states), *lrs]


def assert_replayed(run: Callable[..., list[Tensor]], *arguments: Any) -> None:
    """By itself, while it is recorded, and from the record."""
    expected = run(*arguments)
    traces.recorder.traces.clear()
    with quick():
        for _ in range(2):
            torch.testing.assert_close(run(*arguments), expected, rtol=0, atol=0, equal_nan=True)


def test_replay_follows_branches_that_depend_on_numbers():
    assert_replayed(branched, 1.0, 30.0, 5.0, 30.0, 1000.0)


def test_replay_goes_on_in_the_middle_of_a_program_that_branches_anew():
    with quick():
        branched(30.0)  # then a longer and a shorter way
        assert branched(1000.0)[0] == branched(1.0)[0] == 1
    assert_replayed(branched, 30.0)


@pytest.mark.parametrize("row", **named(ONE_OF_EACH))
def test_replay_has_the_bits_of_each_rule(row):
    assert_replayed(trained, row, EXPONENTIAL, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_replay_has_the_bits_of_each_dtype(dtype):
    assert_replayed(trained, ONE_OF_EACH[1], EXPONENTIAL, dtype)


@pytest.mark.parametrize("scheduler", **named(ONE_OF_EACH_SCHEDULER))
def test_replay_has_the_bits_of_each_schedule(scheduler):
    assert_replayed(trained, ONE_OF_EACH[0], scheduler, torch.float32)


def test_what_goes_past_the_builder_is_refused():
    with quick(), pytest.raises(InterpreterError, match="an array is read beside Triton's builder"):
        scanning_kernel[(1,)](torch.ones(4), 4)


def test_records_are_forgotten_when_they_grow_large(monkeypatch):
    monkeypatch.setattr(traces, "MOST_OPERATIONS", 50)
    with quick():
        first = branched(30.0, 1000.0)
        before = len(traces.recorder.traces)
        assert branched(30.0, 1000.0)[1].equal(first[1])
    assert len(traces.recorder.traces) <= before
