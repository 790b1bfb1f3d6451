"""What the optimizers check of their arguments, besides torch's own classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def check_arguments(
    lr: Any, betas: Sequence[float], eps: float = 0.0, weight_decay: float = 0.0
) -> None:
    """Refuse what torch's own optimizers refuse.

    Raises:
        ValueError: ``lr``, ``eps`` or ``weight_decay`` is negative or NaN, or a beta is outside
            [0, 1).
    """
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not eps >= 0.0:
        raise ValueError(f"Invalid epsilon value: {eps}")
    for index, beta in enumerate(betas):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
    if not weight_decay >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {weight_decay}")


def check_caution(group: Mapping[str, Any], decoupled: str) -> None:
    """Refuse caution where the weight decay is part of the gradient.

    Args:
        decoupled: the key of the group that says whether it is not.

    Raises:
        ValueError: the group asks for caution, and its weight decay is coupled.
    """
    if group.get("cautious_weight_decay") and not group[decoupled]:
        raise ValueError(
            f"cautious_weight_decay leaves out decoupled weight decay; pass {decoupled}=True"
        )
