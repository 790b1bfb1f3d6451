"""The compiled engine by itself: its layout, its variants, its threads, its build."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fused_sched
from fused_sched.engines import native_build, native_sources
from fused_sched.engines.native_structs import CUDA_UPDATE
from fused_sched.schedules.known_lambdas import Piece
from fused_sched.tables import layout
from tests.cases import OPTIMIZERS
from tests.training import FEW, OURS, case, named, set_grads

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
    )


# -- layout --------------------------------------------------------------------------------------


def test_another_layout_is_another_library(monkeypatch):
    assert f"HISTORY = {layout.HISTORY},\n" in native_sources.shared()["layout.h"]
    before = native_build.cached(ROOT / "csrc")
    monkeypatch.setattr(layout, "HISTORY", 99)
    assert "HISTORY = 99,\n" in native_sources.shared()["layout.h"]
    assert native_build.cached(ROOT / "csrc") != before


def test_words_of_a_piece_are_its_fields():
    words = [getattr(layout, f"PIECE_{field.upper()}") for field in Piece._fields]
    assert words == list(range(layout.PIECE_WORDS))


def test_a_struct_is_packed_by_name():
    values = {name: number for number, name in enumerate(reversed(CUDA_UPDATE.names))}
    packed = array("q", CUDA_UPDATE.pack(values)).tolist()
    assert packed == sorted(packed, reverse=True)  # in the struct's order
    assert packed[0] == values["addresses"] and packed[-1] == values["stream"] == 0
    for name in ("clock", "stream"):
        with pytest.raises(KeyError, match=name):
            CUDA_UPDATE.pack({n: v for n, v in values.items() if n != name})


# -- variants and threads ------------------------------------------------------------------------

ISAS = ("avx512bf16", "avx512", "avx2", "baseline")

TRAIN = """
import torch, fused_sched
from fused_sched.engines import native_engine, native_library
from tests.cases import OPTIMIZERS, SHAPES
from tests.training import OURS, set_grads
torch.set_num_threads(1)
assert native_engine.unavailable(torch.device("cpu")) is None
results = {}
for row in OPTIMIZERS:
    for dtype in native_library.DTYPES:
        torch.manual_seed(0)
        params = [shape.build(dtype) for shape in SHAPES]
        opt = row.build(OURS, params)
        for step in range(3):
            set_grads(params, step)
            opt.step()
        results[row.id, str(dtype)] = [param.detach() for param in params]
