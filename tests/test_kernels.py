"""The kernels' own functions, in the interpreter, against references of higher precision."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import pytest
import torch
import triton
import triton.language as tl

from fused_sched.kernels.cosine import cosine
from fused_sched.kernels.rules import bias_correction

getcontext().prec = 60

BETAS = (0.0, 0.9, 0.999, 1.0 - 1e-9)
STEPS = (1, 2, 3, 10, 100, 1_000, 4_096, 10_000, 123_457, 1_000_000)


@triton.jit
def correction_kernel(log_beta_ptr, step_ptr, out_ptr, N: tl.constexpr, C: tl.constexpr):
    at = tl.arange(0, N)
    value = bias_correction(tl.load(log_beta_ptr + at), tl.load(step_ptr + at), C)
    tl.store(out_ptr + at, value.to(tl.float64))


@triton.jit
def cosine_kernel(x_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out_ptr + at, cosine(tl.load(x_ptr + at)))


def padded(values, dtype):
    """The values in a tensor whose size is a power of two, and that size."""
    size = triton.next_power_of_2(len(values))
    return torch.tensor([*values, *values[:1] * (size - len(values))], dtype=dtype), size


@pytest.mark.parametrize(("compute", "ulp"), [(tl.float32, 2.0**-23), (tl.float64, 2.0**-52)])
def test_bias_correction_is_accurate_to_the_compute_type(compute, ulp):
    grid = [(beta, step) for beta in BETAS for step in STEPS]
    logs = [math.log(beta) if beta else -math.inf for beta, _ in grid]
    log_betas, size = padded(logs, torch.float64)
    steps, _ = padded([step for _, step in grid], torch.int64)
    out = torch.full((size,), float("nan"), dtype=torch.float64)
    correction_kernel[(1,)](log_betas, steps, out, size, compute)
    for (beta, step), log_beta, value in zip(grid, logs, out.tolist(), strict=False):
        # The log is given in float64: its own rounding is not the function's.
        exact = 1 - (Decimal(log_beta) * step).exp() if beta else Decimal(1)
        error = abs(Decimal(value) - exact) / exact
        assert error <= 4 * ulp, f"beta {beta}, step {step}: {value}, off by {float(error):.1e}"


def test_cosine_equals_the_c_library():
    angles = [
        math.pi * e / T for T in (1, 7, 100, 9_973) for e in range(0, 10 * T, max(T // 25, 1))
    ]
    x, size = padded(angles, torch.float64)
    out = torch.full((size,), float("nan"), dtype=torch.float64)
    cosine_kernel[(1,)](x, out, size)
    expected = torch.tensor([math.cos(angle) for angle in x.tolist()], dtype=torch.float64)
    worst = (out - expected).abs().max().item()
    assert worst <= 2.3e-16, f"cosine off by {worst:.1e}"
