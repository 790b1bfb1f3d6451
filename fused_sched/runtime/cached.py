"""Cached launches: what the compiled engine does without Python, and the count of it.

The optimizer and the scheduler own theirs: owned from here they would be a cyclic reference.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

CACHED = "_cached"
"""The attribute under which optimizer and scheduler have theirs."""


class CachedLaunches:
    """The cached launch of an optimizer, and the cached advance of its one explicit scheduler."""

    def __init__(self, optimizer: weakref.ref[Any]) -> None:
        self._optimizer = optimizer
        self._scheduler: weakref.ref[Any] | None = None
        self.unreplayed = 0  # advances of it that the host has yet to make
        self.key: tuple[Any, ...] = ()  # what the last full step found

    @property
    def scheduler(self) -> Any:
        """The scheduler with a cached advance, None without one."""
        return None if self._scheduler is None else self._scheduler()

    @property
    def launch(self) -> Any:
        """The cached launch that there is, or None."""
        optimizer = self._optimizer()
        return None if optimizer is None else optimizer.__dict__.get(CACHED)

    # -- what was done without Python ------------------------------------------------------------

    def take_steps(self) -> tuple[int, Mapping[int, int]]:
        """(cached launches since the last look; by number of a param, those it missed)."""
        launch = self.launch
        return (0, {}) if launch is None else launch.take()

    def take_advances(self) -> bool:
        """Count the cached advances; False if the scheduler is gone, and its count with it."""
        if self._scheduler is None:
            return True
        scheduler = self._scheduler()
        if scheduler is None:
            self._scheduler, self.unreplayed = None, 0
            return False
        cached = scheduler.__dict__.get(CACHED)
        self.unreplayed += 0 if cached is None else cached.take()
        return True

    def take_unreplayed(self) -> int:
        """The advances; the host makes them now."""
        unreplayed, self.unreplayed = self.unreplayed, 0
        return unreplayed

    def replay(self) -> None:
        """Make the host's scheduler follow."""
        scheduler = self.scheduler
        for _ in range(self.take_unreplayed()):
            scheduler._host_step()

    # -- kept and dropped ------------------------------------------------------------------------

    def keep_launch(self, launch: Any) -> None:
        optimizer = self._optimizer()
        if launch is not None and optimizer is not None:
            optimizer.__dict__[CACHED] = launch

    def keep_schedule(self, scheduler: Any, cached: Any) -> None:
        self._scheduler = weakref.ref(scheduler)
        scheduler.__dict__[CACHED] = cached

    def note_key(self, key: tuple[Any, ...]) -> None:
        """What a full step has found; a launch is made where it is the same twice."""
        self.key = key

    def drop_launch(self) -> None:
        self.key = ()
        if self.launch is not None:
            del self._optimizer().__dict__[CACHED]

    def drop_schedule(self) -> None:
        scheduler = self.scheduler
        if scheduler is not None:
            scheduler.__dict__.pop(CACHED, None)
        if not self.unreplayed:
            self._scheduler = None
