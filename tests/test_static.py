"""The compiled kernels keep the design's limits; compiled here, without a GPU."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REGISTERS = 64
FLOAT64_REGISTERS = 128
BITS = {
    "float32": [(32, 32, 32)],
    "bfloat16 + float32 states": [(16, 16, 32)],
    "mixed": [(32, 32, 32), (16, 16, 16), (16, 16, 16)],
    "float64": [(64, 64, 64)],
}
"""Bits of an element of (param, grad, state), for each kind of tensor."""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The figures of every variant, compiled in a process without the interpreter."""
    cache = tmp_path_factory.mktemp("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "benchmarks.static", "--json", "--quick"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def over(report, limit_of, figure):
    """Rows whose figure is above their limit, to be read in the failure."""
    return [
        f"{row['variant']} {row['kinds']} {row['target']}: {figure} {row[figure]}"
        for row in report["figures"]
        if row[figure] > limit_of(row)
    ]


def test_registers_stay_within_the_limit(report):
    def limit(row):
        update = row["kinds"] != "float64"
        return REGISTERS if update else FLOAT64_REGISTERS

    assert not over(report, limit, "registers")


def test_kernels_have_no_local_memory(report):
    assert not over(report, lambda row: 0, "stack")


def test_update_path_has_no_float64_transcendental(report):
    def limit(row):
        return 0 if row["kinds"] != "float64" else 10

    assert not over(report, limit, "float64_transcendentals")


def accesses(bits):
    """{width: count} of the vector accesses that move four elements of each array once."""
    counts = Counter()
    for element in bits:
        counts[str(min(4 * element, 128))] += max(4 * element // 128, 1)
    return dict(counts)


def test_hot_loop_moves_four_elements_a_thread(report):
    rows = [row for row in report["figures"] if row["variant"] != "schedule"]
    assert {row["kinds"] for row in rows} == set(BITS)
    for row in rows:
        states = int(row["variant"].split()[1])
        kinds = [(p, g, [s] * states) for p, g, s in BITS[row["kinds"]]]
        loads = accesses([bits for p, g, s in kinds for bits in (p, g, *s)])
        unscales = "scaler" in row["variant"]
        stores = accesses([bits for p, g, s in kinds for bits in (p, *[g] * unscales, *s)])
        name = f"{row['variant']} {row['kinds']} {row['target']}"
        assert row["loads"] == loads, f"{name}: loads {row['loads']}"
        assert row["stores"] == stores, f"{name}: stores {row['stores']}"


def test_kernels_compile_for_amd(report):
    assert set(report["amd"]) == {"sgd", "adam"}


def test_no_program_loads_a_scalar_that_it_stored(report):
    assert report["reloads"] == []


def test_the_check_for_reloads_finds_one():
    source = (ROOT / "benchmarks" / "static.py").read_text()
    tree = ast.parse(source)
    function = next(
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "_reloads_in"
    )
    scope: dict = {"ast": ast}
    exec(compile(ast.Module([function], []), "static", "exec"), scope)
    bad = "def f(p):\n    tl.store(p + 1, x)\n    y = tl.load(p + 1)\n"
    good = bad.replace("    y", "    tl.debug_barrier()\n    y")
    check = scope["_reloads_in"]
    assert check(ast.parse(bad).body[0]) == [3]
    assert check(ast.parse(good).body[0]) == []
