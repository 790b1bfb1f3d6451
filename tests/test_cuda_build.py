"""The compiled engine's CUDA half without a GPU: what nvcc makes of it, its kernels on a CPU.

``tests/cuda_on_host`` stands in for CUDA: a compiler and headers with which the same source runs
on CPU tensors, thread by thread.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from torch.nn import Parameter

import fused_sched
from benchmarks.static.machine_code import FLOAT64, Instruction, parse_sass, storing_loops
from fused_sched.engines import (
    engine_for,
    native_build,
    native_cuda,
    native_engine,
    native_library,
    native_sources,
    ninja,
)
from fused_sched.engines.native_structs import CUDA_UPDATE
from fused_sched.tables import layout
from fused_sched.tables.device_buffer import DeviceBuffer
from fused_sched.tables.param_row import ParamRow
from fused_sched.tables.params import ParamTable
from tests.cases import CHUNK
from tests.cuda_on_host import stand_in
from tests.cuda_on_host.stand_in import CSRC, QUICK
from tests.training import OURS, set_grads

ROOT = Path(__file__).resolve().parents[1]
ARCHS = ("sm_80", "sm_90", "sm_100")
REGISTERS = 64
FLOAT64_REGISTERS = 128
RESERVED_CONSTANTS = {"sm_80": 352, "sm_90": 528, "sm_100": 896}
"""Bytes of constant memory before a kernel's parameters, by the compiler's report."""
CPU_ADVANCE = native_engine.advance
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


# -- nvcc ----------------------------------------------------------------------------------------

USE = """
import torch, fused_sched
from fused_sched.engines import native_library
param = torch.nn.Parameter(torch.ones(3)); param.grad = torch.ones(3)
opt = fused_sched.optim.AdamW([param], lr=0.5)
with fused_sched.use_engine("native"):
    opt.step()
module = native_library.load()
try:
    module.cuda_load(0)
except RuntimeError as error:
    print("used", param.tolist()[0] < 1, module.cuda_archs(), error, sep="|")
"""


@pytest.fixture(scope="module")
def first_use(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A process that compiles the library with CUDA code at its first step, and the library."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    cache = tmp_path_factory.mktemp("cache")
    env = {**os.environ, **QUICK, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    env = {**env, "FUSED_SCHED_CUDA": "1", "TORCH_CUDA_ARCH_LIST": ""}
    done = subprocess.run([sys.executable, "-c", USE], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (library,) = cache.glob(f"fused_sched/*/{native_build.LIBRARY}")
    return done, library


def cuobjdump(library: Path, *options: str) -> str:
    found = shutil.which("cuobjdump")
    tool = found or Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool), *options, str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def by_kernel(dump: str) -> dict[tuple[str, str], str]:
    """(architecture, kernel) -> its part of a dump; as in ``("sm_90", "Adam 480")``."""
    found = {}
    for image in re.split(r"^arch = ", dump, flags=re.M)[1:]:
        arch = image.split()[0]
        for part in re.split(r"^\s*Function\s*:?\s*", image, flags=re.M)[1:]:
            match = re.match(r"\w*?(?:(Adam|SGD)RuleELb(\d)ELi(\d+)E|(advance_kernel))", part)
            assert match is not None, part[:200]
            rule, wide, count, other = match.groups()
            name = other or f"{rule} {'wide ' if wide == '1' else ''}{count}"
            found[arch, name] = part
    return found


KERNELS = {"Adam 480", "Adam 4000", "Adam wide 4000", "SGD 480", "SGD 4000", "SGD wide 4000"}
KERNELS |= {"advance_kernel"}


def test_one_library_serves_cpu_tensors_without_a_driver(first_use):
    done, _ = first_use
    assert done.stderr == "fused_sched: compiling the CUDA engine, once (up to a minute)\n"
    _, moved, archs, error = done.stdout.strip().split("|")
    assert (moved, archs) == ("True", "8.0 9.0 10.0")
    assert error.startswith("CUDA error: ") and "\n" not in error


def test_library_shows_nothing_of_cudas_runtime(first_use):
    """Else torch's CUDA runtime and ours would be mixed."""
    _, library = first_use
    command = ["nm", "--dynamic", str(library)]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "PyInit__native" in symbols
    assert [line for line in symbols.splitlines() if "cuda" in line.lower()] == []
    needed = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True)
    assert "cuda" not in needed.stdout


