"""The compiled library and its calls: what the native engine's CPU and CUDA halves share."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from array import array
from collections.abc import Container, Sequence
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fused_sched.tables import layout

from . import native_build

if TYPE_CHECKING:
    from fused_sched.tables.device_buffer import DeviceBuffer, Program
    from fused_sched.tables.param_row import Kind
    from fused_sched.tables.params import ParamTable

DTYPES = {
    torch.float32: layout.FLOAT32,
    torch.bfloat16: layout.BFLOAT16,
    torch.float16: layout.FLOAT16,
    torch.float64: layout.FLOAT64,
}
"""The compiled engine's numbers of them."""


DLPACK_DEVICES = {"cpu": 1, "cuda": 2}
DLPACK_DTYPES = {torch.float32: (2, 32), torch.bfloat16: (4, 16), torch.float16: (2, 16)}
DLPACK_DTYPES[torch.float64] = (2, 64)
"""(code, bits) of DLPack's data types."""


@functools.cache
def load(present: str | None = None) -> Any:
    """The compiled module, or the reason why there is none.

    Args:
        present: compute capability of a GPU that the installed library does not serve, ``"9.0"``.
    """
    try:
        module = _module(native_build.library(present))
    except (OSError, ImportError, native_build.BuildError) as error:
        return str(error)
    try:
        module.use_threads(*thread_functions())
        module.set_up_cached(*_cached_needs())
    except (OSError, AttributeError, RuntimeError) as error:
        return (
            f"torch {torch.__version__} lacks what the compiled engine needs of torch >= 2.11: "
            f"{error}"
        )
    return module


