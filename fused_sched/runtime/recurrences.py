"""A rule's recurrences in ``optimizer.state``: numbers of a param that one step hands the next."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _get_scalar_dtype

Entry = dict[str, Any]


@dataclass(slots=True)
class _Noted:
    """One number as it was written last; ``value`` is None where reading it would wait."""

    tensor: Any
    value: float | None
    version: int | None


class Recurrences:
    """Writes the recurrences into the state dict, and sees whether user code has written there.

    Args:
        names: of the rule's recurrences.
        start: ``(name, group)`` to the number before a first step.
    """

    def __init__(
        self, names: Sequence[str], start: Callable[[str, Mapping[str, Any]], float]
    ) -> None:
        self.names = tuple(names)
        self._start = start
        self._noted: dict[Any, tuple[_Noted, ...]] = {}

    def begin(self, param: Tensor, entry: Entry, group: Mapping[str, Any]) -> Entry:
        """Those that an entry of the state lacks, as before a first step.

        Raises:
            KeyError: the entry has made steps, and lacks one.
        """
        missing = [name for name in self.names if entry.get(name) is None]
        if missing and int(entry.get("step", 0)) > 0:
            raise KeyError(missing[0])
        on_device = group.get("fused") or group.get("capturable")
        device = param.device if on_device else "cpu"
        return {
            name: torch.full((), self._start(name, group), dtype=_get_scalar_dtype(), device=device)
            for name in missing
        }

    def numbers(self, entry: Entry | None, group: Mapping[str, Any]) -> list[float]:
        """What an entry of the state holds, or what a first step begins with."""
        held = entry or {}
        return [
            self._start(name, group) if held.get(name) is None else float(held[name])
            for name in self.names
        ]

    def note(self, param: Tensor, entry: Entry | None) -> None:
        """The launches have what the entry shows."""
        if entry and self.names:
            self._noted[param] = tuple(_noted(entry.get(name)) for name in self.names)

    def written(self, param: Tensor, entry: Entry) -> bool:
        """Whether user code has put other numbers into the entry."""
        noted = self._noted.get(param)
        if noted is None:
            return bool(self.names)
        return any(
            _differs(one, entry.get(name)) for name, one in zip(self.names, noted, strict=True)
        )

    def show(self, param: Tensor, entry: Entry, numbers: Iterable[float]) -> None:
        """Write what the launches have made of them.

        Args:
            numbers: these come first among them.
        """
        for name, number in zip(self.names, numbers, strict=False):
            entry[name].fill_(number)
        self.note(param, entry)

    def forget(self, param: Tensor) -> None:
        self._noted.pop(param, None)

    def are_held(self) -> bool:
        """Whether user code has a reference to one of the tensors."""
        return any(
            sys.getrefcount(one.tensor) > _UNHELD for noted in self._noted.values() for one in noted
        )


def _noted(tensor: Any) -> _Noted:
    if not isinstance(tensor, Tensor):
        return _Noted(tensor, None if tensor is None else float(tensor), None)
    version = None if tensor.is_inference() else tensor._version
    return _Noted(tensor, float(tensor) if tensor.device.type == "cpu" else None, version)


def _differs(noted: _Noted, now: Any) -> bool:
    if now is not noted.tensor:
        return True
    if noted.version is not None and now._version != noted.version:
        return True
    return noted.value is not None and float(now) != noted.value


def _unheld() -> int:
    """References to a tensor that only the state dict and ``Recurrences`` have."""
    entry = {"x": object()}
    one = _Noted(entry["x"], None, None)
    return sys.getrefcount(one.tensor)


_UNHELD = _unheld()
