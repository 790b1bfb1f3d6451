"""The compiled kernels keep the design's limits; compiled here, without a GPU."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import pytest

from benchmarks.result import RESULTS, ROOT
from benchmarks.static import report as static_report
from benchmarks.static.machine_code import parse_amdgcn, parse_sass, storing_loops
from benchmarks.static.reloads import reloads_in
from benchmarks.static.targets import GPUS, TARGETS, estimate
from benchmarks.static.variants import KINDS, QUICK, VARIANTS, accesses

REGISTERS = {"cuda": 64, "hip": 136}
FLOAT64_REGISTERS = {"cuda": 128, "hip": 136}
"""On AMD LLVM is given no limit; 136 leave room for 3 of 8 waves."""

LANE_ELEMENTS = {"cuda": 4, "hip": 2}
"""Elements that a lane moves at a time: 512 by 128 lanes on NVIDIA, by 256 on AMD."""

INSTRUCTIONS = {
    ("SGD, 1 state", "float32"): {"cuda": 15, "hip": 36},
    ("Adam, 2 states, scaler", "float32"): {"cuda": 36, "hip": 34},
    ("Adam, 2 states", "bfloat16, float32 states"): {"cuda": 38, "hip": 42},
    ("Adam, 3 states", "float32"): {"cuda": 35, "hip": 57},
    ("Adam, 2 states", "float64"): {"cuda": 84, "hip": 58},
}
"""Per element of the hot loop: 4 to 9 % above Triton 3.7.1's."""

COMMITTED = RESULTS / "static-report.json"


