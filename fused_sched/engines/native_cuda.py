"""The native engine for CUDA tensors: ``csrc/cuda.cu``, one launch for a step."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_sched.tables import layout

from .native_library import LaunchSnapshot, advance_values, make_cached_launch, update_values
from .native_library import load as load_library
from .native_rules import cuda_rule
from .native_structs import CUDA_ADVANCE, CUDA_UPDATE

if TYPE_CHECKING:
    from fused_sched.rules.rule import Rule
    from fused_sched.tables.device_buffer import DeviceBuffer, Program
    from fused_sched.tables.params import ParamTable


def unavailable(device: torch.device) -> str | None:
    """Why this engine cannot serve a CUDA device, or None. May compile the library."""
    if torch.version.cuda is None:
        return "it serves CUDA tensors, and this torch is built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    number = torch.cuda.current_device() if device.index is None else device.index
    module = _module(number)
    return module if isinstance(module, str) else None


_loaded: dict[int, Any] = {}
"""The compiled module, by the number of a device on which its kernels are loaded."""


def _module(device: int) -> Any:
    """The compiled module, loaded on a device, or the reason why it cannot serve it.

    A load that failed is tried again: another thread's capture may have been what forbade it.
    """
    if device in _loaded:
        return _loaded[device]
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return (
            "its kernels are not loaded there, and nothing can be loaded while a CUDA graph is "
            "being captured; call optimizer.prepare() before the capture"
        )
    module = _built(device)
    if isinstance(module, str):
        return module
    try:
        module.cuda_load(device)
    except RuntimeError as error:
        return str(error)
    _loaded[device] = module
    return module


@functools.cache
def _built(device: int) -> Any:
    """The compiled module with code for a device, or the reason why there is none."""
    capability = torch.cuda.get_device_capability(device)
    module = load_library()
    if not isinstance(module, str) and not serves(module.cuda_archs(), capability):
        module = load_library("{}.{}".format(*capability))
    if isinstance(module, str):
        return module
    archs = module.cuda_archs()
    if not serves(archs, capability):
        here = "{}.{}".format(*capability)
        return (
            f"it is compiled for compute capability {archs.replace(' ', ', ')}, and this GPU's is "
            f"{here}; set TORCH_CUDA_ARCH_LIST={here}"
        )
    return module


def serves(archs: str, capability: tuple[int, int]) -> bool:
    """Whether code for these architectures runs on a GPU.

    Machine code runs on its own major version from its minor one on, PTX on everything later.

    Args:
        archs: as in ``"8.0 9.0+PTX"``.
    """
    for arch in archs.split():
        major, minor = map(int, arch.removesuffix("+PTX").split("."))
        if (major, minor) <= capability and (arch.endswith("+PTX") or major == capability[0]):
            return True
    return False


def _number(device: torch.device) -> int:
    assert device.index is not None, "a tensor's device has an index"
    return device.index


def _where(device: torch.device) -> dict[str, int]:
    """The fields of both structs that say where a launch runs."""
    return {"device": _number(device), "stream": torch.cuda.current_stream(device).cuda_stream}


def update(
    buffer: DeviceBuffer,
    table: ParamTable,
    grads: Sequence[int],
    program: Program | None,
    rule: Rule,
    advance: int,
    scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One optimizer step, and the schedule step of ``program``, in one launch."""
    module = _module(_number(buffer.device))
    riding = len(grads) <= module.CUDA_GRADIENTS
    if riding:
        table.send_fixed()
    else:
        table.send_addresses(grads)
    values = update_values(buffer, table, program, _code(rule), advance, scale, found_inf)
    fields = CUDA_UPDATE.pack(values | _chunk_values(table) | _where(buffer.device))
    module.cuda_update(fields, array("q", grads if riding else ()).tobytes())


def _code(rule: Rule) -> int:
    code = cuda_rule(rule)
    assert isinstance(code, int), code  # else the engine would have refused
    return code


def _chunk_values(table: ParamTable) -> dict[str, int]:
    chunks = table.chunks
    return {
        "chunks": chunks.data_ptr(),
        "chunk_count": chunks.shape[1],
        "chunk_size": table.chunk_size,
        "kind_count": len(table.kinds),
    }


def can_cache(buffer: DeviceBuffer, table: ParamTable) -> bool:
    """Whether every launch can do without sending the table first."""
    return len(table.rows) <= _module(_number(buffer.device)).CUDA_GRADIENTS


def cached_launch(
    buffer: DeviceBuffer,
    table: ParamTable,
    program: Program | None,
    rule: Rule,
    snapshot: LaunchSnapshot,
) -> Any:
    """A CachedLaunch that launches on the current stream."""
    number = _number(buffer.device)
    module = _module(number)
    values = update_values(buffer, table, program, _code(rule), snapshot.advance, None, None)
    values |= _chunk_values(table) | {"device": number, "stream": 0}
    return make_cached_launch(module, CUDA_UPDATE.pack(values), number, buffer, table, snapshot)


def load(
    buffer: DeviceBuffer,
    table: ParamTable,
    program: Program | None,
    rule: Rule,
    scalings: Iterable[layout.Scaling],
) -> None:
    """Load every kernel, which fails under capture, and fill the table, which adds a copy there."""
    number = _number(buffer.device)
    _module(number).cuda_load(number)
    table.send_fixed()


def advance(
    buffer: DeviceBuffer,
    program: Program,
    steps: int = 1,
    metric: Tensor | None = None,
    trace: Tensor | None = None,
) -> None:
    """Advance a program by its own launch: explicit mode. Arguments as for the Triton engine."""
    values = advance_values(buffer, program, steps, metric, trace) | _where(buffer.device)
    _module(_number(buffer.device)).cuda_advance(CUDA_ADVANCE.pack(values))
