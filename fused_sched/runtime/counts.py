"""What was last written into ``optimizer.state``, and whether user code has written there since."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(slots=True)
class Noted:
    """A param's step count as it was written last.

    Attributes:
        step: the tensor in the state dict; None for a rule that counts no steps.
        value: its value, int64; None where reading it would wait. A cached launch counts in it.
        version: autograd's; None for a tensor without one.
        hidden: the state tensors are shown as None, as stock torch's before the first step.
    """

    step: Any
    value: array[int] | None
    version: int | None
    hidden: bool = False


_NOTHING = Noted(None, None, None)


class Counts:
    """The step counts that the state dict holds, as they were written last.

    Attributes:
        held: params whose count user code has a reference to, and may write or read at any time.
        replacements: of step tensors, so far.
    """

    def __init__(self) -> None:
        self.replacements = 0
        self._seen: dict[Any, Noted] = {}
        self.held: list[Any] = []

    def note(self, param: Any, step: Any) -> None:
        """A param's count is this one, and user code has not written it since."""
        on_gpu = isinstance(step, Tensor) and step.device.type != "cpu"  # reading it would wait
        self._set(param, step, None if on_gpu else int(step))

    def fill(self, param: Any, step: Tensor, value: int) -> None:
        """Write a param's count, on the CPU."""
        step.fill_(value)
        self._set(param, step, value)

    def _set(self, param: Any, step: Any, value: int | None) -> None:
        noted = self.noted(param)
        if noted.step is not step or noted is _NOTHING:
            noted = self._seen[param] = Noted(step, array("q", [0]), None)
            self.replacements += 1
        if value is None:
            noted.value = None
        elif noted.value is not None:
            noted.value[0] = value
        noted.version = _version(step)

    def noted(self, param: Any) -> Noted:
        """What was written last for a param."""
        return self._seen.get(param, _NOTHING)

    def forget(self, param: Any) -> None:
        self._seen.pop(param, None)

    def hide(self, param: Any, hidden: bool) -> None:
        """A param's state tensors are shown as None, or as they are."""
        noted = self._seen.get(param)
        if noted is not None:
            noted.hidden = hidden
        elif hidden:
            self._seen[param] = Noted(None, None, None, hidden=True)

    def written(self, param: Any, step: Any) -> bool:
        """Whether a param's count is another tensor now, or user code has written it."""
        noted = self.noted(param)
        if step is not noted.step:
            return True
        if noted.version is not None and step._version != noted.version:
            return True
        return noted.value is not None and int(step) != noted.value[0]

    def held_one_written(self) -> bool:
        """Whether user code has written a held count."""
        return any(self.written(p, self.noted(p).step) for p in self.held)

    def look_who_holds(self, params: Iterable[Any] | None = None) -> None:
        """Find the held counts, among those of these params (None: of all)."""
        among = self._seen if params is None else params
        self.held = [param for param in among if self._references(param) > _UNHELD]

    def _references(self, param: Any) -> int:
        noted = self._seen.get(param)
        return 0 if noted is None or noted.step is None else sys.getrefcount(noted.step)


def _version(step: Any) -> int | None:
    return step._version if isinstance(step, Tensor) and not step.is_inference() else None


def _unheld() -> int:
    """References to a count that only the state dict and ``Counts`` have."""
    counts, entry = Counts(), {"step": object()}
    counts._seen[None] = Noted(entry["step"], None, None)
    return counts._references(None)


_UNHELD = _unheld()
