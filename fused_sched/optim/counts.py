"""Step counts in ``optimizer.state``: whether somebody has written one, and whether one can."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

Seen = Mapping[Any, tuple[Any, int]]
"""By param, the step count that the state dict holds, and its mark."""


def mark(step: Any) -> int:
    """What changes as somebody writes a step count: on the CPU its value, elsewhere its version.

    Reading a value there would wait for the device.
    """
    if not isinstance(step, Tensor) or step.device.type == "cpu":
        return int(step)
    return -1 if step.is_inference() else step._version


def any_held(seen: Seen) -> bool:
    """Whether somebody beside the state dict and ``seen`` has a step count in hand."""
    return _most_referenced(seen) > _UNHELD


def _most_referenced(seen: Seen) -> int:
    """References to the step count that has the most, those of this function included."""
    return max((sys.getrefcount(step) for step, _ in seen.values()), default=0)


def _unheld() -> int:
    entry = {"step": object()}
    return _most_referenced({None: (entry["step"], 0)})


_UNHELD = _unheld()
