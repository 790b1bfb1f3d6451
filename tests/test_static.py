"""The compiled kernels keep the design's limits; compiled here, without a GPU."""

from __future__ import annotations

import ast
import copy
import json
import os
import subprocess
import sys

import pytest

from benchmarks.result import RESULTS, ROOT
from benchmarks.static import limits
from benchmarks.static.machine_code import parse_amdgcn, parse_sass, storing_loops
from benchmarks.static.reloads import reloads_in
from benchmarks.static.targets import GPUS, TARGETS, estimate
from benchmarks.static.variants import QUICK, VARIANTS, examined

COMMITTED = RESULTS / "static-report.md"

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


def test_kernels_keep_to_the_limits(fresh):
    assert limits.broken(fresh["figures"]) == []


def test_every_variant_is_examined_on_every_target(fresh):
    found = [(row["kernel"], row["kinds"], row["target"]) for row in fresh["figures"]]
    jobs = {(v.name, v.kinds, target) for v in QUICK for target in TESTED}
    assert set(found) == jobs | {("schedule", "float64", target) for target in TESTED}
    assert len(found) == len(set(found))


def test_every_limit_of_instructions_is_of_a_tested_variant():
    assert set(limits.INSTRUCTIONS) <= {(v.name, v.kinds) for v in QUICK}


WORSE = {
    "registers": ("registers", 137),
    "local memory": ("local", 56),
    "spilled": ("spills", 1),
    "fences": ("fences", 1),
    "in flight": ("in_flight", 47 << 10),
    "no loop": ("loops", [[{"64": 4}, {"64": 3}]]),
    "float64 instructions": ("hot", "float64", 1),
    "bytes per element": ("hot", "bytes", 29),
    "instructions per element": ("hot", "instructions", 50),
}
"""Figures beyond one limit, by what its line says."""


@pytest.mark.parametrize("said", WORSE)
def test_a_figure_beyond_a_limit_is_told(fresh, said):
    wanted = {"kernel": "Adam, 2 states", "kinds": "bfloat16", "target": "sm_90"}
    (row,) = (copy.deepcopy(r) for r in fresh["figures"] if wanted.items() <= r.items())
    assert limits.broken([row]) == []
    *path, last, worse = WORSE[said]
    (row[path[0]] if path else row)[last] = worse
    (line,) = limits.broken([row])
    assert said in line and line.startswith("Adam, 2 states bfloat16 sm_90: ")


def test_no_program_loads_a_scalar_that_it_stored(fresh):
    assert fresh["reloads"] == []


# -- the report ----------------------------------------------------------------------------------


def test_committed_report_has_every_variant_on_every_target():
    lines = COMMITTED.read_text(encoding="utf-8").splitlines()
    for variant, target in examined(VARIANTS, TARGETS):
        start = f"| {variant.name} | {variant.kinds} | {target} |"
        assert sum(line.startswith(start) for line in lines) == 1, f"run `make static`: {start}"


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


def test_lanes_follow_from_registers():
    assert TARGETS["sm_90"].lanes_of(72) == 7 * 128


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
    assert (loop.instructions, loop.float64, loop.spills) == (6, 0, 0)


def test_loop_of_amd_assembly_is_read():
    (loop,) = storing_loops(parse_amdgcn(AMDGCN))
    assert (loop.loads, loop.stores) == ({"64": 1}, {"16": 1})
    assert (loop.instructions, loop.float64) == (6, 1)


PIPELINE = """
        /*0010*/                   IADD3 R20, R8, R12, R14 ;           /* 0x00 */
        /*0020*/                   STG.E [R2.64], R20 ;                /* 0x00 */
        /*0030*/               @P1 LDG.E.128 R8, desc[UR6][R2.64] ;    /* 0x00 */
        /*0040*/                   LDL R21, [R1] ;                     /* 0x00 */
        /*0050*/               @P1 LDG.E.64 R12, desc[UR6][R4.64] ;    /* 0x00 */
        /*0060*/                   FADD R4, R11, R4 ;                  /* 0x00 */
        /*0070*/                   LDG.E.U16 R14, desc[UR6][R4.64] ;   /* 0x00 */
        /*0080*/               @P0 BRA 0x10 ;                          /* 0x00 */
"""


def test_loads_in_flight_end_where_they_are_used():
    """16 and 8 bytes together; the first are used before the last 2 are loaded."""
    (loop,) = storing_loops(parse_sass(PIPELINE))
    assert (loop.in_flight, loop.spills) == (24, 1)


def test_the_check_for_reloads_finds_one():
    bad = "def f(p):\n    tl.store(p + 1, x)\n    y = tl.load(p + 1)\n"
    good = bad.replace("    y", "    tl.debug_barrier()\n    y")
    assert reloads_in(ast.parse(bad).body[0]) == [3]
    assert reloads_in(ast.parse(good).body[0]) == []
