"""Step counts in ``optimizer.state``: whether somebody has written one, and who holds one."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor

_Noted = tuple[Any, int | None, int | None]
"""A step count, its value and its version; None where one of the two cannot be had for nothing."""

_NOTHING: _Noted = (None, None, None)


class Counts:
    """The step counts that the state dict holds, as they were written last.

    Attributes:
        held: params whose count somebody beside the state dict has in hand, and may write or read
            at any time.
    """

    def __init__(self) -> None:
        self._seen: dict[Any, _Noted] = {}
        self.held: list[Any] = []

    def note(self, param: Any, step: Any) -> None:
        """A param's count is this one, and nobody has written it since."""
        on_gpu = isinstance(step, Tensor) and step.device.type != "cpu"  # reading it would wait
        self._seen[param] = step, None if on_gpu else int(step), _version(step)

    def fill(self, param: Any, step: Tensor, value: int) -> None:
        """Write a param's count, on the CPU."""
        step.fill_(value)
        self._seen[param] = step, value, _version(step)

    def forget(self, param: Any) -> None:
        self._seen.pop(param, None)

    def written(self, param: Any, step: Any) -> bool:
        """Whether a param's count is another one now, or somebody has written it."""
        known, value, version = self._seen.get(param, _NOTHING)
        if step is not known or (version is not None and step._version != version):
            return True
        return value is not None and int(step) != value

    def held_one_written(self) -> bool:
        """Whether somebody has written a held count."""
        return any(self.written(p, self._seen.get(p, _NOTHING)[0]) for p in self.held)

    def look_who_holds(self, params: Iterable[Any] | None = None) -> None:
        """Find the held counts, among those of these params (None: of all)."""
        among = self._seen if params is None else params
        self.held = [param for param in among if self._references(param) > _UNHELD]

    def _references(self, param: Any) -> int:
        return sys.getrefcount(self._seen[param][0]) if param in self._seen else 0


def _version(step: Any) -> int | None:
    return step._version if isinstance(step, Tensor) and not step.is_inference() else None


def _unheld() -> int:
    """References to a count that only the state dict and ``Counts`` have."""
    counts, entry = Counts(), {"step": object()}
    counts._seen[None] = entry["step"], None, None
    return counts._references(None)


_UNHELD = _unheld()
