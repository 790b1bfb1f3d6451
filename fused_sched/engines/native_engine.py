"""The native engine: the compiled code of ``csrc/``, for CPU and CUDA tensors."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_sched.tables import layout

from . import native_cuda
from .native_first import FirstRow, make_first_step
from .native_library import LaunchSnapshot, advance_values, make_cached_launch, update_values
from .native_library import load as load_library
from .native_rules import cpu_rule, cuda_rule
from .native_structs import ADVANCE, UPDATE

if TYPE_CHECKING:
    from fused_sched.rules.rule import Rule
    from fused_sched.tables.device_buffer import DeviceBuffer, Program
    from fused_sched.tables.params import ParamTable

NAME = "native"

KERNEL_BY_SCALING = False


def unavailable(device: torch.device) -> str | None:
    """Why this engine cannot serve a device, or None. Compiles the library at its first call."""
    kind = device.type
    if kind == "cuda":
        return native_cuda.unavailable(device)
    if kind != "cpu":
        return f"it serves CPU and CUDA tensors, not {kind}"
    library = load_library()
    return library if isinstance(library, str) else None


def can_cache(buffer: DeviceBuffer, table: ParamTable) -> bool:
    """Whether ``cached_launch`` and ``cached_call`` can serve these tables."""
    return buffer.device.type == "cpu" or native_cuda.can_cache(buffer, table)


def lacks(rule: Rule, device: torch.device) -> str | None:
    """Why this engine cannot run a rule, or None. Compiles a user's rule when first asked."""
    code = cuda_rule(rule) if device.type == "cuda" else cpu_rule(rule)
    return code if isinstance(code, str) else None


def _code(rule: Rule) -> int:
    code = cpu_rule(rule)
    assert isinstance(code, int), code  # else the eager engine would have been chosen
    return code


def cached_launch(
    buffer: DeviceBuffer,
    table: ParamTable,
    program: Program | None,
    rule: Rule,
    snapshot: LaunchSnapshot,
) -> Any:
    """What makes the next launches as long as nothing changes; None where nothing can."""
    if buffer.device.type == "cuda":
        return native_cuda.cached_launch(buffer, table, program, rule, snapshot)
    values = update_values(buffer, table, program, _code(rule), snapshot.advance, None, None)
    return make_cached_launch(load_library(), UPDATE.pack(values), None, buffer, table, snapshot)


def first_step(
    optimizer: Any,
    params: Sequence[Tensor],
    rows: Sequence[FirstRow],
    values: Sequence[Sequence[float]],
    rule: Rule,
    forced: dict[None, str | None],
) -> Any:
    """A cached launch for params on the CPU that no full step has come before.

    Args:
        params: every param of the optimizer, in the groups' order.
        rows: those that have a gradient.
        values: each group's, by column.
        forced: where the engine asked for is noted.
    """
    return make_first_step(
        load_library(), optimizer, params, rows, values, rule, _code(rule), forced
    )


def advancer(buffer: DeviceBuffer, program: Program) -> Callable[[int], None]:
    """``advance`` of one program of a CPU buffer, prepared for many calls: takes the steps."""
    fields = array("q", ADVANCE.pack(advance_values(buffer, program, 0, None, None)))
    place = ADVANCE.names.index("steps")
    run = load_library().advance

    def advance_by(steps: int) -> None:
        fields[place] = steps
        run(fields.tobytes())

    return advance_by


def cached_call(words: array[int], number: int, optimizer: Any) -> Any:
    """A CachedCall of csrc/cached_call.cpp: the next calls of fused scheduler ``number``."""
    groups = tuple(optimizer.param_groups)
    return load_library().CachedCall(
        words.buffer_info()[0], number, optimizer.__dict__, groups, words
    )


def cached_schedule(
    buffer: DeviceBuffer, program: Program, optimizer: Any, limit: int | None
) -> Any:
    """A CachedSchedule of csrc/cached_schedule.cpp: the next advances of an explicit schedule."""
    fields = ADVANCE.pack(advance_values(buffer, program, 1, None, None))
    groups = optimizer.param_groups
    return load_library().CachedSchedule(
        fields, optimizer.__dict__, groups, tuple(groups), (buffer, program), limit
    )


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
    """One optimizer step, and the schedule step of ``program``, in one call.

    Args:
        advance: STAY, CALLED or COUNTED of ``tables/layout.py``.
    """
    if buffer.device.type == "cuda":
        native_cuda.update(buffer, table, grads, program, rule, advance, scale, found_inf)
        return
    table.send_addresses(grads)
    values = update_values(buffer, table, program, _code(rule), advance, scale, found_inf)
    load_library().update(UPDATE.pack(values))


def load(
    buffer: DeviceBuffer,
    table: ParamTable,
    program: Program | None,
    rule: Rule,
    scalings: Iterable[layout.Scaling],
) -> None:
    """Load every kernel of a GPU; on a CPU the library holds every variant."""
    if buffer.device.type == "cuda":
        native_cuda.load(buffer, table, program, rule, scalings)


def advance(
    buffer: DeviceBuffer,
    program: Program,
    steps: int = 1,
    metric: Tensor | None = None,
    trace: Tensor | None = None,
) -> None:
    """Advance a program by its own launch: explicit mode. Arguments as for the Triton engine."""
    if buffer.device.type == "cuda":
        native_cuda.advance(buffer, program, steps, metric, trace)
        return
    load_library().advance(ADVANCE.pack(advance_values(buffer, program, steps, metric, trace)))
