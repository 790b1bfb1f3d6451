"""The memory limit of a CPU: a loop that moves the bytes of a step and computes next to nothing.

It reads what a step reads and writes what it writes, in place, on libtorch's threads, which draw
chunks of half a megabyte: what is left to gain is the distance to it.
"""

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import torch

from benchmarks.measure import Runner
from benchmarks.workload import Workload
from fused_sched.engines import native_build, native_library

SOURCE = """
#include <atomic>
#include <cstdint>

// x + 1 for 64-bit words of each state and of the param, the gradient's words added to the param.
struct Sweep { uint64_t **arrays; int64_t states, words, chunk; std::atomic<int64_t> next; };

extern "C" void sweep_chunks(int64_t, int64_t, void* context) {
  Sweep& sweep = *static_cast<Sweep*>(context);
  for (int64_t first; (first = sweep.next.fetch_add(sweep.chunk)) < sweep.words;) {
    const int64_t last = first + sweep.chunk < sweep.words ? first + sweep.chunk : sweep.words;
    uint64_t* __restrict__ p = sweep.arrays[0];
    const uint64_t* __restrict__ g = sweep.arrays[1];
    uint64_t* __restrict__ a = sweep.arrays[2];
    if (sweep.states == 1) {
      for (int64_t i = first; i < last; ++i) { a[i] += g[i]; p[i] += a[i]; }
    } else {
      uint64_t* __restrict__ b = sweep.arrays[3];
      for (int64_t i = first; i < last; ++i) { a[i] += g[i]; b[i] += g[i]; p[i] += a[i] ^ b[i]; }
    }
  }
}

extern "C" void* body() { return reinterpret_cast<void*>(&sweep_chunks); }
"""
CHUNK_WORDS = 65536


class Sweep(ctypes.Structure):
    """One call's arrays: param, gradient and states, each of `words` 8-byte words."""

    _fields_ = (
        ("arrays", ctypes.POINTER(ctypes.c_void_p)),
        ("states", ctypes.c_int64),
        ("words", ctypes.c_int64),
        ("chunk", ctypes.c_int64),
        ("next", ctypes.c_int64),
    )


@functools.cache
def sweep_body() -> int:
    """Address of the loop, compiled for this machine."""
    folder = Path(tempfile.mkdtemp())
    source, library = folder / "limit.cpp", folder / "limit.so"
    source.write_text(SOURCE)
    command = [*native_build._compiler(), "-O3", "-march=native", "-shared", "-fPIC"]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    body = ctypes.CDLL(str(library)).body
    body.restype = ctypes.c_void_p
    return body()


def limit_runner(workload: Workload) -> Runner:
    """The loop over arrays as large as the workload's."""
    words = -(-workload.task.param_bytes(workload.model) // 8)
    states = workload.task.state_tensors
    arrays = [torch.ones(words, dtype=torch.int64) for _ in range(2 + states)]
    pointers = (ctypes.c_void_p * len(arrays))(*(array.data_ptr() for array in arrays))
    threads = torch.get_num_threads()
    sweep = Sweep(pointers, states, words, min(CHUNK_WORDS, -(-words // threads)), 0)
    address, _ = native_library.thread_functions()
    parallel_for = ctypes.CFUNCTYPE(
        ctypes.c_int32, *[ctypes.c_int64] * 3, ctypes.c_void_p, ctypes.c_void_p
    )(address)
    body, place = sweep_body(), ctypes.addressof(sweep)

    def call() -> None:
        sweep.next = 0
        parallel_for(0, threads, 1, body, place)

    return Runner(call, alive=(arrays, pointers, sweep))
