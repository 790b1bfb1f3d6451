"""A rule evaluated on torch tensors: the reference, and the eager engine of rules torch lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .rule import Rule


def update(
    rule: Rule,
    group: Mapping[str, Any],
    param: Tensor,
    grad: Tensor,
    states: Sequence[Tensor | None],
    step: int,
) -> None:
    """One step of one param, in place; of a complex one, of its real and imaginary parts.

    Args:
        states: by the rule's order; None where the group keeps none.
        step: counts from 1.
    """
    param = _real(param)
    wide = torch.float64 if param.dtype == torch.float64 else torch.float32
    p, g, *s = (_real(t).to(wide) for t in (param, grad, *_present(states, param)))
    results = rule.apply(p, g, *s, coefficients(rule, group, step, wide))
    param.copy_(results[0])
    for state, result in zip(states, results[1:], strict=True):
        if state is not None:
            _real(state).copy_(result)


def coefficients(
    rule: Rule, group: Mapping[str, Any], step: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """A group's coefficients at a step, computed in float64 and rounded to ``dtype``.

    On the CPU, and no floats: ``~`` of a bool of Python's is a number.
    """
    values = torch.tensor([*rule.encode(group), step], dtype=torch.float64, device="cpu")
    exact = rule.coefficients(*values)
    return tuple(
        torch.as_tensor(value, dtype=torch.float64, device="cpu").to(dtype) for value in exact
    )


def _present(states: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    return [torch.zeros_like(like) if state is None else state for state in states]


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
