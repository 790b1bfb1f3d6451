"""Warnings of a call's insides, shown with the user's line that made the call."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_INSIDE = ("fused_sched.", "torch.", "contextlib")
"""Modules of the frames between the user's line and what warns."""


def _frame() -> FrameType:
    """The innermost frame of other modules; the outermost one without any."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_INSIDE):
        frame = frame.f_back
    return frame


def warn(message: str) -> None:
    """``warnings.warn`` at the user's line."""
    frame = _frame()
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(
        message,
        UserWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__"),
        registry,
    )


@contextmanager
def warned_there() -> Iterator[None]:
    """Within, warnings that pass the filters are held back, and shown at the user's line after it.

    Python forgets what it has shown before: for calls that are known to warn.
    """
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    finally:
        frame = _frame()
        for one in caught:
            place = frame.f_code.co_filename, frame.f_lineno
            warnings.showwarning(one.message, one.category, *place)
