"""Loops of a compiled kernel, read from its disassembly: NVIDIA's SASS or AMD's assembly."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """Where it stands, what it is, where it may jump to, and the registers it names, in order.

    Registers are read from SASS alone.
    """

    place: int
    opcode: str
    target: int | None = None
    registers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Loop:
    """The instructions from the target of a backward branch to the branch.

    Counted as they stand: both sides of a branch inside, each once.
    """

    body: tuple[Instruction, ...]

    @property
    def instructions(self) -> int:
        """But for those that only wait."""
        return sum(not one.opcode.startswith(WAITING) for one in self.body)

    @property
    def loads(self) -> dict[str, int]:
        """{width in bits: count} of the loads from global memory."""
        return widths(one.opcode for one in self.body if LOAD.match(one.opcode))

    @property
    def stores(self) -> dict[str, int]:
        """{width in bits: count} of the stores to global memory."""
        return widths(one.opcode for one in self.body if STORE.match(one.opcode))

    @property
    def float64(self) -> int:
        """Instructions on float64."""
        return sum(bool(FLOAT64.match(one.opcode)) for one in self.body)

    @property
    def spills(self) -> int:
        """Accesses to registers that were put into memory."""
        return sum(bool(SPILL.match(one.opcode)) for one in self.body)

    @property
    def in_flight(self) -> int:
        """Bytes of a lane's loads that are under way together, at most.

        A load ends where an instruction names a register that it fills: nothing later is issued
        before. The body is gone through twice, for loads of one turn that end in the next.
        """
        pending: dict[range, int] = {}
        most = 0
        for one in self.body * 2:
            filled, used = range(0), one.registers
            if LOAD.match(one.opcode) and used:
                size = width(one.opcode)
                filled, used = range(used[0], used[0] + max(size // 32, 1)), used[1:]
            pending = {r: n for r, n in pending.items() if not any(map(r.__contains__, used))}
            if filled:
                pending[filled] = size // 8
                most = max(most, sum(pending.values()))
        return most


WAITING = ("NOP", "s_nop", "s_waitcnt")
LOAD = re.compile(r"LDG\b|global_load_|flat_load_")
STORE = re.compile(r"STG\b|global_store_|flat_store_")
SPILL = re.compile(r"(LD|ST)L\b|scratch_(load|store)_")
FENCE = re.compile(r"MEMBAR|CCTL|buffer_(wb|inv|gl)")
FLOAT64 = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)\b|(MUFU|F2F|I2F|F2I)\S*64|v_\w*f64")


def widths(opcodes: Iterable[str]) -> dict[str, int]:
    """How often each width occurs."""
    return dict(Counter(str(width(opcode)) for opcode in opcodes))


def width(opcode: str) -> int:
    """Bits that one lane's access moves: LDG.E.128, LDG.E (32), LDG.E.U16, global_load_dwordx2."""
    if "_" in opcode:
        if "dword" in opcode:
            return 32 * int(opcode.partition("dwordx")[2][:1] or 1)
        return 8 if "byte" in opcode else 16
    found = re.search(r"\.[US]?(8|16|64|128|256)\b", opcode)
    return int(found[1]) if found else 32


def bits(counts: dict[str, int]) -> int:
    """All that the accesses move."""
    return sum(int(width) * count for width, count in counts.items())


SASS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")


def parse_sass(text: str) -> list[Instruction]:
    """The instructions that `cuobjdump -sass` prints."""
    found = []
    for place, opcode, operands in SASS.findall(text):
        jump = re.search(r"0x([0-9a-f]+)\s*$", operands) if opcode.startswith("BRA") else None
        registers = tuple(map(int, re.findall(r"\bR(\d+)", operands)))
        target = int(jump[1], 16) if jump else None
        found.append(Instruction(int(place, 16), opcode, target, registers))
    return found


LABEL = re.compile(r"(\.LBB\w+):")
AMD = re.compile(r"\t([vs]_\w+|global_\w+|flat_\w+|ds_\w+|buffer_\w+|scratch_\w+)\s*(\S*)")


def parse_amdgcn(text: str) -> list[Instruction]:
    """The instructions of Triton's `amdgcn`; a place is a line's number."""
    lines = text.splitlines()
    labels = {found[1]: place for place, line in enumerate(lines) if (found := LABEL.match(line))}
    matches = ((place, AMD.match(line)) for place, line in enumerate(lines))
    return [Instruction(place, found[1], labels.get(found[2])) for place, found in matches if found]


def storing_loops(instructions: list[Instruction]) -> list[Loop]:
    """The loops that store to global memory, but not those around another of them."""
    ends: dict[int, int] = {}  # a loop may jump back from several places
    for one in instructions:
        if one.target is not None and one.target <= one.place:
            ends[one.target] = max(one.place, ends.get(one.target, 0))
    loops = {
        span: Loop(tuple(one for one in instructions if span[0] <= one.place <= span[1]))
        for span in ends.items()
    }
    storing = {span: loop for span, loop in loops.items() if loop.stores}
    return [loop for span, loop in storing.items() if not any(map(inside(span), storing))]


def inside(outer: tuple[int, int]) -> Callable[[tuple[int, int]], bool]:
    """Whether a span lies within another one."""
    return lambda span: span != outer and outer[0] <= span[0] and span[1] <= outer[1]
