"""The figures of one kernel on one architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.static.machine_code import FENCE, Loop, bits, storing_loops
from benchmarks.static.targets import GPUS, TARGETS, Estimate, estimate
from benchmarks.static.variants import KINDS, Kind, Variant

SCHEDULE = "schedule"


@dataclass(frozen=True)
class HotLoop:
    """The update of whole vectors; instructions and bytes are per element.

    `load_bytes` are a lane's in one iteration, `in_flight` those that are under way together.
    """

    widest: int
    narrowest: int
    float64: int
    instructions: float
    bytes: float
    load_bytes: int
    in_flight: int


@dataclass(frozen=True)
class Figures:
    """One kernel on one architecture.

    `local` are bytes of a lane; `spills` its accesses to them in loops of 128-bit loads; `fences`
    the instructions that wait for stores or drop a cache. `in_flight` are bytes of the hot loop's
    loads on a multiprocessor.
    `loops` are the accesses of each loop that stores, [loads, stores] as {width: count}. The hot
    one is told only where the kernel serves one kind of tensor: with several, each has its own,
    which is that of the kernel for this kind alone.
    """

    kernel: str
    kinds: str
    target: str
    registers: int
    local: int
    occupancy: float
    spills: int
    fences: int
    in_flight: int | None
    loops: list[list[dict[str, int]]]
    hot: HotLoop | None


def examine(variant: Variant | None, target_name: str) -> Figures:
    """Compile and read one kernel; without a variant the one that advances a schedule alone."""
    # Imported late: what has been imported before decides what Triton compiles, see __main__.
    from benchmarks.static.compiling import binary, compiled

    target = TARGETS[target_name]
    code = binary(compiled(variant, target), target)
    loops = storing_loops(code.instructions)
    hot = None if variant is None else hot_loop(variant, loops)
    return Figures(
        kernel=SCHEDULE if variant is None else variant.name,
        kinds="float64" if variant is None else variant.kinds,
        target=target_name,
        registers=code.registers,
        local=code.local,
        occupancy=target.occupancy(code.registers),
        spills=sum(loop.spills for loop in loops if "128" in loop.loads),
        fences=sum(bool(FENCE.match(one.opcode)) for one in code.instructions),
        in_flight=target.lanes_of(code.registers) * hot.in_flight if hot else None,
        loops=[[loop.loads, loop.stores] for loop in loops],
        hot=hot,
    )


def hot_loop(variant: Variant, loops: Sequence[Loop]) -> HotLoop | None:
    """The figures of the hot loop, where it is the only one of its kind."""
    kind, *others = KINDS[variant.kinds]
    if others:
        return None
    updates = [loop for loop in loops if elements_of(loop, variant, kind)]
    if not updates:
        raise ValueError(f"{variant.name}, {variant.kinds}: no loop moves each array once")
    loop = max(updates, key=widest)  # the other one is for ragged ends
    elements = elements_of(loop, variant, kind)
    every = [int(width) for width in (*loop.loads, *loop.stores)]
    return HotLoop(
        widest=widest(loop),
        narrowest=min(every),
        float64=loop.float64,
        instructions=round(loop.instructions / elements, 2),
        bytes=(bits(loop.loads) + bits(loop.stores)) / 8 / elements,
        load_bytes=bits(loop.loads) // 8,
        in_flight=loop.in_flight,
    )


def elements_of(loop: Loop, variant: Variant, kind: Kind) -> float:
    """Elements that an iteration updates, if it is an update: 0 unless reads and writes agree."""
    read = bits(loop.loads) / sum(variant.loaded(kind))
    written = bits(loop.stores) / sum(variant.stored(kind))
    return read if read == written else 0


def widest(loop: Loop) -> int:
    """Bits of its widest access."""
    return max(map(int, (*loop.loads, *loop.stores)))


def estimates(figures: Figures) -> list[Estimate]:
    """What GPUs of this architecture would take, by the hot loop."""
    hot = figures.hot
    if hot is None:
        return []
    return [
        estimate(gpu, hot.bytes, hot.instructions, hot.load_bytes, figures.occupancy)
        for gpu in GPUS
        if gpu.target == figures.target
    ]


def as_data(figures: Figures) -> dict[str, Any]:
    """For JSON, with the estimates."""
    return {**asdict(figures), "estimates": [asdict(one) for one in estimates(figures)]}
