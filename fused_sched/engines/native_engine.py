"""The native engine: the compiled code of ``csrc/``, for CPU tensors."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from array import array
from collections.abc import Container, Sequence
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from . import native_build

if TYPE_CHECKING:
    from fused_sched.tables.block import Block, Program
    from fused_sched.tables.params import Kind, ParamTable

NAME = "native"

_RULES = {"sgd": 0, "adam": 1}
"""By the numbers of Rule in csrc/layout.h."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""In the order of DType in csrc/layout.h."""


@functools.cache
def _load() -> Any:
    """The compiled module, or the reason why there is none."""
    try:
        module = _module(native_build.library())
    except (OSError, ImportError, native_build.BuildError) as error:
        return str(error)
    try:
        module.use_threads(*_thread_functions())
        module.set_up_lean(*_lean_needs())
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


def _thread_functions() -> tuple[int, int]:
    """Addresses of libtorch's parallel_for and thread count, of its C interface."""
    folder = Path(torch.__file__).parent / "lib"
    torch_cpu = ctypes.CDLL(str(next(folder.glob("libtorch_cpu.*"))))
    functions = torch_cpu.torch_parallel_for, torch_cpu.torch_get_num_threads
    run, count = (ctypes.cast(function, ctypes.c_void_p).value for function in functions)
    assert run is not None and count is not None
    return run, count


def _lean_needs() -> tuple[Any, ...]:
    exchange = torch.Tensor.__dlpack_c_exchange_api__  # type: ignore[attr-defined]
    return (
        exchange,
        torch._C.TensorBase,
        Tensor,
        torch.autograd.profiler.__dict__,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )


def unavailable(device: torch.device) -> str | None:
    """Why this engine cannot serve a device, or None. Compiles the library at its first call."""
    if device.type != "cpu":
        return f"it serves CPU tensors, not {device.type}"
    module = _load()
    return module if isinstance(module, str) else None


def isa() -> str:
    """The instruction set in use: ``avx512bf16``, ``avx512``, ``avx2`` or ``baseline``."""
    return _load().isa()


@functools.cache
def _kinds(kinds: tuple[Kind, ...]) -> Tensor:
    return torch.tensor([[_DTYPES.index(dtype) for dtype in kind] for kind in kinds])


def _program_fields(program: Program | None) -> list[int]:
    if program is None:
        return [0, 0, 0]
    return [program.ops.data_ptr(), program.lanes.data_ptr(), program.aux.data_ptr()]


def _update_fields(
    block: Block,
    table: ParamTable,
    program: Program | None,
    rule: str,
    scale: Tensor | None,
    found_inf: Tensor | None,
) -> bytes:
    """UpdateArgs of csrc/cpu.h."""
    columns, groups = block.record.shape[1:]
    fields = [
        table.addresses.data_ptr(),
        table.info.data_ptr(),
        block.offsets.data_ptr(),
        block.record.data_ptr(),
        block.clock.data_ptr(),
        *_program_fields(program),
        *(0 if scalar is None else scalar.data_ptr() for scalar in (scale, found_inf)),
        _kinds(table.kinds).data_ptr(),
        table.ends.data_ptr(),
        0 if program is None else program.rows,
        len(table.members),
        columns,
        groups,
        _RULES[rule],
    ]
    return array("q", fields).tobytes()


def _advance_fields(
    block: Block, program: Program, steps: int, metric: Tensor | None, trace: Tensor | None
) -> bytes:
    """AdvanceArgs of csrc/cpu.h."""
    columns, groups = block.record.shape[1:]
    fields = [
        block.record.data_ptr(),
        block.clock.data_ptr(),
        *_program_fields(program),
        0 if trace is None else trace.data_ptr(),
        0 if metric is None else metric.data_ptr(),
        program.rows,
        columns,
        groups,
        steps,
    ]
    return array("q", fields).tobytes()


_DLPACK = {torch.float32: (2, 32), torch.bfloat16: (4, 16), torch.float16: (2, 16)}
_DLPACK[torch.float64] = (2, 64)
"""(code, bits) of DLPack's data types."""


def lean_step(
    block: Block,
    table: ParamTable,
    program: Program | None,
    rule: str,
    optimizer: Any,
    params: Sequence[Tensor],
    reached: Container[int],
    forced: dict[None, str | None],
    limit: int | None,
) -> Any:
    """A LeanStep of csrc/lean.cpp: the next launches, as long as nothing changes.

    Args:
        params: every param of the optimizer, in the groups' order.
        reached: numbers of those that a step has reached; a gradient of another needs a whole step.
        forced: where the engine asked for is noted.
        limit: launches after which the whole step must look again; None for no limit.
    """
    columns = {member.index: column for column, member in enumerate(table.members)}
    facts = array("q")
    for index in range(len(params)):
        column = columns.get(index, -1)
        dtype = table.members[column].grad_dtype if column >= 0 else torch.float32
        facts.extend((column, index in reached, *_DLPACK[dtype]))
    return _load().LeanStep(
        _update_fields(block, table, program, rule, None, None),
        optimizer.param_groups,
        tuple(params),
        facts.tobytes(),
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        forced,
        (block, table, _kinds(table.kinds)),
        limit,
    )


def lean_schedule(block: Block, program: Program, limit: int | None) -> Any:
    """A LeanSchedule of csrc/lean.cpp: the next advances of an explicit schedule."""
    fields = _advance_fields(block, program, 1, None, None)
    return _load().LeanSchedule(fields, (block, program), limit)


def update(
    block: Block,
    table: ParamTable,
    grads: Sequence[int],
    program: Program | None,
    rule: str,
    scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One optimizer step, and one schedule step of ``program``, in one call."""
    table.send_addresses(grads)
    _load().update(_update_fields(block, table, program, rule, scale, found_inf))


def load(block: Block, table: ParamTable, program: Program | None, rule: str) -> None:
    """Nothing to load: the library holds every variant."""


def advance(
    block: Block,
    program: Program,
    steps: int = 1,
    metric: Tensor | None = None,
    trace: Tensor | None = None,
) -> None:
    """Advance a program alone: explicit mode. Arguments as for the Triton engine."""
    _load().advance(_advance_fields(block, program, steps, metric, trace))