torch.save((native_library.isa(), results), PATH)
"""


def trained(isa: str, path: Path) -> tuple[str, dict[Any, list[Tensor]]]:
    """(the instruction set used, the params of every optimizer and dtype after three steps)."""
    done = run_python(f"PATH = {str(path)!r}\n{TRAIN}", FUSED_SCHED_ISA=isa)
    assert done.returncode == 0, done.stderr
    return torch.load(path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return trained("", tmp_path_factory.mktemp("isa") / "best")


def processor_has(isa: str) -> bool:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    needs = {"avx512bf16": "avx512_bf16", "avx512": "avx512vl", "avx2": "avx2"}
    return isa == "baseline" or needs[isa] in flags


def test_best_instruction_set_is_taken(reference):
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("no /proc/cpuinfo to compare with")
    assert reference[0] == next(isa for isa in ISAS if processor_has(isa))


@pytest.mark.parametrize("isa", ISAS[1:])
def test_every_variant_computes_the_same(isa, reference, tmp_path):
    if not processor_has(isa):
        pytest.skip(f"this processor has no {isa}")
    used, results = trained(isa, tmp_path / isa)
    assert used == isa
    for key, params in results.items():
        for mine, best in zip(params, reference[1][key], strict=True):
            # The same operations in the same order; only AVX512-BF16 rounds denormals to zero.
            torch.testing.assert_close(mine, best, rtol=0, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("row", **named(FEW))
def test_number_of_threads_changes_no_bit(row, dtype):
    def run(threads: int) -> list[Tensor]:
        torch.manual_seed(0)
        sizes = (300_001, 70_000, 65_537, 3, 1, 0, 1_000)
        params = [Parameter(torch.randn(size).to(dtype)) for size in sizes]
        opt = row.build(OURS, params)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for step in range(3):
                set_grads(params, step)
                opt.step()
        finally:
            torch.set_num_threads(before)
        return params

    with fused_sched.use_engine("native"):
        alone = run(1)
        for threads in (2, 3, 8):
            for mine, one in zip(run(threads), alone, strict=True):
                assert torch.equal(mine, one)


def test_denormals_of_bfloat16_are_at_most_lost():
    param = Parameter(torch.full((40,), 1e-39, dtype=torch.bfloat16))
    before = param.detach().clone()
    param.grad = torch.zeros_like(param)
    with fused_sched.use_engine("native"):
        fused_sched.optim.SGD([param], lr=0.1).step()
    assert all(value in (0.0, old) for value, old in zip(param.tolist(), before.tolist()))


# -- memory --------------------------------------------------------------------------------------


def test_tables_take_less_than_a_hundred_bytes_a_tensor():
    params = [Parameter(torch.zeros(1)) for _ in range(1000)]
    for param in params:
        param.grad = torch.zeros(1)
    opt = fused_sched.optim.AdamW(params)
    with fused_sched.use_engine("native"):
        opt.step()
    (device_state,) = opt._ledger.mirror.host.device_states.values()
    tables = (
        device_state.table.addresses,
        device_state.table.info,
        device_state.table.chunks,
        device_state.table.ends,
    )
    assert sum(table.nbytes for table in tables) + device_state.buffer.offsets.nbytes < 100 * len(
        params
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("row", **named(OPTIMIZERS))
def test_a_step_allocates_nothing(row):
    params = [Parameter(torch.ones(size)) for size in (3, 70_000)]
    opt = row.build(OURS, params)
    for param in params:
        param.grad = torch.ones_like(param)
    with fused_sched.use_engine("native"):
        for _ in range(2):
            opt.step()
        assert opt._cached is not None
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            assert torch.autograd.profiler._is_profiler_enabled
            # As between two steps of a run that nobody profiles.
            torch.autograd.profiler._is_profiler_enabled = False
            try:
                assert opt._cached.step(opt)
            finally:
                torch.autograd.profiler._is_profiler_enabled = True
    assert [e.key for e in profile.key_averages() if e.self_cpu_memory_usage > 0] == []


# -- the build -----------------------------------------------------------------------------------

USE = """
import torch, fused_sched
param = torch.nn.Parameter(torch.ones(3)); param.grad = torch.ones(3)
opt = fused_sched.optim.AdamW([param]); opt.step()
print(fused_sched.explain(opt).engine, fused_sched.explain(opt).reason)
"""


def test_first_use_compiles_once_and_says_so(tmp_path):
    """Other flags make another library: the installed one is not it."""
    env = {"XDG_CACHE_HOME": str(tmp_path), "FUSED_SCHED_CXXFLAGS": "-O1"}
    first, second = run_python(USE, **env), run_python(USE, **env)
    assert "{'cpu': 'native'}" in first.stdout, first.stderr
    assert first.stderr == "fused_sched: compiling the CPU engine, once (half a minute)\n"
    assert (second.stdout, second.stderr) == (first.stdout, "")


BAD_BUILDS = {
    "no compiler": ({"PATH": "", "CXX": ""}, "it needs a C++ compiler and found none"),
    "a compiler that fails": ({"CXX": "false"}, "compiling failed: false has exit status 1"),
    "no such compiler": ({"CXX": "no-such-compiler"}, "compiling failed: "),
}


@pytest.mark.parametrize("name", BAD_BUILDS)
def test_bad_build_falls_back_in_one_line(name, tmp_path):
    env, reason = BAD_BUILDS[name]
    flags = {"XDG_CACHE_HOME": str(tmp_path), "FUSED_SCHED_CXXFLAGS": "-O1"}
    done = run_python(USE, **flags, **env)
    assert done.returncode == 0, done.stderr
    assert "{'cpu': 'eager'}" in done.stdout
    assert f"native: {reason}" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_every_rule_is_compiled_in_one_unit():
    names = [f"Rule{i}" for i in range(20)]
    units = native_sources.units(names)
    assert [name for together in units.values() for name in together] == names
    assert 1 < len(units) < len(names)
    rules = native_sources.built_in()
    names = [rule.name for _, rule in rules]
    files = native_sources.generated(rules)
    text = "".join(files[f"{unit}.cpp"] for unit in native_sources.units(names))
    assert all(text.count(f'#include "{name}.cpp"') == 1 for name in names)


def test_rules_compile_without_a_warning(tmp_path):
    rules = native_sources.built_in()
    native_sources.write(native_sources.generated(rules), tmp_path)
    command = [*native_build.rule_command(ROOT / "csrc", "baseline"), f"-I{tmp_path}"]
    for unit in native_sources.units([rule.name for _, rule in rules]):
        check = [*command, "-Werror", "-fsyntax-only", str(tmp_path / f"{unit}.cpp")]
        done = subprocess.run(check, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


OLD_TORCH = """
import torch
del torch.Tensor.__dlpack_c_exchange_api__
from fused_sched.engines import native_engine
print(native_engine.unavailable(torch.device("cpu")))
"""


def test_old_torch_is_named():
    done = run_python(OLD_TORCH)
    assert done.stdout.splitlines() == [
        f"torch {torch.__version__} lacks what the compiled engine needs of torch >= 2.11: type "
        "object 'Tensor' has no attribute '__dlpack_c_exchange_api__'"
    ]


def test_sources_are_found_and_named_by_their_content(monkeypatch):
    folder = native_build.sources()
    assert folder is not None
    plain = native_build.cached(folder)
    monkeypatch.setenv("FUSED_SCHED_CXXFLAGS", "-g")
    assert native_build.cached(folder) != plain


def test_native_is_the_default_on_cpu():
    opt = case("SGD-momentum").build(OURS, [Parameter(torch.ones(3))])
    told = fused_sched.explain(opt)
    assert (told.engine, told.reason) == ({"cpu": "native"}, {"cpu": "the default on cpu"})


# -- speed ---------------------------------------------------------------------------------------


def quickest_steps(kinds: dict[str, tuple[torch.dtype, torch.dtype]]) -> dict[str, float]:
    """Name -> the quickest of many steps over a param and a gradient of these types."""
    steps = {}
    for name, (param, grad) in kinds.items():
        weight = Parameter(torch.ones(30_000, dtype=param))
        weight.grad_dtype = grad
        weight.grad = torch.ones(30_000, dtype=grad)
        steps[name] = fused_sched.optim.AdamW([weight]).step
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    with fused_sched.use_engine("native"):
        for _ in range(50):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                taken[name].append(time.perf_counter() - start)
    return {name: min(times) for name, times in taken.items()}


def test_gradient_of_another_type_is_converted_by_vectors():
    """One by one a bfloat16 gradient of a float64 param took seven times a float64 one's time."""
    double = torch.float64
    taken = quickest_steps({"own": (double, double), "other": (double, torch.bfloat16)})
    assert taken["other"] < 3 * taken["own"]
