"""Param groups that read like dicts and write through to the device."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from .mirror import Mirror
from .writes import after_write, before_write

_MISSING = object()


class Group(dict[str, Any]):
    """A param group: a dict whose reads are current and whose writes reach the device.

    Reading a value first catches up with the launches; writing one sends it at once,
    also between replays of a captured graph. Copies, pickles and checkpoints hold plain dicts.
    """

    __slots__ = ("__weakref__", "mirror")

    def __init__(self, values: dict[str, Any], mirror: Mirror) -> None:
        super().__init__(values)
        self.mirror = mirror

    def __getitem__(self, key: str) -> Any:
        if key != "params":
            self._refresh(key)
        return dict.__getitem__(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        self._refresh(key)
        return super().get(key, default)

    def _refresh(self, key: str) -> None:
        if key in self.mirror.numbers.names:
            self.mirror.refresh_group()
        else:
            self.mirror.refresh_values()

    def __iter__(self) -> Iterator[str]:
        # dict(group), {**group} and group | other take the slow path, through keys and getitem.
        return super().__iter__()

    def items(self) -> Any:
        self.mirror.refresh_group()
        return super().items()

    def values(self) -> Any:
        self.mirror.refresh_group()
        return super().values()

    def __setitem__(self, key: str, value: Any) -> None:
        with self.mirror.host.lock:
            before_write(self.mirror, self, key, value)
            super().__setitem__(key, value)
            after_write(self.mirror, self, key)

    def __delitem__(self, key: str) -> None:
        optional = self.mirror.host.rule.optional
        if key in self and key in optional:
            self[key] = optional[key]  # what counts from here on
        self.mirror.refresh_group()
        super().__delitem__(key)

    def __eq__(self, other: object) -> bool:
        self.mirror.refresh_group()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __repr__(self) -> str:
        self.mirror.refresh_group()
        return super().__repr__()

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: str, default: Any = _MISSING) -> Any:
        if key in self:
            value = self[key]
            del self[key]
            return value
        if default is _MISSING:
            raise KeyError(key)
        return default

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Any) -> Group:  # type: ignore[override, misc]
        self.update(other)
        return self

    def raw(self) -> dict[str, Any]:
        """A plain dict with the host's values as they are."""
        return dict(super().items())

    def copy(self) -> dict[str, Any]:
        """A plain dict with current values."""
        self.mirror.refresh_group()
        return self.raw()

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.copy(),)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return deepcopy(self.copy(), memo)
