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
    carried: Sequence[float] = (),
) -> list[float]:
    """One step of one param, in place; of a complex one, of its real and imaginary parts.

    Args:
        states: by the rule's order; None where the group keeps none.
        step: counts from 1.
        carried: the param's recurrences.

    Returns:
        The recurrences of the next step.
    """
    param = _real(param)
    wide = torch.float64 if param.dtype == torch.float64 else torch.float32
    p, g, *s = (_real(t).to(wide) for t in (param, grad, *_present(states, param)))
    exact = coefficients(rule, group, step, carried)
    shared = len(exact) - len(rule.carried)
    results = rule.apply(p, g, *s, tuple(number.to(wide) for number in exact[:shared]))
    param.copy_(results[0])
    for state, result in zip(states, results[1:], strict=True):
        if state is not None:
            _real(state).copy_(result)
    return [number.item() for number in exact[shared:]]


def coefficients(
    rule: Rule, group: Mapping[str, Any], step: int, carried: Sequence[float] = ()
) -> tuple[Tensor, ...]:
    """A group's coefficients at a step and the next recurrences, float64, on the CPU.

    No floats: ``~`` of a bool of Python's is a number.
    """
    values = [*rule.encode(group), *carried, step]
    exact = rule.coefficients(*torch.tensor(values, dtype=torch.float64, device="cpu"))
    return tuple(torch.as_tensor(value, dtype=torch.float64, device="cpu") for value in exact)


def _present(states: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    return [torch.zeros_like(like) if state is None else state for state in states]


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
