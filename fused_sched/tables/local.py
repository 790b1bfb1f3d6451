"""Tensors as a kernel sees them: local, real, strided."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

try:
    from torch.distributed.tensor import DTensor
except ImportError:  # a torch built without distributed
    DTensor = None  # type: ignore[assignment, misc]

SUPPORTED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def local(tensor: Tensor) -> Tensor:
    """The shard that this process holds; a plain tensor is its own."""
    if DTensor is not None and isinstance(tensor, DTensor):
        return tensor.to_local()
    return tensor


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as its real view ``[..., 2]``, sharing memory; others unchanged."""
    if not tensor.is_complex():
        return tensor
    return torch.view_as_real(tensor.resolve_conj())


def same_layout(left: Tensor, right: Tensor) -> bool:
    """Whether element i of one lies where element i of the other does, counted in elements."""
    if left.stride() == right.stride():
        return left.shape == right.shape
    return left.shape == right.shape and all(
        a == b
        for size, a, b in zip(left.shape, left.stride(), right.stride(), strict=True)
        if size > 1
    )


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a run of memory, in any order of the dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in _by_stride(tensor.stride(), tensor.shape):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _by_stride(strides: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, int]]:
    return sorted((stride, size) for stride, size in zip(strides, sizes, strict=True) if size != 1)


def new_state(param: Tensor, value: float) -> Tensor:
    """A state of a param before the first step."""
    state = torch.zeros_like(param, memory_format=torch.preserve_format)
    if value:
        fill(state, value)
    return state


def fill(state: Tensor, value: float) -> None:
    """Fill a state; of a complex one the real and the imaginary parts."""
    state.fill_(complex(value, value) if state.is_complex() else value)
