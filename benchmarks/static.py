"""What the compiled kernels hold to, read from PTX and machine code; needs Triton, no GPU.

``python -m benchmarks.static`` prints one row per variant and architecture; ``--json`` prints the
figures for ``tests/test_static.py``. Registers and stack are ptxas's own for the whole kernel,
schedule program included; the widths of the global accesses are those of a kernel with the update
path alone, which every program but one runs.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "0"  # before the import: decides what @triton.jit makes

import argparse
import ast
import json
import re
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fused_sched import kernels
from fused_sched.kernels.schedule import schedule_kernel
from fused_sched.kernels.update import _update_tensor, launch_options, update_kernel
from fused_sched.tables import layout

ARCHITECTURES = (80, 90, 100)
AMD = "gfx942"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

F32, BF16, F16, F64 = tl.float32, tl.bfloat16, tl.float16, tl.float64
KINDS = {
    "float32": ((F32, F32, F32),),
    "bfloat16": ((BF16, BF16, BF16),),
    "float16": ((F16, F16, F16),),
    "bfloat16 + float32 states": ((BF16, BF16, F32),),
    "mixed": ((F32, F32, F32), (BF16, BF16, BF16), (F16, F16, F16)),
    "float64": ((F64, F64, F64),),
}
"""(param, grad, state) types by name."""


@dataclass(frozen=True)
class Variant:
    """One compiled form of the update kernel."""

    rule: str
    states: int
    kinds: str
    scaler: bool = False

    def constants(self) -> dict[str, Any]:
        return {
            "RULE": self.rule,
            "KINDS": KINDS[self.kinds],
            "STATES": self.states,
            "SCALER": self.scaler,
            "UNSCALE": self.scaler,
            "ITERATIONS": layout.ITERATIONS,
        }


QUICK = [
    Variant("sgd", 1, "float32"),
    Variant("adam", 2, "float32", scaler=True),
    Variant("adam", 2, "bfloat16 + float32 states"),
    Variant("adam", 2, "mixed"),
    Variant("adam", 3, "float32"),
    Variant("adam", 2, "float64"),
]
"""Those that are nearest to a limit."""

VARIANTS = [
    *QUICK,
    Variant("sgd", 0, "float32"),
    Variant("sgd", 1, "bfloat16"),
    Variant("sgd", 1, "mixed"),
    Variant("sgd", 1, "float64"),
    Variant("adam", 2, "float32"),
    Variant("adam", 2, "bfloat16"),
    Variant("adam", 2, "float16"),
    Variant("adam", 2, "mixed", scaler=True),
    Variant("adam", 3, "mixed"),
]


@dataclass
class Figures:
    """What one variant costs on one architecture."""

    variant: str
    kinds: str
    target: str
    registers: int
    stack: int
    loads: dict[str, int]
    stores: dict[str, int]
    float64_transcendentals: int


@triton.jit
def update_path_kernel(
    addresses_ptr, info_ptr, chunks_ptr, offsets_ptr, record_ptr, clock_ptr, scale_ptr,
    num_tensors, num_columns, G,
    RULE: tl.constexpr, KINDS: tl.constexpr, STATES: tl.constexpr, SCALER: tl.constexpr,
    UNSCALE: tl.constexpr, ITERATIONS: tl.constexpr,
):  # fmt: skip
    """``update_kernel`` without the schedule and the ticket."""
    pid = tl.program_id(0)
    _update_tensor(
        tl.load(chunks_ptr + pid), pid, addresses_ptr, info_ptr, offsets_ptr, record_ptr,
        tl.load(clock_ptr), scale_ptr, num_tensors, num_columns, G, RULE, KINDS, STATES, UNSCALE,
        ITERATIONS,
    )  # fmt: skip


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


def compiled(kernel: Any, constants: dict[str, Any], target: GPUTarget) -> Any:
    """Triton's compiled kernel for a target, with the options of a launch."""
    options = launch_options(constants["KINDS"]) if constants else {"num_warps": 4}
    return triton.compile(_source(kernel, constants), target=target, options=options)


