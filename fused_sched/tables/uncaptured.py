"""Device memory that is filled while a graph is being captured, and not by the graph.

A captured launch reads its gradients' addresses from a table. What they are is known only during
the capture. A copy on the captured stream would be a node, made again at every replay; and memory
of the graph's pool holds what the graph put there before, at every replay again. So the table is
an ordinary allocation, and the host fills it on a stream of its own and waits for that copy only.
CUDA allows neither to a thread that captures, unless its mode is relaxed meanwhile: torch allocates
the graph's own memory so.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


def uncaptured(host: Tensor, device: torch.device) -> Tensor:
    """A copy of a contiguous CPU tensor on a device, complete when this returns."""
    if device.type != "cuda":
        return host.clone()
    with torch.cuda.device(device), _relaxed():
        stream = _stream(device)
        with torch.cuda.stream(stream):
            table = torch.empty(host.shape, dtype=host.dtype, device=device)
        handle = ctypes.c_void_p(stream.cuda_stream)
        target, source = ctypes.c_uint64(table.data_ptr()), ctypes.c_void_p(host.data_ptr())
        _call("cuMemcpyHtoDAsync_v2", target, source, ctypes.c_size_t(host.nbytes), handle)
        _call("cuStreamSynchronize", handle)
    return table


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *arguments: Any) -> None:
    status = getattr(_driver(), name)(*arguments)
    if status != 0:
        words = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(words))
        raise RuntimeError(f"CUDA error in {name}: {(words.value or b'unknown').decode()}")


@contextmanager
def _relaxed() -> Iterator[None]:
    """Within, CUDA allows this thread what it forbids around a capture in progress."""
    mode = ctypes.c_int(_RELAXED)
    _call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    try:
        yield
    finally:
        _call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))


@functools.cache
def _stream(device: torch.device) -> Any:
    """The stream of these copies; torch hands its own out in turn, also to whoever captures."""
    handle = ctypes.c_void_p()
    _call("cuStreamCreate", ctypes.byref(handle), ctypes.c_uint(_NON_BLOCKING))
    return torch.cuda.ExternalStream(handle.value, device)