def test_kernels_keep_to_registers(first_use):
    _, library = first_use
    usage = by_kernel(cuobjdump(library, "-res-usage"))
    assert set(usage) == set(itertools.product(ARCHS, KERNELS))
    for kernel, part in usage.items():
        figures = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", part))
        narrow = kernel[1] != "advance_kernel" and "wide" not in kernel[1]
        assert int(figures["REG"]) <= (REGISTERS if narrow else FLOAT64_REGISTERS), kernel
        assert (figures["STACK"], figures["LOCAL"]) == ("0", "0"), kernel


OTHER_ARCHS = ["7.5", "12.0"]
"""The first and the last that CUDA 13 has; the tests above compile for others."""


def with_rules(folder: Path) -> Path:
    """A folder with the headers that are made from the rules."""
    native_sources.write(native_sources.generated(native_sources.built_in()), folder)
    return folder


def test_it_compiles_for_the_oldest_and_the_newest_gpus(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    target = tmp_path / "cuda.o"
    job = native_build._jobs(CSRC, with_rules(tmp_path), [], OTHER_ARCHS, "")["cuda"]
    ninja.run([*job.command, job.source, "-o", str(target)])
    kernels = by_kernel(cuobjdump(target, "-res-usage"))
    assert set(kernels) == set(itertools.product(("sm_75", "sm_120"), KERNELS))


OLD_PARTS = ("cuda_runtime/include", "cuda_nvcc/include", "cuda_nvcc/bin/ptxas")
"""Of the packages nvidia-cuda-runtime-cu12 and nvidia-cuda-nvcc-cu12, which lack nvcc itself."""


def test_it_compiles_with_cuda_12s_headers_and_assembler(tmp_path):
    """FUSED_SCHED_CUDA_12 is the folder `nvidia` that holds both packages, of CUDA 12.4."""
    folder = os.environ.get("FUSED_SCHED_CUDA_12")
    if shutil.which("nvcc") is None or folder is None:
        pytest.skip("needs nvcc, and FUSED_SCHED_CUDA_12 for the packages of CUDA 12.4")
    runtime, compiler, ptxas = (Path(folder) / part for part in OLD_PARTS)
    ptx, cubin = tmp_path / "cuda.ptx", tmp_path / "cuda.cubin"
    included = [f"-I{path}" for path in (runtime, compiler, CSRC, with_rules(tmp_path))]
    command = ["nvcc", "-std=c++17", *included, "-arch=compute_90", "-ptx"]
    subprocess.run([*command, f"{CSRC}/cuda.cu", "-o", str(ptx)], check=True)
    # nvcc 13 writes a version that CUDA 12.4 does not know; the instructions are older.
    text = re.sub(r"^\.version .*", ".version 8.4", ptx.read_text(encoding="utf-8"), flags=re.M)
    ptx.write_text(text, encoding="utf-8")
    assemble = [str(ptxas), "-arch=sm_90", "-v", str(ptx), "-o", str(cubin)]
    told = subprocess.run(assemble, check=True, capture_output=True, text=True).stderr
    assert told.count("Compiling entry function") == len(KERNELS)
    assert set(re.findall(r"(\d+) bytes spill", told)) == {"0"}


# -- its machine code ----------------------------------------------------------------------------

UPDATES = sorted(KERNELS - {"advance_kernel"})
STATES = {"Adam": 3, "SGD": 1}
PLACES = {"Adam": 1, "SGD": 2}
"""Where a thread's loads are in flight at a time, each of a pack of every array."""

BLOCKS, THREADS = 8, 128
IN_FLIGHT = 48 * 1024
"""Bytes a multiprocessor: below them a GPU of 3 TB/s and more waits for memory."""


@pytest.fixture(scope="module", params=ARCHS)
def machine_code(request, first_use) -> dict[str, list[Instruction]]:
    """The instructions of each kernel of an architecture."""
    _, library = first_use
    kernels = by_kernel(cuobjdump(library, "-sass", "-arch", request.param))
    return {name: parse_sass(part) for (_, name), part in kernels.items()}


def arrays(rule: str, kind: tuple[int, int, int]) -> list[int]:
    """Bytes of an element of each array; a kind is those of param, grad and state."""
    param, grad, state = kind
    return [param, grad, *[state] * STATES[rule]]


def whole(rule: str, kind: tuple[int, int, int]) -> Counter[str]:
    """{bits: accesses} of a loop whose arrays are aligned: the widest type takes 128 bits."""
    elements = 16 // max(kind)
    return Counter(str(8 * size * elements) for size in arrays(rule, kind) * PLACES[rule])


def pieces(rule: str, kind: tuple[int, int, int]) -> Counter[str]:
    """The same where some are not: an access of four elements, and four of one, for each array."""
    sizes = arrays(rule, kind) * PLACES[rule]
    return Counter(str(32 * size) for size in sizes) + Counter(str(8 * size) for size in sizes * 4)


@pytest.mark.parametrize("name", UPDATES)
def test_each_kind_has_loops_of_its_widest_accesses(machine_code, name):
    """Of its own, and no others: no kind is moved element by element but beside float64."""
    rule, wide = name.split()[0], "wide" in name
    kinds = list(itertools.product((2, 4), repeat=3))
    expected = [make(rule, kind) for make in (whole, pieces) for kind in kinds]
    found = [loop for loop in storing_loops(machine_code[name]) if not loop.float64]
    assert sorted(sorted(c.items()) for c in expected) == sorted(
        sorted(loop.loads.items()) for loop in found
    )
    assert all(set(loop.loads) == set(loop.stores) for loop in found)
    mixed = [loop for loop in storing_loops(machine_code[name]) if set(loop.stores) > {"16", "32"}]
    assert len([loop for loop in mixed if loop.float64]) == (2 if wide else 0)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("rule", STATES)
def test_enough_bytes_are_in_flight(rule, size):
    """By the accesses above and the registers of the test before; a missing state has none."""
    accesses = whole(rule, (size, size, size))
    assert set(accesses) == {"128"}
    present = accesses["128"] - PLACES[rule]
    assert present * 16 * THREADS * BLOCKS >= IN_FLIGHT


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_no_fence_and_no_local_memory(machine_code, name):
    code = {one.opcode.split(".")[0] for one in machine_code[name]}
    # LD, ST: accesses to where the compiler does not know.
    assert not code & {"MEMBAR", "CCTL", "ERRBAR", "LDL", "STL", "LD", "ST"}


@pytest.mark.parametrize("name", UPDATES)
def test_first_loads_of_data_start_before_the_coefficients(machine_code, name):
    opcodes = [one.opcode for one in machine_code[name]]
    after = opcodes[[op.startswith("BAR") for op in opcodes].index(True) :]
    data = next(i for i, op in enumerate(after) if op.startswith("LDG.E.128"))
    coefficients = next(i for i, op in enumerate(after) if FLOAT64.match(op))
    assert data < coefficients


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_rows_of_a_schedule_come_in_one_load(machine_code, name):
    """128 threads, 16 bytes each: 16 rows."""
    (loop,) = (loop for loop in storing_loops(machine_code[name]) if loop.float64 > 500)
    assert loop.loads["128"] == 1


def test_few_gradients_ride_in_less_than_4_kb(first_use):
    """What a launch takes from the driver's fast path; the kernels for many have 32 KB."""
    _, library = first_use
    for (arch, name), part in by_kernel(cuobjdump(library, "-res-usage")).items():
        if name.endswith(" 480"):
            (constants,) = re.findall(r"CONSTANT\[0\]:(\d+)", part)
            assert int(constants) - RESERVED_CONSTANTS[arch] <= 4096, (arch, name)


def test_one_statement_starts_kernels():
    source = "".join(file.read_text(encoding="utf-8") for file in sorted(CSRC.glob("cuda*")))
    assert source.count("cudaLaunch") == 1 and "<<<" not in source
    assert re.findall(r"\bstart\(", source.split("cudaLaunchKernel")[1]) == ["start("] * 2


# -- builds that fail ----------------------------------------------------------------------------


def script(folder: Path, name: str, line: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def alone(tmp_path, monkeypatch) -> Path:
    """A folder that is all of PATH, in a process that asks for CUDA."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    assert compiler is not None
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("FUSED_SCHED_CUDA", "1")
    for name in ("CUDA_HOME", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "bin"


def reason(tmp_path: Path) -> str:
    """Why a build fails: one line."""
    with pytest.raises(native_build.BuildError) as caught:
        native_build.compile_library(CSRC, tmp_path / "library")
    message = str(caught.value)
    assert "\n" not in message and not (tmp_path / "library").exists()
    return message


WANTED = "it needs nvcc of CUDA 12.1 or later for CUDA tensors"


def test_missing_nvcc_is_named(alone, tmp_path):
    assert reason(tmp_path) == f"{WANTED} and found none on PATH or in CUDA_HOME"


@pytest.mark.parametrize("release", ["11.8", "12.0"])
def test_old_nvcc_is_named(alone, tmp_path, release):
    nvcc = script(alone, "nvcc", f'echo "Cuda compilation tools, release {release}, V{release}.1"')
    assert reason(tmp_path) == f"{WANTED}; {nvcc} is release {release}"


@pytest.mark.parametrize("listed", ["Hopper", "9.0;ten", "90", "9.0+ptx"])
def test_bad_architecture_is_named(alone, tmp_path, monkeypatch, listed):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    bad = listed.split(";")[-1]
    assert reason(tmp_path) == (
        f"TORCH_CUDA_ARCH_LIST: {bad!r} is not an architecture like 9.0 or 9.0+PTX"
    )


def test_nvccs_own_refusal_is_one_line(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    job = native_build._jobs(CSRC, tmp_path, [], ["1.0"], "")["cuda"]
    with pytest.raises(native_build.BuildError, match=r"^compiling failed: .*compute_10'[^\n]*$"):
        ninja.run([*job.command, job.source, "-o", str(tmp_path / "cuda.o")])


ASKED = {
    # (FUSED_SCHED_CUDA, TORCH_CUDA_ARCH_LIST, the GPU present): the architectures
    ("", "", None): [],
    ("0", "9.0", None): [],
    ("1", "", None): ["8.0", "9.0", "10.0"],
    ("1", "8.6 9.0a", None): ["8.6", "9.0"],
    ("1", "8.0;9.0;10.0+PTX", None): ["8.0", "9.0", "10.0+PTX"],
    ("", "", "8.9"): ["8.9"],
    ("", "8.0+PTX", "8.9"): ["8.0+PTX"],
}


@pytest.mark.parametrize("asked", ASKED)
def test_architectures_are_those_asked_for(monkeypatch, asked):
    monkeypatch.setenv("FUSED_SCHED_CUDA", asked[0])
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked[1])
    assert native_build.cuda_archs(asked[2]) == ASKED[asked]


def test_ptx_is_made_where_asked_for():
    assert native_build._gencode("8.0") == "-gencode=arch=compute_80,code=sm_80"
    both = "-gencode=arch=compute_100,code=[sm_100,compute_100]"
    assert native_build._gencode("10.0+PTX") == both


def test_architectures_make_another_library():
    lists = [], ["8.0"], ["8.0", "9.0"], ["8.0+PTX"]
    assert len({native_build.cached(CSRC, archs) for archs in lists}) == len(lists)


# -- the engine's reasons ------------------------------------------------------------------------

SERVES = {
    ("", (9, 0)): False,
    ("8.0 9.0", (9, 0)): True,
    ("8.0", (8, 6)): True,
    ("8.6", (8, 0)): False,
    ("8.0", (9, 0)): False,
    ("8.0+PTX", (12, 0)): True,
    ("9.0+PTX", (8, 0)): False,
}


@pytest.mark.parametrize("row", SERVES)
def test_code_serves_its_own_architectures(row):
    assert native_cuda.serves(*row) == SERVES[row]


@pytest.fixture
def gpu(monkeypatch):
    """As if torch had a GPU of compute capability 9.0."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(native_cuda, "_loaded", {})
    native_cuda._built.cache_clear()
    yield torch.device("cuda", 0)
    native_cuda._built.cache_clear()


class Library:
    """A module for some architectures, whose kernels load or not."""

    def __init__(self, archs: str, error: str = "") -> None:
        self.cuda_archs = lambda: archs
        self.error = error

    def cuda_load(self, device: int) -> None:
        if self.error:
            raise RuntimeError(self.error)


REASONS = {
    # what _load() gives, what _load("9.0") gives: the reason
    "served": (Library("8.0 9.0"), None, None),
    "compiled now": (Library(""), Library("9.0"), None),
    "no compiler": (Library(""), "it needs nvcc", "it needs nvcc"),
    "no library": ("no C++ compiler", None, "no C++ compiler"),
    "old driver": (Library("9.0", "CUDA error: old driver"), None, "CUDA error: old driver"),
    "other architectures": (
        Library("8.0"),
        Library("8.0 8.6"),
        "it is compiled for compute capability 8.0, 8.6, and this GPU's is 9.0; set "
        "TORCH_CUDA_ARCH_LIST=9.0",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_engine_says_why_it_cannot_serve(gpu, monkeypatch, name):
    installed, compiled, reason = REASONS[name]
    answers = {(): installed}
    monkeypatch.setattr(native_cuda, "load_library", lambda *asked: answers.get(asked, compiled))
    assert native_cuda.unavailable(gpu) == reason


def test_engine_first_asked_for_inside_a_capture_refuses_and_loads_nothing(gpu, monkeypatch):
    """A load would fail there; the engine serves the device once the capture has ended."""
    library = Library("9.0", "operation not permitted when stream is capturing")
    monkeypatch.setattr(native_cuda, "load_library", lambda *asked: library)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with fused_sched.use_engine("native"):
        with pytest.raises(RuntimeError, match=r"optimizer\.prepare\(\) before the capture"):
            engine_for(gpu)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        library.error = ""
        assert engine_for(gpu) is native_engine


def test_load_that_failed_is_tried_again(gpu, monkeypatch):
    library = Library("9.0", "operation not permitted when stream is capturing")
    monkeypatch.setattr(native_cuda, "load_library", lambda *asked: library)
    assert native_cuda.unavailable(gpu) == library.error
    library.error = ""
    assert native_cuda.unavailable(gpu) is None


def test_torch_without_cuda_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    told = native_cuda.unavailable(torch.device("cuda", 0))
    assert told == "it serves CUDA tensors, and this torch is built without CUDA"


def test_missing_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert native_cuda.unavailable(torch.device("cuda")) == "torch sees no GPU"


# -- the kernels, on a CPU -----------------------------------------------------------------------


@pytest.fixture(params=["forward", "backward"])
def on_host(request, monkeypatch, whole_steps) -> Any:
    """The native engine launches CUDA kernels, in either order of blocks and threads."""
    monkeypatch.setenv("CUDA_ON_HOST_ORDER", request.param)
    stand_in.serve(monkeypatch)
    return stand_in.device()


def numbers(count: int, dtype: torch.dtype, seed: int, skip: int = 0) -> Tensor:
    """Positive numbers around 1, in memory that is aligned unless ``skip`` elements come first."""
    generator = torch.Generator().manual_seed(seed)
    values = 0.5 + torch.rand(count + skip, generator=generator, dtype=torch.float64)
    return values.to(dtype)[skip:]


SIZES = (
    (CHUNK + 43, (0, 0, 0), False),
    (37, (1, 1, 1), False),
    (CHUNK + 5, (0, 0, 0), True),
    (700, (0, 3, 0), False),  # a view into a bucket
    (1031, (1, 4, 0), False),
    (CHUNK + 9, (4, 4, 5), False),
    (3, (0, 0, 2), False),
)
"""(elements, by how many misaligned: param, grad and state, without a gradient)."""


class Tables:
    """Tensors of every kind in one launch, in every size.

    Group 0 has no optional state, group 1 has them all.
    """

    def __init__(self, rule: str) -> None:
        self.rule = getattr(OURS, rule)._rule
        columns = self.rule.columns
        self.rows, self.grads = [], []
        for kind in itertools.product(DTYPES, repeat=3):
            for count, skips, missing in SIZES:
                self._add(kind, count, skips, missing)
        self.table = ParamTable(self.rows, torch.device("cpu"), "Test")
        self.buffer = DeviceBuffer(torch.device("cpu"), len(columns), 2, len(self.rows), [0], [0])
        values = dict(lr=0.1, momentum=0.9, dampening=0.1, nesterov=1, weight_decay=0.2)
        values |= dict(beta1=0.8, beta2=0.9, eps=1e-3, decoupled_weight_decay=1)
        for column, name in enumerate(columns):
            self.buffer.record[:, column, :] = values.get(name, 0)
        plain = "momentum" if rule == "SGD" else "amsgrad"
        self.buffer.record[:, columns.index(plain), 0] = 0
        self.buffer.record[:, columns.index(plain), 1] = 0.9
        for name in ("beta1", "beta2") if rule == "Adam" else ():
            log = torch.tensor(values[name], dtype=torch.float64).log()
            self.buffer.record[:, columns.index(f"log_{name}"), :] = log

    def _add(
        self, kind: tuple[torch.dtype, ...], count: int, skips: tuple[int, ...], missing: bool
    ) -> None:
        index = len(self.rows)
        param, grad, state = kind
        param_skip, grad_skip, state_skip = skips
        group, seed = index % 2, 10 * index
        present = self.rule.required + group
        states = [numbers(count, state, seed + 1 + i, state_skip) for i in range(present)]
        states += [None] * (len(self.rule.states) - present)
        row = ParamRow(numbers(count, param, seed, param_skip), index, group, states)
        row.grad_dtype = grad
        self.rows.append(row)
        self.grads.append(None if missing else numbers(count, grad, seed + 9, grad_skip))

    def launch(self, scale: float | None = None, found_inf: float | None = None) -> None:
        scalars = [None if s is None else torch.tensor([s]) for s in (scale, found_inf)]
        addresses = [0 if grad is None else grad.data_ptr() for grad in self.grads]
        how = None, self.rule, layout.STAY
        native_engine.update(self.buffer, self.table, addresses, *how, *scalars)

    def tensors(self) -> list[Tensor]:
        """All that a launch may change."""
        grads = [grad for grad in self.grads if grad is not None]
        states = [s for row in self.rows for s in row.states if s is not None]
        own = [self.buffer.memory]
        return [t.clone() for t in (*(m.param for m in self.rows), *grads, *states, *own)]


@pytest.fixture(scope="module")
def on_cpu() -> dict[str, list[Tensor]]:
    """What the CPU engine makes of Tables."""
    results = {}
    for rule in ("SGD", "Adam"):
        tables = Tables(rule)
        for step in range(3):
            tables.launch(*STEPS[step])
        results[rule] = tables.tensors()
    return results


STEPS = ((None, None), (8.0, 0.0), (None, None))
"""(scale, found_inf) of each launch: the second one unscales."""


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("rule", ["SGD", "Adam"])
def test_every_kind_of_storage_gets_the_cpu_engines_bits(on_cpu, on_host, rule):
    tables = Tables(rule)
    before = on_host.cuda_on_host_launches()
    for scale, found_inf in STEPS:
        tables.launch(scale, found_inf)
    assert on_host.cuda_on_host_launches() - before == len(STEPS)
    assert on_host.cuda_on_host_blocks() == tables.table.programs
    assert same(tables.tensors(), on_cpu[rule])
    assert tables.buffer.clock.tolist() == [len(STEPS), 0, 0, 0]


def test_launch_with_found_inf_changes_nothing(on_host):
    tables = Tables("Adam")
    before = tables.tensors()
    tables.launch(scale=8.0, found_inf=1.0)
    assert same(tables.tensors(), before)


def train(params: list[Parameter], steps: int = 4, **options: Any) -> Any:
    opt = OURS.AdamW([{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(params)])
    sched = fused_sched.lr_scheduler.SequentialLR(
        opt,
        [
            fused_sched.lr_scheduler.LinearLR(opt, total_iters=2),
            fused_sched.lr_scheduler.CosineAnnealingLR(opt, T_max=9),
        ],
        [2],
    )
    fused_sched.fuse(opt, sched, interval=1)
    for step in range(steps):
        set_grads(params, step)
        opt.step()
    opt.found_inf = torch.zeros(1)  # the values are read from the device
    opt.step()
    return opt


def test_schedule_of_more_groups_than_threads_moves_its_scalars_once(on_host):
    params = [[Parameter(torch.ones(2)) for _ in range(130)] for _ in range(2)]
    with fused_sched.use_engine("native"):
        ours = train(params[0])
    with fused_sched.use_engine("eager"):
        theirs = train(params[1])
    for mine, other in zip(ours.param_groups, theirs.param_groups):
        assert abs(mine["lr"] - other["lr"]) < 1e-12 * other["initial_lr"]
    torch.testing.assert_close(params[0], params[1])


def test_schedule_alone_gets_the_cpu_engines_values(on_host):
    groups = [{"params": [Parameter(torch.ones(1))], "lr": 0.1 / (i + 1)} for i in range(130)]
    opt = OURS.SGD(groups, lr=0.1, momentum=0.9)
    parts = fused_sched.lr_scheduler
    sched = parts.OneCycleLR(opt, max_lr=[0.2 * group["lr"] for group in groups], total_steps=12)
    with fused_sched.use_engine("native"):
        opt.prepare()
    ledger = opt._ledger
    (device_state,) = ledger.mirror.host.device_states.values()
    number = ledger.mirror.host.schedules.program_of(sched)
    results = []
    for advance in (CPU_ADVANCE, native_cuda.advance):
        buffer = device_state.buffer.on_host(device_state.buffer.memory.clone())
        program = buffer.programs[number]
        trace = torch.full((5, *buffer.record.shape[1:]), torch.nan, dtype=torch.float64)
        advance(buffer, program, 5, None, trace)
        advance(buffer, program)
        assert 6 in program.ops[:, layout.EPOCH]
        results.append((trace, buffer.record, program.lanes, program.ops.double()))
    for theirs, ours in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_more_gradients_than_parameters_hold_come_from_the_table(on_host):
    count = native_cuda._module(0).CUDA_GRADIENTS + 1
    params = [Parameter(torch.ones(1)) for _ in range(count)]
    opt = OURS.SGD(params, lr=0.5)
    for number, param in enumerate(params):
        param.grad = None if number == 7 else torch.full((1,), number / count)
    with fused_sched.use_engine("native"):
        opt.step()
    expected = 1 - 0.5 * torch.arange(count) / count
    expected[7] = 1
    torch.testing.assert_close(torch.cat([p.detach() for p in params]), expected)


def test_errors_of_cuda_are_raised(on_host, monkeypatch):
    monkeypatch.setattr(native_cuda, "_where", lambda device: {"device": 9, "stream": 0})
    with pytest.raises(RuntimeError, match=r"^CUDA error: invalid device ordinal$"):
        Tables("SGD").launch()


@pytest.fixture
def second_gpu(on_host) -> Any:
    """Only the second of two GPUs is used; the thread's own device is the first."""
    on_host.cuda_on_host_forget_contexts()
    return on_host


def test_launch_on_a_second_gpu_makes_no_context_on_the_first(second_gpu, monkeypatch):
    monkeypatch.setattr(native_cuda, "_where", lambda device: {"device": 1, "stream": 0})
    Tables("SGD").launch()
    assert second_gpu.cuda_on_host_launched_on() == 1
    assert second_gpu.cuda_on_host_contexts() == 0b10
    assert not second_gpu.cuda_on_host_holds()


def test_failing_launch_leaves_no_context_behind(second_gpu, monkeypatch):
    monkeypatch.setattr(native_cuda, "_where", lambda device: {"device": 9, "stream": 0})
    with pytest.raises(RuntimeError, match="CUDA error"):
        Tables("SGD").launch()
    assert second_gpu.cuda_on_host_contexts() == 0 and not second_gpu.cuda_on_host_holds()


def test_fields_of_another_size_are_refused(on_host):
    module = native_cuda._module(0)
    with pytest.raises(ValueError, match="bytes of fields"):
        module.cuda_update(b"", b"")
    tables = Tables("SGD")
    how = None, 0, layout.STAY
    values = native_library.update_values(tables.buffer, tables.table, *how, None, None)
    others = dict.fromkeys(CUDA_UPDATE.names, 0)
    with pytest.raises(RuntimeError, match="not one gradient for each tensor"):
        module.cuda_update(CUDA_UPDATE.pack(others | values), bytes(8))
