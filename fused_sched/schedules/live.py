"""Attributes of a scheduler that the device may have moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fused_sched.runtime.base import FusedOptimizer

if TYPE_CHECKING:
    from fused_sched.runtime.ledger import Ledger


def ledger_of(optimizer: Any) -> Ledger | None:
    """The ledger of one of our optimizers, seen through any wrapper; None for a foreign one."""
    return getattr(optimizer, FusedOptimizer._LEDGER, None)


class Live:
    """An attribute that the device may have moved: a read catches up first.

    The value lies in ``__dict__`` under torch's name, so that state dicts are torch's.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        ledger = ledger_of(instance.__dict__.get("optimizer"))
        if ledger is not None:
            ledger.mirror.refresh()
        try:
            return instance.__dict__[self.name]
        except KeyError:
            raise AttributeError(
                f"{type(instance).__name__!r} object has no attribute {self.name!r}"
            ) from None

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.name] = value


class Shared(Live):
    """A list that its reader may change in place: the schedule's next step is the host's."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        ledger = None if instance is None else ledger_of(instance.__dict__.get("optimizer"))
        if ledger is not None and not ledger.mirror.host.suspend_sync.is_entered:
            ledger.mirror.refresh()
            ledger.mirror.expect_change()
        return super().__get__(instance, owner)
