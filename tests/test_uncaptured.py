"""Memory filled beside a capture: what CUDA is asked for, with a driver that does it on the CPU.

``tests/gpu/test_launches.py`` shows on a GPU that no node comes of it.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fused_sched.tables import uncaptured as module
from fused_sched.tables.uncaptured import uncaptured

GPU = torch.device("cuda", 0)
GLOBAL, RELAXED, NON_BLOCKING, STREAM = 0, 2, 1, 7


class Driver:
    """As libcuda; notes its calls, which are forbidden where the thread's mode is not relaxed."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.mode = GLOBAL
        self.fails = ""

    def cuThreadExchangeStreamCaptureMode(self, mode: Any) -> int:
        before, self.mode = self.mode, mode._obj.value
        mode._obj.value = before
        return 0

    def _forbidden(self, name: str) -> bool:
        self.calls.append(name)
        return self.mode != RELAXED or self.fails == name

    def cuStreamCreate(self, handle: Any, flags: Any) -> int:
        assert flags.value == NON_BLOCKING
        handle._obj.value = STREAM
        return 900 * self._forbidden("create")

    def cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> int:
        assert stream.value == STREAM
        ctypes.memmove(target.value, source.value, size.value)
        return 900 * self._forbidden("copy")

    def cuStreamSynchronize(self, stream: Any) -> int:
        assert stream.value == STREAM
        return 900 * self._forbidden("wait")

    def cuGetErrorString(self, status: int, words: Any) -> int:
        words._obj.value = b"operation not permitted when stream is capturing"
        return 0


@pytest.fixture
def driver(monkeypatch):
    """Memory of "cuda" is the CPU's, and comes from the pool of the stream that is current."""
    made = Driver()
    empty = torch.empty

    @contextmanager
    def current(stream: Any) -> Any:
        made.calls.append(f"on {stream.cuda_stream}")
        yield
        made.calls.append("back")

    def allocate(shape: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        assert device == GPU and made.calls[-1] == f"on {STREAM}" and made.mode == RELAXED
        return empty(shape, dtype=dtype)

    @contextmanager
    def on(device: torch.device) -> Any:
        yield

    module._stream.cache_clear()
    monkeypatch.setattr(module, "_driver", lambda: made)
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(torch, "empty", allocate)
    stream = lambda handle, device: SimpleNamespace(cuda_stream=handle)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "ExternalStream", stream)
    yield made
    module._stream.cache_clear()


def test_it_is_filled_on_a_stream_of_its_own_and_waited_for(driver):
    host = torch.arange(12).view(3, 4)
    for create in (["create"], []):
        driver.calls.clear()
        table = uncaptured(host, GPU)
        assert torch.equal(table, host) and table.data_ptr() != host.data_ptr()
        assert driver.calls == [*create, f"on {STREAM}", "back", "copy", "wait"]
        assert driver.mode == GLOBAL


@pytest.mark.parametrize("call", ["create", "copy", "wait"])
def test_what_cuda_refuses_is_told_and_the_mode_restored(driver, call):
    driver.fails = call
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        uncaptured(torch.arange(3), GPU)
    assert driver.mode == GLOBAL


def test_on_a_cpu_it_is_a_copy():
    host = torch.arange(3)
    table = uncaptured(host, torch.device("cpu"))
    assert torch.equal(table, host) and table.data_ptr() != host.data_ptr()
