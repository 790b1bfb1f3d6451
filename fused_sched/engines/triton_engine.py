"""The Triton engine: CUDA tensors, and CPU tensors under the interpreter."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_sched.rules.tuning import Tuning, tuning_bits
from fused_sched.tables import layout

from .native_library import LaunchSnapshot
from .triton_cached import cached_call, can_cache, make_triton_step

if TYPE_CHECKING:
    from fused_sched.rules.rule import Rule
    from fused_sched.tables.device_buffer import DeviceBuffer, Program
    from fused_sched.tables.param_row import Kind
    from fused_sched.tables.params import ParamTable

__all__ = ["cached_call", "can_cache"]  # beside what is defined here

NAME = "triton"

KERNEL_BY_SCALING = True
"""Whether a step with a GradScaler is another kernel than one without."""


@functools.cache
def _interpreting() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


@functools.cache
def _missing() -> str | None:
    """What the machine lacks for Triton, whatever the device."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    if _interpreting():
        return None
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        return "triton needs a C compiler at its first use and found none (gcc, clang or CC)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        return f"triton needs the Python headers at its first use; {header.name} is not installed"
    return None


def unavailable(device: torch.device) -> str | None:
    """Why this engine cannot serve a device, or None."""
    missing = _missing()
    if missing is not None:
        return missing
    if device.type == "cpu" and not _interpreting():
        return (
            "it serves CUDA tensors (CPU tensors only in Triton's interpreter, which is for tests)"
        )
    if device.type not in ("cpu", "cuda"):
        return f"it serves CUDA tensors, not {device.type}"
    if device.type == "cuda" and _interpreting():
        return "TRITON_INTERPRET is set; unset it to use the GPU"
    if device.type == "cuda" and not (torch.cuda.is_initialized() or torch.cuda.is_available()):
        return "torch sees no GPU"
    return None


def lacks(rule: Rule, device: torch.device) -> str | None:
    """Why this engine cannot run a rule, or None: it compiles any."""
    return None


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@functools.cache
def _kinds(kinds: tuple[Kind, ...]) -> tuple[tuple[Any, ...], ...]:
    """The kinds as Triton's types."""
    import triton.language as tl

    types = {
        torch.float32: tl.float32,
        torch.float64: tl.float64,
        torch.bfloat16: tl.bfloat16,
        torch.float16: tl.float16,
    }
    return tuple(tuple(types[dtype] for dtype in kind) for kind in kinds)


Job = tuple[Any, Any, Sequence[Any], dict[str, Any]]
"""Kernel, key, arguments and options, as ``_launch`` takes them."""

_compiled: dict[Any, Any] = {}


def _launch(kernel: Any, key: Any, grid: int, args: Sequence[Any], options: dict[str, Any]) -> None:
    """Start a kernel, through its compiled handle once there is one.

    ``JITFunction.run`` binds and hashes every argument at each call; the handle takes a quarter of
    the time. Every pointer of a launch is 16-byte aligned, so one handle serves all calls.
    """
    if _interpreting():
        kernel[(grid,)](*args)
        return
    _handle(kernel, key, args, options)[(grid, 1, 1)](*args)


def _handle(kernel: Any, key: Any, args: Sequence[Any], options: dict[str, Any]) -> Any:
    if key not in _compiled:
        _compile([(kernel, key, args, options)])
    return _compiled[key]


def _compile(jobs: Iterable[Job]) -> None:
    """Compile and load what is not there yet, several kernels at once."""
    import triton

    new = [job for job in jobs if job[1] not in _compiled]
    if not new:
        return
    with ThreadPoolExecutor(len(new)) as pool, triton.AsyncCompileMode(pool):
        started = [kernel.warmup(*args, grid=(1, 1, 1), **opts) for kernel, _, args, opts in new]
    for (_, key, _, _), one in zip(new, started, strict=True):
        handle = one.result() if isinstance(one, triton.FutureKernel) else one
        handle._init_handles()
        _compiled[key] = handle


