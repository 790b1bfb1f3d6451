"""Cached launches of the Triton engine: its compiled kernel started by the compiled library.

The library makes the same call of CUDA's driver that Triton's launcher makes (3.6 to 3.9): a
kernel's parameters are its arguments but for the constexpr ones, and two pointers to scratch memory
that it does not use. New gradients' addresses go into a table of the cached launch's own.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_sched.tables import layout

from .native_library import LaunchSnapshot, make_cached_launch
from .native_library import load as load_library
from .native_structs import TRITON_LAUNCH

if TYPE_CHECKING:
    from fused_sched.tables.device_buffer import DeviceBuffer
    from fused_sched.tables.params import ParamTable

_DRIVER = "libcuda.so.1"

_MOST_GRADIENTS = (64 << 10) // 8
"""Whose addresses the driver takes along with the call that copies them."""

_SCRATCH = (0, 0)

_EXTRAS = (
    "launch_cooperative_grid",
    "launch_pdl",
    "global_scratch_size",
    "profile_scratch_size",
    "instrumentation_mode",
)
"""What a launch may have beside blocks of threads, by the names of a kernel's metadata."""


@functools.cache
def _library() -> Any:
    """The compiled library with CUDA's driver found, None where there is none."""
    library = load_library()
    if isinstance(library, str) or library.find_driver(_DRIVER) is not None:
        return None
    return library


def can_cache(buffer: DeviceBuffer, table: ParamTable) -> bool:
    """Whether ``cached_launch`` and ``cached_call`` can serve these tables."""
    return _serves(buffer.device) and len(table.rows) <= _MOST_GRADIENTS and _library() is not None


def _serves(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.cuda is not None


def cached_call(words: array[int], number: int, optimizer: Any) -> Any:
    """As the native engine's."""
    groups = tuple(optimizer.param_groups)
    return _library().CachedCall(words.buffer_info()[0], number, optimizer.__dict__, groups, words)


def make_triton_step(
    buffer: DeviceBuffer,
    table: ParamTable,
    handle: Any,
    args: Sequence[Any],
    snapshot: LaunchSnapshot,
) -> Any:
    """A TritonStep of csrc/cached_launch.cpp, None where only Triton's launcher serves.

    Args:
        handle: the compiled kernel.
        args: of its launch, the table of addresses first.
    """
    hooks = _hooks()
    if hooks is None or not _is_plain(handle.metadata):
        return None
    addresses = table.cached_addresses()
    parameters = _parameters(handle, [addresses, *args[1:]])
    fields = TRITON_LAUNCH.pack(
        {
            "function": handle.function,
            "blocks": table.programs,
            "threads": handle.metadata.num_warps * _lanes(handle.metadata),
            "shared": handle.metadata.shared,
            "grads": addresses[layout.GRAD].data_ptr(),
            "tensors": addresses.shape[1],
            "advance": [name for name, _ in parameters].index("advance"),
        }
    )
    words = array("q", [*(value for _, value in parameters), *_SCRATCH])
    return make_cached_launch(
        _library(),
        fields + words.tobytes(),
        buffer.device.index or 0,
        buffer,
        table,
        snapshot,
        triton=(hooks, (handle, addresses, *args)),
    )


def _hooks() -> tuple[Any, ...] | None:
    """What TritonLaunch::note takes; None where user code has replaced the hooks."""
    from triton import knobs

    chains = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    calls = [getattr(chain, "calls", None) for chain in chains]
    if not all(isinstance(one, list) for one in calls):
        return None
    return knobs.runtime, chains[0], calls[0], chains[1], calls[1]


def _is_plain(metadata: Any) -> bool:
    """Whether a launch of it is one of blocks of threads and nothing else."""
    return metadata.num_ctas == 1 and not any(getattr(metadata, name, None) for name in _EXTRAS)


def _lanes(metadata: Any) -> int:
    return int(metadata.target.warp_size)


def _parameters(handle: Any, args: Sequence[Any]) -> list[tuple[str, int]]:
    """Each parameter of a compiled kernel with its value; a pointer's is an address."""
    return [
        (name, value.data_ptr() if isinstance(value, Tensor) else int(value))
        for (name, kind), value in zip(handle.src.signature.items(), args, strict=True)
        if kind != "constexpr"
    ]
