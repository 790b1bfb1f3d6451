"""How the update kernel of a rule is compiled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Tuning(NamedTuple):
    """How the update kernel of one rule is compiled.

    Attributes:
        vectors: accesses of 16 bytes that a thread makes at a time, of a kind's widest array.
        registers: a thread's, at most; 512 of them over this number, rounded down, are the
            programs that a multiprocessor holds.
    """

    vectors: int
    registers: int


Tunings = Mapping[int | tuple[int, tuple[int, int]], Tuning]
"""By the bits of :func:`tuning_bits`, or by (bits, compute capability), which comes first."""

DEFAULT_TUNINGS: Tunings = {16: Tuning(1, 80), 32: Tuning(1, 72), 64: Tuning(2, 128)}
"""Of a rule that states no row."""


def tuning_bits(kinds: Iterable[Sequence[int]]) -> int:
    """Which tunings a launch over these kinds takes, each given by its arrays' bits an element.

    64 if any array has them, 16 if all arrays of some kind do, or 32.
    """
    widest = [max(kind) for kind in kinds]
    return 64 if 64 in widest else min(widest, default=32)