def _tuning(table: ParamTable, rule: Rule) -> Tuning:
    bits = tuning_bits([[8 * dtype.itemsize for dtype in kind] for kind in table.kinds])
    return rule.tuning(bits, _capability(table.device))


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def _update_args(
    buffer: DeviceBuffer,
    table: ParamTable,
    program: Program | None,
    advance: int,
    scale: Tensor | None,
    found_inf: Tensor | None,
) -> list[Any]:
    columns, groups = buffer.record.shape[1:]
    unused = buffer.record
    return [
        table.addresses,
        table.info,
        table.chunks,
        buffer.offsets,
        buffer.recurrences if buffer.recurrences.numel() else unused,
        buffer.record,
        buffer.clock,
        buffer.clock if program is None else program.ops,
        unused if program is None else program.lanes,
        unused if program is None else program.aux,
        unused.view(torch.float32) if scale is None else scale,
        unused.view(torch.float32) if found_inf is None else found_inf,
        table.chunk_size,
        0 if program is None else program.rows,
        advance,
        table.addresses.shape[1],
        buffer.offsets.numel(),
        columns,
        groups,
    ]


def _update_job(
    buffer: DeviceBuffer,
    table: ParamTable,
    program: Program | None,
    rule: Rule,
    advance: int,
    scale: Tensor | None,
    found_inf: Tensor | None,
) -> Job:
    from fused_sched.kernels.rules import bind
    from fused_sched.kernels.update import launch_options, update_kernel

    tuning = _tuning(table, rule)
    constants = [
        *bind(rule),
        _kinds(table.kinds),
        table.state_slots,
        found_inf is not None,
        scale is not None,
        tuning.vectors,
        layout.TICKET_ORDER,
    ]
    args = _update_args(buffer, table, program, advance, scale, found_inf) + constants
    return update_kernel, (buffer.device, tuning, *constants), args, launch_options(tuning)


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
    """One optimizer step, and the schedule step of ``program``, in one launch.

    Args:
        advance: STAY, CALLED or COUNTED of ``tables/layout.py``.
    """
    table.send_addresses(grads)
    kernel, key, args, options = _update_job(
        buffer, table, program, rule, advance, scale, found_inf
    )
    with _on(buffer.device):
        _launch(kernel, key, table.programs, args, options)


def cached_launch(
    buffer: DeviceBuffer,
    table: ParamTable,
    program: Program | None,
    rule: Rule,
    snapshot: LaunchSnapshot,
) -> Any:
    """What makes the next launches as long as nothing changes; None where nothing can."""
    _, key, args, _ = _update_job(buffer, table, program, rule, snapshot.advance, None, None)
    handle = _compiled.get(key)
    return None if handle is None else make_triton_step(buffer, table, handle, args, snapshot)


def load(
    buffer: DeviceBuffer,
    table: ParamTable,
    program: Program | None,
    rule: Rule,
    scalings: Iterable[layout.Scaling],
) -> None:
    """Compile and load what ``update`` needs with these scalings; under capture it would fail."""
    if _interpreting():
        return
    from fused_sched.kernels.schedule import LAUNCH_OPTIONS, schedule_kernel

    one = torch.ones(1, device=buffer.device)
    jobs = []
    for unscales, skips in scalings:
        scale, found_inf = one if unscales else None, one if skips else None
        jobs.append(_update_job(buffer, table, program, rule, layout.STAY, scale, found_inf))
    # Also while no scheduler is explicit: one that comes later may be captured first.
    args = _advance_args(buffer, buffer.programs[0], 1, None, None)
    jobs.append((schedule_kernel, ("schedule", buffer.device), args, LAUNCH_OPTIONS))
    with _on(buffer.device):
        _compile(jobs)


def _advance_args(
    buffer: DeviceBuffer, program: Program, steps: int, metric: Tensor | None, trace: Tensor | None
) -> list[Any]:
    columns, groups = buffer.record.shape[1:]
    return [
        program.ops,
        program.lanes,
        program.aux,
        buffer.record,
        buffer.clock,
        buffer.record if metric is None else metric,
        buffer.record if trace is None else trace,
        program.rows,
        columns,
        steps,
        int(trace is not None),
        groups,
    ]


def advance(
    buffer: DeviceBuffer,
    program: Program,
    steps: int = 1,
    metric: Tensor | None = None,
    trace: Tensor | None = None,
) -> None:
    """Advance a program by a launch of its own: explicit mode.

    Args:
        steps: how many times.
        metric: float64 ``[1]``, for ReduceLROnPlateau.
        trace: float64 ``[steps, columns, groups]``, filled with the record after each advance.
    """
    from fused_sched.kernels.schedule import LAUNCH_OPTIONS, schedule_kernel

    args = _advance_args(buffer, program, steps, metric, trace)
    with _on(buffer.device):
        _launch(schedule_kernel, ("schedule", buffer.device), 1, args, LAUNCH_OPTIONS)
