"""What a rule computes with, besides operators and comparisons.

On floats and torch tensors these functions run as they stand. In a kernel the same names mean
Triton's and C++'s (``kernels/arithmetic.py``, ``csrc/arithmetic.h``), element by element.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _tensor(value: Any, like: Any = None) -> Tensor:
    """A number as a tensor of the dtype and device of ``like``, float64 on the CPU without one."""
    if isinstance(value, Tensor):
        return value
    if isinstance(like, Tensor) and like.is_floating_point():
        return torch.tensor(value, dtype=like.dtype, device=like.device)
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def where(condition: Any, a: Any, b: Any) -> Any:
    """``a`` where the condition holds, else ``b``; both are computed."""
    if not isinstance(condition, Tensor):
        return a if condition else b
    return torch.where(condition, _tensor(a, b), _tensor(b, a))


def sqrt(x: Any) -> Any:
    """The square root; NaN below 0."""
    return torch.sqrt(_tensor(x))


def exp(x: Any) -> Any:
    """e to the power of ``x``."""
    return torch.exp(_tensor(x))


def log(x: Any) -> Any:
    """The natural logarithm; -inf at 0, NaN below."""
    return torch.log(_tensor(x))


def maximum(a: Any, b: Any) -> Any:
    """The larger of two; NaN if either is."""
    return torch.maximum(_tensor(a, b), _tensor(b, a))


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two; NaN if either is."""
    return torch.minimum(_tensor(a, b), _tensor(b, a))


def bias_correction(log_beta: Any, step: Any) -> Any:
    """1 - beta ** step, from the logarithm of beta: without cancellation where beta is near 1.

    For ``coefficients`` alone. beta = 0 has the logarithm -inf and gives 1.
    """
    return -torch.expm1(_tensor(step) * _tensor(log_beta))
