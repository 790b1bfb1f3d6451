"""How far ours was from stock torch: what the comparisons saw, for `make conformance`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

seen: dict[str, float] = {}
"""Of the running test: the largest difference of each quantity, and its hypothesis examples."""

EXAMPLES = "examples"


def take() -> dict[str, float]:
    """What was seen; the next test starts with nothing."""
    taken = dict(seen)
    seen.clear()
    return taken


def merge(into: dict[str, float], other: dict[str, float]) -> None:
    """The larger difference; the sum of examples."""
    for name, value in other.items():
        before = into.get(name, 0.0)
        into[name] = before + value if name == EXAMPLES else max(before, value)


def note(quantity: str, difference: float) -> None:
    merge(seen, {quantity: difference})


def note_params(ours: Sequence[Tensor], stock: Sequence[Tensor]) -> None:
    """By dtype, relative to the largest element of each tensor."""
    for mine, other in zip(ours, stock, strict=True):
        note(f"params {str(mine.dtype).removeprefix('torch.')}", relative(mine, other))


def note_state(ours: Any, stock: Any) -> None:
    """Moments and step counts: every number in a nest of dicts and lists."""
    if isinstance(stock, dict):
        for key in stock:
            note_state(ours[key], stock[key])
    elif isinstance(stock, (list, tuple)):
        for mine, other in zip(ours, stock, strict=True):
            note_state(mine, other)
    elif isinstance(stock, Tensor):
        note(f"state {str(stock.dtype).removeprefix('torch.')}", relative(ours, stock))


def note_schedule(ours: Tensor, stock: Tensor, peak: Tensor) -> None:
    """Hyperparameters that a schedule drives, relative to the largest value each has had."""
    equal = (ours == stock) | (ours.isnan() & stock.isnan())
    share = torch.where(equal, 0.0, (ours - stock).abs() / peak)
    note("schedule", share.max().item() if share.numel() else 0.0)


def relative(ours: Tensor, stock: Tensor) -> float:
    """The largest difference over the largest finite element."""
    known = stock.isfinite() & ours.isfinite()
    mine, other = ours.detach()[known], stock.detach()[known]
    if not mine.numel():
        return 0.0
    wide = torch.complex128 if other.is_complex() else torch.float64
    distance = (mine.to(wide) - other.to(wide)).abs().max().item()
    return distance / (other.to(wide).abs().max().item() or 1.0) if distance else 0.0
