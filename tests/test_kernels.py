"""The kernels' own functions, in the interpreter, against references of higher precision."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from decimal import Decimal, getcontext

import pytest
import torch
import triton
import triton.language as tl

from fused_sched.kernels.arithmetic import bias_correction, bias_correction_for_float32
from fused_sched.kernels.cosine import cosine, cosines
from fused_sched.kernels.opcodes import power

getcontext().prec = 60

BETAS = (0.0, 0.9, 0.999, 1.0 - 1e-9)
STEPS = (1, 2, 3, 10, 100, 1_000, 4_096, 10_000, 123_457, 1_000_000)


@triton.jit
def correction_kernel(log_beta_ptr, step_ptr, out_ptr, N: tl.constexpr, FUNCTION: tl.constexpr):
    at = tl.arange(0, N)
    value = FUNCTION(tl.load(log_beta_ptr + at), tl.load(step_ptr + at).to(tl.float64))
    tl.store(out_ptr + at, value.to(tl.float64))


@triton.jit
def cosine_kernel(x_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out_ptr + at, cosine(tl.load(x_ptr + at)))


@triton.jit
def cosines_kernel(x_ptr, count, N: tl.constexpr):
    at = tl.arange(0, N)
    first, second = cosines(tl.load(x_ptr + at), tl.load(x_ptr + N + at), count)
    tl.store(x_ptr + at, first)
    tl.store(x_ptr + N + at, second)


@triton.jit
def power_kernel(x_ptr, y_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out_ptr + at, power(tl.load(x_ptr + at), tl.load(y_ptr + at)))


def padded(values, dtype):
    """The values in a tensor whose size is a power of two, and that size."""
    size = triton.next_power_of_2(len(values))
    return torch.tensor([*values, *values[:1] * (size - len(values))], dtype=dtype), size


KEYS = """
import sys
from fused_sched.tables import layout
layout.AUX_EPOCH += int(sys.argv[1])
from fused_sched.kernels import schedule, update
print(schedule.schedule_kernel.cache_key, update.update_kernel.cache_key)
"""


def test_kernels_of_another_layout_are_kept_under_another_key():
    """Else Triton would load from disk what was compiled for the layout of before."""

    def keys(shift: int) -> list[str]:
        env = os.environ | {"TRITON_INTERPRET": "0"}
        command = [sys.executable, "-c", KEYS, str(shift)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return done.stdout.split()

    before, same, after = keys(0), keys(0), keys(1)
    assert before == same
    assert all(one != other for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("function", "ulp"),
    [(bias_correction_for_float32, 2.0**-23), (bias_correction, 2.0**-52)],
    ids=["float32", "float64"],
)
def test_bias_correction_is_accurate_to_the_compute_type(function, ulp):
    grid = [(beta, step) for beta in BETAS for step in STEPS]
    logs = [math.log(beta) if beta else -math.inf for beta, _ in grid]
    log_betas, size = padded(logs, torch.float64)
    steps, _ = padded([step for _, step in grid], torch.int64)
    out = torch.full((size,), float("nan"), dtype=torch.float64)
    correction_kernel[(1,)](log_betas, steps, out, size, function)
    for (beta, step), log_beta, value in zip(grid, logs, out.tolist(), strict=False):
        # The log is given in float64: its own rounding is not the function's.
        exact = 1 - (Decimal(log_beta) * step).exp() if beta else Decimal(1)
        error = abs(Decimal(value) - exact) / exact
        assert error <= 4 * ulp, f"beta {beta}, step {step}: {value}, off by {float(error):.1e}"


def test_cosine_equals_the_c_library():
    angles = [
        math.pi * e / T for T in (1, 7, 100, 9_973) for e in range(0, 10 * T, max(T // 25, 1))
    ]
    # To the end of the promised range, 2**20 * pi / 2, at and between the quadrants' borders.
    angles += [sign * 1.6e6 * k / 499 for k in range(500) for sign in (1, -1)]
    angles += [(2.0**k - 1) * math.pi / 4 for k in range(20)]
    x, size = padded(angles, torch.float64)
    out = torch.full((size,), float("nan"), dtype=torch.float64)
    cosine_kernel[(1,)](x, out, size)
    expected = torch.tensor([math.cos(angle) for angle in x.tolist()], dtype=torch.float64)
    worst = (out - expected).abs().max().item()
    assert worst <= 2.3e-16, f"cosine off by {worst:.1e}"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_cosines_replaces_as_many_as_asked(count):
    x = torch.tensor([[0.5, 3.0], [1.5, -7.0]], dtype=torch.float64)
    expected = torch.cat([x[:count].cos(), x[count:]])
    cosines_kernel[(1,)](x, count, 2)
    torch.testing.assert_close(x, expected, rtol=1e-15, atol=0)


def test_power_equals_the_c_library():
    bases = (0.0, 1e-9, 0.1, 0.5, 0.9999, 1.0, 1.5, 2.0)
    grid = [(x, y) for x in bases for y in (0.0, 0.5, 1.0, 2.0, 0.9, 7.0, 1_000.0, 100_000.0)]
    grid = [(x, y) for x, y in grid if y * math.log(max(x, 1.0)) < 700]
    x, size = padded([x for x, _ in grid], torch.float64)
    y, _ = padded([y for _, y in grid], torch.float64)
    out = torch.full((size,), float("nan"), dtype=torch.float64)
    power_kernel[(1,)](x, y, out, size)
    for (base, exponent), value in zip(grid, out.tolist(), strict=False):
        exact = base**exponent
        if exponent in (0.0, 1.0):
            assert value == exact, f"{base} ** {exponent}: {value}"
        # exp turns the rounding of its argument into a relative error.
        slack = 2.0**-52 * (2 + abs(exponent * math.log(base or 1.0)))
        assert math.isclose(value, exact, rel_tol=slack, abs_tol=1e-300), f"{base} ** {exponent}"
