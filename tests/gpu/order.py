"""Which tests run first."""

from __future__ import annotations

import pytest

FIRST = (
    *("test_optimizers.py", "test_graphs.py", "test_schedules.py", "test_edits.py"),
    *("test_streams.py", "test_syncs.py", "test_scaler.py", "test_launches.py"),
)
"""The files that tell most, in the order in which they run; all others follow."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put first what tells most: a run may be stopped."""
    place = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(FIRST)))