def _module(path: Path) -> Any:
    loader = ExtensionFileLoader("fused_sched.engines._native", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def thread_functions() -> tuple[int, int]:
    """Addresses of libtorch's parallel_for and thread count, of its C interface."""
    folder = Path(torch.__file__).parent / "lib"
    torch_cpu = ctypes.CDLL(str(next(folder.glob("libtorch_cpu.*"))))
    functions = torch_cpu.torch_parallel_for, torch_cpu.torch_get_num_threads
    run, count = (ctypes.cast(function, ctypes.c_void_p).value for function in functions)
    assert run is not None and count is not None
    return run, count


def _cached_needs() -> tuple[Any, ...]:
    exchange = torch.Tensor.__dlpack_c_exchange_api__  # type: ignore[attr-defined]
    return (
        exchange,
        torch._C.TensorBase,
        Tensor,
        torch.autograd.profiler.__dict__,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
        torch._C._increment_version,
    )


def isa() -> str:
    """The instruction set in use: ``avx512bf16``, ``avx512``, ``avx2`` or ``baseline``."""
    return load().isa()


def described() -> str:
    """What the library holds, in a line; why there is none."""
    library = load()
    if isinstance(library, str):
        return f"not compiled: {library}"
    archs = library.cuda_archs()
    return f"{library.isa()}; CUDA: {archs or 'not compiled (FUSED_SCHED_CUDA=1 compiles it)'}"


@functools.cache
def kind_numbers(kinds: tuple[Kind, ...]) -> Tensor:
    numbers = [[DTYPES[dtype] for dtype in kind] for kind in kinds]
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def _program_values(program: Program | None) -> dict[str, int]:
    if program is None:
        return {"ops": 0, "lanes": 0, "aux": 0, "rows": 0}
    return {
        "ops": program.ops.data_ptr(),
        "lanes": program.lanes.data_ptr(),
        "aux": program.aux.data_ptr(),
        "rows": program.rows,
    }


def update_values(
    buffer: DeviceBuffer,
    table: ParamTable,
    program: Program | None,
    rule: int,
    advance: int,
    scale: Tensor | None,
    found_inf: Tensor | None,
) -> dict[str, int]:
    """The fields of UPDATE."""
    columns, groups = buffer.record.shape[1:]
    return {
        "addresses": table.addresses.data_ptr(),
        "info": table.info.data_ptr(),
        "offsets": buffer.offsets.data_ptr(),
        "recurrences": buffer.recurrences.data_ptr(),
        "record": buffer.record.data_ptr(),
        "clock": buffer.clock.data_ptr(),
        **_program_values(program),
        "scale": 0 if scale is None else scale.data_ptr(),
        "found_inf": 0 if found_inf is None else found_inf.data_ptr(),
        "kinds": kind_numbers(table.kinds).data_ptr(),
        "ends": table.ends.data_ptr(),
        "slots": table.addresses.shape[0],
        "tensors": len(table.rows),
        "params": buffer.offsets.numel(),
        "columns": columns,
        "groups": groups,
        "rule": rule,
        "advance": advance,
    }


def advance_values(
    buffer: DeviceBuffer, program: Program, steps: int, metric: Tensor | None, trace: Tensor | None
) -> dict[str, int]:
    """The fields of ADVANCE."""
    columns, groups = buffer.record.shape[1:]
    return {
        "record": buffer.record.data_ptr(),
        "clock": buffer.clock.data_ptr(),
        **_program_values(program),
        "trace": 0 if trace is None else trace.data_ptr(),
        "metric": 0 if metric is None else metric.data_ptr(),
        "columns": columns,
        "groups": groups,
        "steps": steps,
    }


@dataclass(frozen=True)
class LaunchSnapshot:
    """What a full step has found; a cached launch looks whether it still holds.

    Attributes:
        params: every param of the optimizer, in the groups' order.
        reached: numbers of those that a step has reached; a gradient of another needs a full step.
        forced: where the engine asked for is noted.
        limit: launches after which the full step must look again; None for no limit.
        advance: how the launches advance the fused schedules, where no calls govern them.
        cadence: the words of runtime/cadence.py where calls govern; None else.
        device_state: attributes of the DeviceState; ``_last_stream`` is the stream of the last work
            on a GPU.
    """

    optimizer: Any
    params: Sequence[Tensor]
    reached: Container[int]
    forced: dict[None, str | None]
    limit: int | None
    advance: int
    cadence: array[int] | None
    device_state: dict[str, Any]


def make_cached_launch(
    module: Any,
    fields: bytes,
    number: int | None,
    buffer: DeviceBuffer,
    table: ParamTable,
    snapshot: LaunchSnapshot,
    triton: tuple[tuple[Any, ...], tuple[Any, ...]] | None = None,
) -> Any:
    """A CachedLaunch of csrc/cached_launch.cpp: the next launches, as long as nothing changes.

    Args:
        module: the compiled library.
        fields: UPDATE or CUDA_UPDATE, packed; TRITON_LAUNCH and parameters.
        number: of the GPU, None for the CPU.
        triton: its hooks, and what owns what the parameters point at, of a TritonStep.
    """
    columns = {row.index: column for column, row in enumerate(table.rows)}
    facts = array("q")
    for index in range(len(snapshot.params)):
        column = columns.get(index, -1)
        dtype = table.rows[column].grad_dtype if column >= 0 else torch.float32
        facts.extend((column, index in snapshot.reached, *DLPACK_DTYPES[dtype]))
    hooks, owners = ((), ()) if triton is None else ((triton[0],), triton[1])
    make = module.CachedLaunch if triton is None else module.TritonStep
    return make(
        fields,
        None if number is None else snapshot.device_state,
        (DLPACK_DEVICES[buffer.device.type], number or 0),
        snapshot.optimizer.param_groups,
        tuple(snapshot.params),
        facts.tobytes(),
        snapshot.optimizer._optimizer_step_pre_hooks,
        snapshot.optimizer._optimizer_step_post_hooks,
        snapshot.forced,
        0 if snapshot.cadence is None else snapshot.cadence.buffer_info()[0],
        (buffer, table, snapshot.cadence, kind_numbers(table.kinds), *owners),
        snapshot.limit,
        *hooks,
    )
