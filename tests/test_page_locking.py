"""Page-locked memory: as much as a copy sends, and none inside a capture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fused_sched
from fused_sched.tables import params
from fused_sched.tables.device_buffer import send


class OnGpu(Tensor):
    """A CPU tensor that says it lies on a GPU."""

    device = torch.device("cuda", 0)


@pytest.fixture
def page_locked(monkeypatch) -> list[int]:
    """Bytes of each page-locked allocation; ordinary ones are made in their place."""
    sizes: list[int] = []
    empty = torch.empty

    def allocate(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        made = empty(*size, **options)
        if pin_memory:
            sizes.append(made.nbytes)
        return made

    monkeypatch.setattr(torch, "empty", allocate)
    return sizes


def test_a_schedules_table_page_locks_no_more_than_itself(page_locked):
    table = torch.rand(10_000, 465, dtype=torch.float64)
    target = torch.zeros_like(table)
    send(target.as_subclass(OnGpu), table)
    assert page_locked == [table.nbytes]
    assert torch.equal(target, table)


def test_captures_and_releases_send_nothing_from_page_locked_memory(monkeypatch):
    """100 rounds; what a capture sends is copied beside it, see tables/uncaptured.py."""
    weights = [Parameter(torch.zeros(3)) for _ in range(100)]
    opt = fused_sched.optim.SGD(weights, lr=1.0)
    opt.prepare()
    (device_state,) = opt._ledger.mirror.host.device_states.values()
    monkeypatch.setattr(params, "send", lambda *_: pytest.fail("sent inside a capture"))
    for address in range(1, 101):
        captured = params.CapturedTable(device_state.table)
        device_state.captured_tables.append(captured)
        captured.send_addresses([address] * len(weights))
        assert captured.addresses[1].unique().tolist() == [address]
        opt.release_capture()
        assert not device_state.captured_tables
