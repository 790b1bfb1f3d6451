"""A stream other than the last launch's: in what order the work is, and what memory is in use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fused_sched
from fused_sched.runtime.device_state import DeviceState

GPU = torch.device("cuda", 0)


class Stream:
    """As ``torch.cuda.Stream``."""

    def __init__(self) -> None:
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)


@pytest.fixture
def on(monkeypatch) -> Any:
    """``on(stream, device_state)``: joins; the addresses whose use on that stream was noted."""
    noted: list[tuple[int, Any]] = []

    def note(tensor: Tensor, stream: Any) -> None:
        noted.append((tensor.data_ptr(), stream))

    monkeypatch.setattr(Tensor, "record_stream", note, raising=False)

    def join(stream: Stream, device_state: DeviceState) -> set[int]:
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
        noted.clear()
        device_state.join_stream()
        assert all(at is stream for _, at in noted)
        return {address for address, _ in noted}

    return join


@pytest.fixture
def device_state() -> DeviceState:
    """A device state that is taken for a GPU's, with a table of every sort in use."""
    weight = Parameter(torch.ones(4, 6)[:, ::2])  # with gaps, so copied around the launch
    weight.grad = torch.ones(3, 4).T  # in another order, so copied too
    opt = fused_sched.optim.SGD([weight], lr=1.0)
    fused_sched.fuse(opt, fused_sched.lr_scheduler.MultiStepLR(opt, [3, 5]))
    opt.step()
    (device_state,) = opt._ledger.mirror.host.device_states.values()
    device_state.device = GPU
    return device_state


def addresses(device_state: DeviceState) -> set[int]:
    """Of all that a launch of it reads or writes, but for the user's own."""
    table, buffer = device_state.table, device_state.buffer
    (row,) = table.staged
    tables = table.addresses, table.info, table.chunks, row.staged_param, row.staged_grad
    programs = [program.aux for program in buffer.programs]
    return {tensor.data_ptr() for tensor in (*tables, buffer.memory, *programs)}


def test_another_stream_waits_for_the_last_one(on, device_state):
    first, second = Stream(), Stream()
    for stream in (first, first, second, second, first):
        on(stream, device_state)
    assert second.waited_for == [first]
    assert first.waited_for == [second]


def test_memory_in_use_on_another_stream_is_noted_there(on, device_state):
    """So that no allocation gets a table that is let go while a launch that reads it is pending."""
    first, second = Stream(), Stream()
    assert on(first, device_state) == addresses(device_state)
    assert on(second, device_state) == addresses(device_state)
    assert on(second, device_state) == set()


def test_new_tables_are_noted_on_the_next_stream(on, device_state):
    first, second = Stream(), Stream()
    on(first, device_state)
    device_state.device = torch.device("cpu")
    device_state.build_table(device_state.table.rows)
    device_state.device = GPU
    assert on(second, device_state) == addresses(device_state)
