"""1 - beta ** step as the device computes it, over the grid of DESIGN section 3."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl

from fused_sched.kernels.arithmetic import bias_correction, bias_correction_for_float32

BETAS = (0.0, 0.5, 0.9, 0.95, 0.999, 0.9999, 1.0 - 1e-9)
COUNT = 20_000 if torch.cuda.is_available() else 400

ULPS = {torch.float32: 8, torch.float64: 64}
"""Of the result; exp and log of Triton's float32 are good to 2 each."""


@triton.jit
def _grid_kernel(steps_ptr, out_ptr, log_beta_ptr, n, FUNCTION: tl.constexpr, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    step = tl.load(steps_ptr + at, mask=at < n, other=1)
    value = FUNCTION(tl.load(log_beta_ptr), step.to(tl.float64))
    tl.store(out_ptr + at, value, mask=at < n)


def _steps() -> torch.Tensor:
    """1 ... 1,000, then evenly in the logarithm to 1,000,000."""
    many = torch.logspace(3, 6, COUNT, dtype=torch.float64).round().to(torch.int64)
    return torch.cat([torch.arange(1, 1_001), many]).unique()


@pytest.mark.parametrize("dtype", ULPS, ids=str)
@pytest.mark.parametrize("beta", BETAS)
def test_bias_correction_is_accurate_everywhere(beta, dtype, device):
    steps = _steps()
    logarithm = math.log(beta) if beta > 0.0 else -math.inf
    out = torch.full(steps.shape, math.nan, dtype=dtype, device=device)
    where = torch.tensor([logarithm], dtype=torch.float64, device=device)
    function = bias_correction_for_float32 if dtype == torch.float32 else bias_correction
    grid = (triton.cdiv(len(steps), 128),)
    _grid_kernel[grid](steps.to(device), out, where, len(steps), function, 128)
    true = torch.tensor(
        [-math.expm1(step * logarithm) for step in steps.tolist()], dtype=torch.float64
    )
    error = ((out.cpu().double() - true) / true).abs() / torch.finfo(dtype).eps
    error = torch.where(error.isnan(), torch.full_like(error, math.inf), error)
    worst = int(error.argmax())
    assert error[worst] <= ULPS[dtype], (
        f"beta {beta!r}, step {steps[worst]}: {out[worst].item()!r} instead of "
        f"{true[worst].item()!r}, {error[worst].item():.1f} units in the last place"
    )
