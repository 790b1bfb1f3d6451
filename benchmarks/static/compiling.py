"""The update kernel compiled for a target, in each of its forms. Needs Triton, no GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.static.machine_code import Instruction, parse_amdgcn, parse_sass
from benchmarks.static.targets import Target
from benchmarks.static.variants import KINDS, Variant, tuning_of
from fused_sched import optim
from fused_sched.kernels.rules import bind
from fused_sched.kernels.schedule import LAUNCH_OPTIONS, schedule_kernel
from fused_sched.kernels.update import launch_options, update_kernel
from fused_sched.tables import layout

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

TYPES = {
    "float32": tl.float32,
    "bfloat16": tl.bfloat16,
    "float16": tl.float16,
    "float64": tl.float64,
}


def constants_of(variant: Variant, target: Target) -> dict[str, Any]:
    """The constexpr arguments of ``update_kernel``."""
    rule = bind(getattr(optim, variant.rule)._rule)
    return {
        "COEFFICIENTS": rule.coefficients,
        "RULE": rule.rule,
        "REQUIRED": rule.required,
        "RECURRENCES": rule.recurrences,
        "OF_GROUP": rule.of_group,
        "KINDS": tuple(tuple(TYPES[name] for name in kind) for kind in KINDS[variant.kinds]),
        "STATES": variant.states,
        "SCALER": variant.scaler,
        "UNSCALE": variant.scaler,
        "VECTORS": tuning_of(variant, target.capability).vectors,
        "ORDER": layout.TICKET_ORDER,
    }


_POINTERS = {
    "addresses_ptr": "*i64",
    "info_ptr": "*i64",
    "chunks_ptr": "*i32",
    "offsets_ptr": "*i64",
    "clock_ptr": "*i64",
    "ops_ptr": "*i64",
    "scale_ptr": "*fp32",
    "found_inf_ptr": "*fp32",
}


def _source(kernel: Any, constants: dict[str, Any]) -> ASTSource:
    """A kernel's source with the types that the engine passes; every pointer is aligned."""
    signature = {}
    for name in kernel.arg_names:
        default = "*fp64" if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else _POINTERS.get(name, default)
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name.endswith("_ptr")
    }
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)


def compiled(variant: Variant | None, target: Target) -> Any:
    """Triton's compiled kernel, with the options of a launch; without a variant the schedule's."""
    kernel = schedule_kernel if variant is None else update_kernel
    constants = {} if variant is None else constants_of(variant, target)
    options: dict[str, Any] = {"num_warps": layout.WARPS} | LAUNCH_OPTIONS
    if variant is not None and target.backend == "cuda":
        options = launch_options(
            tuning_of(variant, target.capability)
        )  # the limit of registers is NVIDIA's alone
    where = GPUTarget(target.backend, target.arch, target.lanes)
    return triton.compile(_source(kernel, constants), target=where, options=options)


@dataclass(frozen=True)
class Binary:
    """What a compiled kernel takes of each lane, and its instructions.

    Args:
        registers: of a lane; on AMD vector registers.
        local: bytes of stack, spills and local memory.
    """

    registers: int
    local: int
    instructions: list[Instruction]


def binary(kernel: Any, target: Target) -> Binary:
    """Read a compiled kernel: ptxas's own figures, or those of LLVM."""
    if target.backend == "hip":
        text = kernel.asm["amdgcn"]
        registers, local = (
            int(re.search(rf"\.{name}:\s+(\d+)", text)[1])  # type: ignore[index]
            for name in ("vgpr_count", "private_segment_fixed_size")
        )
        return Binary(registers, local, parse_amdgcn(text))
    usage = _cuobjdump(kernel, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found, usage
    registers, stack, local = map(int, found.groups())
    return Binary(registers, stack + local, parse_sass(_cuobjdump(kernel, "-sass")))


def _cuobjdump(kernel: Any, flag: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(TOOLS / "cuobjdump"), flag, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
