"""The compiled engine's CUDA half on a CPU: its library, its streams, and torch's word on both."""

from __future__ import annotations

import atexit
import ctypes
import functools
import shutil
import tempfile
from collections.abc import Callable
from ctypes import PYFUNCTYPE, c_int, c_int32, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import pytest
import torch

from fused_sched.engines import native_build, native_cuda, native_engine, native_library
from fused_sched.runtime.cached import CachedLaunches
from fused_sched.runtime.device_state import DeviceState

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
QUICK = {"FUSED_SCHED_CXXFLAGS": "-O1"}
"""Also makes it another library than an installed one."""


@functools.cache
def library() -> Path:
    """What ``bin/nvcc`` makes of ``csrc``; compiled once a process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = Path(folder) / native_build.LIBRARY
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_HOME", str(HERE))
        for name, value in QUICK.items():
            patch.setenv(name, value)
        native_build.compile_library(CSRC, target, ["9.0"])
    return target


@functools.cache
def module() -> Any:
    return native_library._module(library())


@functools.cache
def device() -> Any:
    """The stand-in's own functions, of ``cuda_runtime.h``."""
    functions = ctypes.CDLL(str(library()))
    functions.cuda_on_host_stream.restype = c_void_p
    functions.cuda_on_host_capture.argtypes = c_int, c_void_p
    functions.cuLaunchKernel.argtypes = c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p
    return functions


def serve(patch: pytest.MonkeyPatch) -> None:
    """The native engine launches CUDA kernels, on CPU tensors."""
    patch.setattr(native_cuda, "_module", lambda device: module())
    patch.setattr(native_cuda, "_number", lambda device: 0)
    patch.setattr(native_cuda, "_where", lambda device: {"device": 0, "stream": 0})
    for name in ("update", "load", "advance", "can_cache", "cached_launch"):
        patch.setattr(native_engine, name, getattr(native_cuda, name))
    patch.delattr(native_engine, "first_step")  # the CPU's
    patch.setattr(CachedLaunches, "keep_schedule", lambda *_: None)  # its advance is the CPU's


# -- torch's exchange table ----------------------------------------------------------------------

Read = PYFUNCTYPE(c_int, c_void_p, c_void_p)
CurrentStream = PYFUNCTYPE(c_int, c_int32, c_int32, ctypes.POINTER(c_void_p))


class ExchangeApi(ctypes.Structure):
    """DLPack's, as csrc/dlpack.h has it."""

    _fields_ = [
        ("version", c_uint64),
        ("others", c_void_p * 4),
        ("tensor_from_object", Read),
        ("current_stream", CurrentStream),
    ]


class TensorFields(ctypes.Structure):
    """The start of DLPack's tensor."""

    _fields_ = [("data", c_void_p), ("device_type", c_int32), ("device", c_int32)]


_CAPSULE = b"dlpack_exchange_api"
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = c_void_p, ctypes.c_char_p, c_void_p
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = c_void_p
_pointer.argtypes = ctypes.py_object, ctypes.c_char_p


class Stream:
    """As ``torch.cuda.Stream``."""

    def __init__(self, handle: int) -> None:
        self.cuda_stream = handle


class Streams:
    """torch's account of streams, as a test wants it to be; device_states keep theirs by it.

    Attributes:
        current: device -> handle of its current stream; absent, torch fails to say.
        waits: (stream that waited, stream that it waited for).
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.current = {0: 0, 1: 0}
        self.waits: list[tuple[int, int]] = []
        self._elsewhere: dict[int, int] = {}
        needs = native_library._cached_needs()
        self._table = ExchangeApi.from_buffer_copy(
            ExchangeApi.from_address(_pointer(needs[0], _CAPSULE))
        )
        # By its address: the field may become another function.
        self._read = Read(ctypes.cast(self._table.tensor_from_object, c_void_p).value)
        self._table.current_stream = CurrentStream(self._tell)
        capsule = _new_capsule(ctypes.addressof(self._table), _CAPSULE, None)
        module().set_up_cached(capsule, *needs[1:])
        patch.setattr(DeviceState, "join_stream", self._join)

    def claim(self, tensor: torch.Tensor, device: int) -> None:
        """Let a tensor lie on a GPU of another number."""
        self._elsewhere[id(tensor)] = device
        self._table.tensor_from_object = Read(self._read_tensor)

    def _read_tensor(self, tensor: int, out: int) -> int:
        status = self._read(tensor, out)
        if tensor in self._elsewhere:
            TensorFields.from_address(out).device = self._elsewhere[tensor]
        return status

    def _tell(self, kind: int, device: int, out: Any) -> int:
        if kind != 2 or device not in self.current:
            return -1
        out[0] = self.current[device]
        return 0

    @property
    def _join(self) -> Callable[[DeviceState], None]:
        def join(device_state: DeviceState) -> None:
            """DeviceState.join_stream, which orders nothing on a CPU."""
            now, last = self.current.get(0, 0), device_state._last_stream
            if last is not None and last.cuda_stream != now:
                self.waits.append((now, last.cuda_stream))
            device_state._last_stream = Stream(now)

        return join


def launched(call: Callable[[], object]) -> int:
    """How many kernels a call starts."""
    before = device().cuda_on_host_launches()
    call()
    return device().cuda_on_host_launches() - before


def device_state_of(opt: Any) -> DeviceState:
    """The one device state of an optimizer."""
    (device_state,) = opt._ledger.mirror.host.device_states.values()
    return device_state
