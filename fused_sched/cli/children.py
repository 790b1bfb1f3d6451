"""Processes that a script starts with ``multiprocessing``: torch's names are swapped there too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from multiprocessing import spawn
from typing import Any

import fused_sched

from .made import Made


class _Swapped:
    """Is unpickled in the new process before it imports anything of the script's."""

    def __init__(self, fuse: bool) -> None:
        self.fuse = fuse

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[bool]]:
        return swap_here, (self.fuse,)


def swap_here(fuse: bool) -> None:
    """Swap torch's names in this process, for its life."""
    fused_sched.swap()
    if fuse:
        Made(keep=False, fuse=True)


def swap_in_children(fuse: bool) -> None:
    """Let every process spawned from here begin with torch's names swapped.

    One that is forked has them swapped by itself. ``get_preparation_data`` says what a new process
    gets before the script is imported there; keys that it does not know it ignores.
    """
    prepare = spawn.get_preparation_data

    @functools.wraps(prepare)
    def with_swap(name: str) -> dict[str, Any]:
        return {**prepare(name), "fused_sched": _Swapped(fuse)}

    spawn.get_preparation_data = with_swap