TESTED = ("sm_80", "sm_90", "gfx942")
"""Compiled anew in this test; `make static` compiles for all TARGETS."""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """The figures of the variants nearest to a limit, from a process without the interpreter."""
    cache = tmp_path_factory.mktemp("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    arguments = ("--json", "--quick", "--targets")  # a warning is an error here as in every test
    command = [sys.executable, "-W", "error", "-m", "benchmarks.static", *arguments]
    done = subprocess.run(
        [*command, *TESTED], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def committed():
    """The report in the repository."""
    return json.loads(COMMITTED.read_text())


@pytest.fixture(params=["fresh", "committed"])
def report(request):
    """A few kernels as they are now, and all of them as the repository tells."""
    return request.getfixturevalue(request.param)


def backend(row):
    return TARGETS[row["target"]].backend


def name(row):
    return f"{row['kernel']} {row['kinds']} {row['target']}"


def hot_loops(report):
    """(row, its hot loop) of all that have one."""
    return [(row, row["hot"]) for row in report["figures"] if row["hot"]]


def variants(report):
    """(row, its variant) but for the schedule's kernel."""
    known = {(v.name, v.kinds): v for v in VARIANTS}
    rows = [row for row in report["figures"] if row["kernel"] != "schedule"]
    return [(row, known[row["kernel"], row["kinds"]]) for row in rows]


def test_every_variant_is_examined_on_every_target(fresh, committed):
    for data, wanted, targets in ((fresh, QUICK, TESTED), (committed, VARIANTS, TARGETS)):
        found = [(row["kernel"], row["kinds"], row["target"]) for row in data["figures"]]
        jobs = {(v.name, v.kinds, target) for v in wanted for target in targets}
        assert set(found) == jobs | {("schedule", "float64", target) for target in targets}
        assert len(found) == len(set(found))


def test_registers_stay_within_the_limit(report):
    for row in report["figures"]:
        wide = row["kinds"] == "float64" and row["kernel"] != "schedule"
        limit = (FLOAT64_REGISTERS if wide else REGISTERS)[backend(row)]
        assert row["registers"] <= limit, f"{name(row)}: {row['registers']} registers > {limit}"


def test_kernels_have_no_local_memory(report):
    assert [f"{name(row)}: {row['local']}" for row in report["figures"] if row["local"]] == []


def test_hot_loop_has_no_float64(report):
    for row, hot in hot_loops(report):
        if row["kinds"] != "float64":
            assert hot["float64"] == 0, f"{name(row)}: {hot['float64']} float64 instructions > 0"


def test_hot_loop_has_few_instructions(report):
    checked = set()
    for row, hot in hot_loops(report):
        key = row["kernel"], row["kinds"]
        if key in INSTRUCTIONS:
            limit = INSTRUCTIONS[key][backend(row)]
            assert hot["instructions"] <= limit, f"{name(row)}: {hot['instructions']} > {limit}"
            checked.add(key)
    assert checked == set(INSTRUCTIONS)


def test_every_kind_has_a_loop_of_its_widest_accesses(report):
    """128 bits, or four elements: in the machine code, not in what Triton asked for."""
    for row, variant in variants(report):
        for kind in KINDS[variant.kinds]:
            elements = LANE_ELEMENTS[backend(row)]
            sides = (variant.loaded(kind), variant.stored(kind))
            wanted = [accesses(bits, elements) for bits in sides]
            assert wanted in row["loops"], f"{name(row)}: no loop of {wanted} in {row['loops']}"


def test_hot_loop_moves_each_array_once(report):
    for row, variant in variants(report):
        if row["hot"]:
            limit = variant.bytes_per_element(KINDS[variant.kinds][0])
            assert row["hot"]["bytes"] == limit, f"{name(row)}: {row['hot']['bytes']} != {limit}"


def test_no_program_loads_a_scalar_that_it_stored(report):
    assert report["reloads"] == []


# -- the report ----------------------------------------------------------------------------------


def test_committed_report_is_of_these_kernels(fresh, committed):
    if fresh["record"]["triton"] != committed["record"]["triton"]:
        return  # another compiler's figures differ; the limits above hold for it as well
    stale = [row for row in fresh["figures"] if row not in committed["figures"]]
    assert stale == [], f"run `make static`: {[name(row) for row in stale]}"


def test_committed_markdown_is_that_of_the_data(committed):
    assert COMMITTED.with_suffix(".md").read_text() == static_report.text(committed)


def test_roofline_of_a_known_loop():
    """28 bytes at 4.8 TB/s; 32 instructions a element on 132 x 128 lanes at 1.98 GHz."""
    (h200,) = (gpu for gpu in GPUS if gpu.name == "H200")
    one = estimate(h200, 28, 32, load_bytes=64, occupancy=0.5)
    assert (one.memory, one.issue, one.limit) == (5.833, 0.957, "memory")
    assert one.covered_us == round(132 * 1024 * 64 / 4800 / 1e3, 2)


@pytest.mark.parametrize(
    "registers, share", [(32, 1.0), (40, 0.75), (64, 0.5), (65, 0.4375), (128, 0.25), (255, 0.125)]
)
def test_occupancy_follows_from_registers(registers, share):
    assert TARGETS["sm_90"].occupancy(registers) == share


# -- the readers of machine code -----------------------------------------------------------------

SASS = """
        /*0000*/                   LDG.E.64 R2, desc[UR6][R2.64] ;     /* 0x00 */
        /*0010*/                   DADD R4, R4, R2 ;                   /* 0x00 */
        /*0020*/              @!P5 LDG.E.128 R8, desc[UR6][R2.64] ;    /* 0x00 */
        /*0030*/                   FFMA R8, R8, R8, R9 ;               /* 0x00 */
        /*0040*/               @P1 BRA 0x60 ;                          /* 0x00 */
        /*0050*/                   LDG.E.U16 R9, desc[UR6][R2.64] ;    /* 0x00 */
        /*0060*/                   STG.E desc[UR6][R2.64], R8 ;        /* 0x00 */
        /*0070*/                   NOP ;                               /* 0x00 */
        /*0080*/               @P0 BRA P1, 0x20 ;                      /* 0x00 */
        /*0090*/                   STG.E.64 desc[UR6][R2.64], R8 ;     /* 0x00 */
        /*00a0*/                   BRA 0xa0 ;                          /* 0x00 */
"""

AMDGCN = """
.LBB0_1:
\tglobal_load_dwordx2 v[2:3], v[4:5], off
\ts_waitcnt vmcnt(0)
\tv_add_f64 v[2:3], v[2:3], v[2:3]
\tglobal_store_short v[4:5], v2, off
\ts_cbranch_scc1 .LBB0_1
\tv_mov_b32_e32 v1, 0
\ts_branch .LBB0_1
\tglobal_store_dword v[4:5], v2, off
"""


def test_loop_of_sass_is_read():
    (loop,) = storing_loops(parse_sass(SASS))
    assert (loop.loads, loop.stores) == ({"128": 1, "16": 1}, {"32": 1})
    assert (loop.instructions, loop.float64) == (6, 0)


def test_loop_of_amd_assembly_is_read():
    (loop,) = storing_loops(parse_amdgcn(AMDGCN))
    assert (loop.loads, loop.stores) == ({"64": 1}, {"16": 1})
    assert (loop.instructions, loop.float64) == (6, 1)


def test_the_check_for_reloads_finds_one():
    bad = "def f(p):\n    tl.store(p + 1, x)\n    y = tl.load(p + 1)\n"
    good = bad.replace("    y", "    tl.debug_barrier()\n    y")
    assert reloads_in(ast.parse(bad).body[0]) == [3]
    assert reloads_in(ast.parse(good).body[0]) == []