def _cuobjdump(kernel: Any, flag: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(TOOLS / "cuobjdump"), flag, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _usage(kernel: Any) -> tuple[int, int]:
    """(registers, bytes of stack and local memory) a thread."""
    text = _cuobjdump(kernel, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found, text
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def _widths(ptx: str, instruction: str) -> dict[str, int]:
    """How often each width in bits occurs among the vector accesses ("ld", "st") to global memory.

    Only the update's arrays are accessed by vectors: in PTX a table's 64-bit address is one b64,
    four bfloat16 are a v2.b32. What has each element under its own mask is scalar and not counted.
    """
    vectors = re.findall(rf"\b{instruction}\.global[.\w]*\.v(\d)\.b(\d+)", ptx)
    return dict(Counter(str(int(count) * int(bits)) for count, bits in vectors))


def _transcendentals(ttir: str) -> int:
    """exp, log, cos, ... of float64 in the update path."""
    return len(re.findall(r"math\.(?:exp2?|log2?|cos|sin|powf)\b[^\n]*f64", ttir))


def figures(variant: Variant, arch: int) -> Figures:
    """Compile a variant for one NVIDIA architecture and read its figures."""
    target = GPUTarget("cuda", arch, 32)
    path = compiled(update_path_kernel, variant.constants(), target)
    registers, stack = _usage(compiled(update_kernel, variant.constants(), target))
    scaler = ", scaler" if variant.scaler else ""
    return Figures(
        f"{variant.rule}, {variant.states} states{scaler}",
        variant.kinds,
        f"sm_{arch}",
        registers,
        stack,
        _widths(path.asm["ptx"], "ld"),
        _widths(path.asm["ptx"], "st"),
        _transcendentals(path.asm["ttir"]),
    )


def schedule_figures(arch: int) -> Figures:
    """The same for the kernel that advances a schedule alone."""
    kernel = compiled(schedule_kernel, {}, GPUTarget("cuda", arch, 32))
    return Figures("schedule", "float64", f"sm_{arch}", *_usage(kernel), {}, {}, 0)


def amd_compiles(variants: list[Variant]) -> list[str]:
    """Variants that compile for gfx942; nothing is claimed about how they run."""
    target = GPUTarget("hip", AMD, 64)
    chosen = [v for v in variants if v.kinds in ("float32", "mixed", "float64")]
    return [v.rule for v in chosen if _amd_binary(v, target)]


def _amd_binary(variant: Variant, target: GPUTarget) -> bool:
    # The register limit is an option of NVIDIA's backend alone.
    source = _source(update_kernel, variant.constants())
    kernel = triton.compile(source, target=target, options={"num_warps": 4})
    return bool(kernel.asm.get("hsaco"))


def reloads() -> list[str]:
    """Rule 5 of Note [One launch]: a load of what the same function has stored, without a barrier.

    Triton stores a scalar from one thread and loads it in all, with nothing between. Compared are
    the address expressions of ``tl.store`` and ``tl.load`` as they are written, in the order of a
    function's source: an alias under another name is not seen.
    """
    found = []
    for file in sorted(Path(kernels.__path__[0]).glob("*.py")):
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                found += [f"{file.name}:{line}" for line in _reloads_in(function)]
    return found


def _reloads_in(function: ast.FunctionDef) -> list[int]:
    calls = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    stored: set[str] = set()
    lines = []
    for call in sorted(calls, key=lambda node: (node.end_lineno, node.end_col_offset)):
        name = call.func.attr  # type: ignore[attr-defined]
        if name == "debug_barrier":
            stored.clear()
        elif any(keyword.arg == "mask" for keyword in call.keywords):
            continue
        elif name == "store":
            stored.add(ast.unparse(call.args[0]))
        elif name == "load" and ast.unparse(call.args[0]) in stored:
            lines.append(call.lineno)
    return lines


def _row(figure: Figures) -> str:
    def widths(counts: dict[str, int]) -> str:
        return " ".join(f"{bits}b x {counts[bits]}" for bits in sorted(counts, key=int)[::-1])

    cells = (
        figure.variant,
        figure.kinds,
        figure.target,
        str(figure.registers),
        str(figure.stack),
        widths(figure.loads),
        widths(figure.stores),
        str(figure.float64_transcendentals),
    )
    return "| " + " | ".join(cells) + " |"


_HEADER = (
    "| kernel | types | target | registers | stack | vector loads | vector stores | f64 exp |\n"
    "|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Compile everything and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="only the variants nearest to limits")
    arguments = parser.parse_args()
    variants = QUICK if arguments.quick else VARIANTS
    jobs = [(variant, arch) for arch in ARCHITECTURES for variant in variants]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(figures, *zip(*jobs, strict=True)))
        rows += pool.map(schedule_figures, ARCHITECTURES)
    rest = {"amd": amd_compiles(variants), "reloads": reloads()}
    if arguments.json:
        print(json.dumps({"figures": [asdict(row) for row in rows], **rest}))
        return
    print(_HEADER)
    for row in rows:
        print(_row(row))
    print(f"\n{AMD}: {len(rest['amd'])} variants compile (not run anywhere)")
    print(f"scalars stored and loaded in one program: {', '.join(rest['reloads']) or 'none'}")


if __name__ == "__main__":
    main()
