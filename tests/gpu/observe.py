"""What a call does to the device: its launches, its graph nodes, its waits."""

from __future__ import annotations

import ctypes
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fused_sched.engines import triton_engine
from fused_sched.runtime import device_state
from fused_sched.tables import device_buffer, params
from fused_sched.tables.device_buffer import DeviceBuffer

from .capture import RecordedGraph

_WORK = {"kernel": "kernel", "gpu_memcpy": "memcpy", "gpu_memset": "memset"}
"""Categories of a profiler's trace that are work of the device, and our names for them."""

_NODES = {0: "kernel", 1: "memcpy", 2: "memset", 3: "host", 5: "empty"}
"""CUgraphNodeType of the driver's ``cuda.h``."""


def launched(call: Callable[[], object], folder: Path) -> Counter[str]:
    """Count what a call starts on the GPU, by torch's profiler; without one, what it asks for."""
    if not torch.cuda.is_available():
        return _asked_for(call)
    _profile(lambda: torch.ones(1, device="cuda"), folder)  # the first one loads the profiler
    return Counter(_WORK[event["cat"]] for event in _profile(call, folder))


def _asked_for(call: Callable[[], object]) -> Counter[str]:
    """Count what would be work of a GPU: launches of Triton's, and what is sent to tables."""
    seen: Counter[str] = Counter()

    def counted(work: str, function: Any) -> Any:
        def count(*arguments: Any) -> Any:
            seen[work] += 1
            return function(*arguments)

        return count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_engine, "_launch", counted("kernel", triton_engine._launch))
        patch.setattr(DeviceBuffer, "write", counted("kernel", DeviceBuffer.write))
        patch.setattr(DeviceBuffer, "send_values", counted("memcpy", DeviceBuffer.send_values))
        send = counted("memcpy", device_buffer.send)
        for module in (device_buffer, params, device_state):
            patch.setattr(module, "send", send)
        call()
    return seen


def _profile(call: Callable[[], object], folder: Path) -> list[dict[str, Any]]:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=activities) as profiler:
            call()
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    return [event for event in events if event.get("cat") in _WORK]


def nodes(graph: Any) -> Counter[str]:
    """Count a captured graph's nodes by type; it must have been made with ``keep_graph=True``."""
    if isinstance(graph, RecordedGraph):
        return graph.nodes
    driver = ctypes.CDLL("libcuda.so.1")
    handle = ctypes.c_void_p(int(graph.raw_cuda_graph()))
    size = ctypes.c_size_t(0)
    assert driver.cuGraphGetNodes(handle, None, ctypes.byref(size)) == 0
    found = (ctypes.c_void_p * size.value)()
    assert driver.cuGraphGetNodes(handle, found, ctypes.byref(size)) == 0
    kinds: Counter[str] = Counter()
    for node in found:
        kind = ctypes.c_int(-1)
        assert driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)) == 0
        kinds[_NODES.get(kind.value, f"type {kind.value}")] += 1
    return kinds


@contextmanager
def no_sync(device: torch.device) -> Iterator[None]:
    """Within, a wait for the device raises; on the CPU only a fetch of the buffer does."""
    if device.type != "cuda":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DeviceBuffer, "fetch", _refuse)
            yield
        return
    torch.cuda.synchronize()
    _sync_debug_mode("error")
    try:
        yield
    finally:
        _sync_debug_mode("default")


def _refuse(buffer: DeviceBuffer) -> DeviceBuffer:
    raise RuntimeError("called a synchronizing operation: the buffer was fetched")


def _sync_debug_mode(mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the mode is a prototype
        torch.cuda.set_sync_debug_mode(mode)
