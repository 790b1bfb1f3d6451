"""Whether user code holds ``optimizer.state``, and can change it at any time."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any


def _references(owner: Any) -> tuple[int, int]:
    """References to ``owner.state``, and the most to one of its values."""
    state = sys.getrefcount(owner.state)
    return state, max((sys.getrefcount(entry) for entry in owner.state.values()), default=0)


# Measured, in the very code that counts: since Python 3.14 a call's argument is not always counted.
_UNHELD = _references(SimpleNamespace(state={0: {}}))


def is_held(owner: Any) -> bool:
    """Whether ``owner.state``, a dict of dicts, or a value of it has another holder than its owner.

    Args:
        owner: the only holder of the dict that does not count, in an attribute.
    """
    state, entry = _references(owner)
    return state > _UNHELD[0] or entry > _UNHELD[1]
