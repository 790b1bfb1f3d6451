"""What every compiled kernel keeps to, whatever the compiler's version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.static.targets import TARGETS
from benchmarks.static.variants import KINDS, VARIANTS, Variant, accesses, tuning_of

IN_FLIGHT = 48 << 10
"""Bytes of loads on a multiprocessor: what Hopper's bandwidth times its latency asks for is 40 to
64 KB."""

LOCAL = 48
"""Bytes of a lane's registers in memory, not in loops over vectors: before them, in the loop over
misaligned elements, in the schedule's."""

SCHEDULE_REGISTERS = 64

AMD_REGISTERS = 136
"""LLVM is given no limit; 136 leave room for 3 of 8 waves."""

INSTRUCTIONS = {
    ("SGD, 0 states", "bfloat16"): {"cuda": 17, "hip": 25},
    ("SGD, 1 state", "bfloat16"): {"cuda": 23, "hip": 36},
    ("SGD, 1 state", "float32"): {"cuda": 18, "hip": 36},
    ("Adam, 2 states, scaler", "float32"): {"cuda": 39, "hip": 54},
    ("Adam, 2 states", "bfloat16"): {"cuda": 43, "hip": 64},
    ("Adam, 2 states", "bfloat16, float32 states"): {"cuda": 41, "hip": 61},
    ("Adam, 3 states", "float32"): {"cuda": 38, "hip": 64},
    ("Adam, 2 states", "float64"): {"cuda": 103, "hip": 86},
}
"""Per element of the hot loop: some 8 % above Triton 3.7.1's."""

Row = dict[str, Any]
"""A kernel's figures as data."""


def broken(rows: list[Row]) -> list[str]:
    """A line for each limit that some kernel does not keep to."""
    known = {(variant.name, variant.kinds): variant for variant in VARIANTS}
    found = []
    for row in rows:
        variant = known.get((row["kernel"], row["kinds"]))
        kernel = f"{row['kernel']} {row['kinds']} {row['target']}"
        found += [f"{kernel}: {line}" for line in of_kernel(row, variant)]
        if variant is not None:
            found += [f"{kernel}: {line}" for line in of_accesses(row, variant)]
        if row["hot"]:
            assert variant is not None, "only an update has a hot loop"
            found += [f"{kernel}: {line}" for line in of_hot_loop(row, variant)]
    return found


def of_kernel(row: Row, variant: Variant | None) -> Iterator[str]:
    """Registers, memory in their place, and what a relaxed ticket is for."""
    target = TARGETS[row["target"]]
    limit = AMD_REGISTERS
    if target.backend == "cuda":
        tuned = None if variant is None else tuning_of(variant, target.capability)
        limit = SCHEDULE_REGISTERS if tuned is None else tuned.registers
    if row["registers"] > limit:
        yield f"{row['registers']} registers > {limit}"
    if row["local"] > LOCAL:
        yield f"{row['local']} bytes of local memory > {LOCAL}"
    if row["spills"]:
        yield f"{row['spills']} accesses to spilled registers in loops over vectors"
    if row["fences"] and target.backend == "cuda":
        yield f"{row['fences']} fences"


def of_accesses(row: Row, variant: Variant) -> Iterator[str]:
    """Each kind has a loop of 128-bit accesses of its widest array."""
    target = TARGETS[row["target"]]
    vectors = tuning_of(variant, target.capability).vectors
    for kind in KINDS[variant.kinds]:
        sides = (variant.loaded(kind), variant.stored(kind))
        elements = 128 // max(sides[0]) * vectors * 32 // target.lanes
        wanted = [accesses(bits, elements) for bits in sides]
        if wanted not in row["loops"]:
            yield f"no loop of {wanted} in {row['loops']}"


def of_hot_loop(row: Row, variant: Variant) -> Iterator[str]:
    """Bytes, instructions, and the loads in flight of float32 and bfloat16."""
    hot, backend = row["hot"], TARGETS[row["target"]].backend
    bytes_ = variant.bytes_per_element(KINDS[variant.kinds][0])
    if hot["bytes"] != bytes_:
        yield f"{hot['bytes']} bytes per element != {bytes_}"
    if hot["float64"] and variant.kinds != "float64":
        yield f"{hot['float64']} float64 instructions in the hot loop"
    if backend == "cuda" and row["in_flight"] < IN_FLIGHT:
        yield f"{row['in_flight']} bytes in flight < {IN_FLIGHT}"
    limit = INSTRUCTIONS.get((row["kernel"], row["kinds"]), {backend: float("inf")})[backend]
    if hot["instructions"] > limit:
        yield f"{hot['instructions']} instructions per element > {limit}"
