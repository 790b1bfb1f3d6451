"""The schedulers of one optimizer: which advance in its launch, which by themselves."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fused_sched.tables import layout
from fused_sched.tables.block import Block
from fused_sched.tables.program import Assembled, Entry, assemble


@dataclass
class Fused:
    """A scheduler that advances in ``optimizer.step()``'s launch.

    Attributes:
        scheduler: held strongly: the training depends on it.
        interval: optimizer steps per advance.
        on_skip: it also advances when ``found_inf`` makes the step stand still.
        tick: optimizer steps since the last advance.
        steps: optimizer steps since it was fused.
        answered: advances that a ``scheduler.step()`` call has answered.
    """

    scheduler: Any
    interval: int
    on_skip: bool
    tick: int = 0
    steps: int = 0
    answered: int = 0

    def advance(self) -> None:
        """Count one optimizer step; run torch's recurrence when it is due."""
        self.tick += 1
        if self.tick >= self.interval:
            self.tick = 0
            self.scheduler._host_step()

    def entry(self) -> Entry:
        segments = self.scheduler._segments()
        return Entry(segments, self.interval, self.tick, self.on_skip)


class Schedules:
    """Every scheduler that was built on an optimizer, lowered to programs on demand."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns
        self.fused: list[Fused] = []
        self.explicit: list[Any] = []  # schedulers with a program of their own, held weakly
        self.refused: dict[int, str] = {}
        self._roots: list[weakref.ref[Any]] = []

    def register(self, scheduler: Any, children: Sequence[Any] = ()) -> None:
        """Note a scheduler; its children no longer advance by themselves."""
        gone = {id(child) for child in children} | {id(scheduler)}
        kept = [ref for ref in self._roots if (s := ref()) is not None and id(s) not in gone]
        self._roots = [*kept, weakref.ref(scheduler)]

    def roots(self) -> Iterator[Any]:
        return (scheduler for ref in self._roots if (scheduler := ref()) is not None)

    def find(self, scheduler: Any) -> Fused | None:
        return next((f for f in self.fused if f.scheduler is scheduler), None)

    def fuse(self, fused: Fused) -> None:
        """Add a scheduler to the launch, or give one there another cadence."""
        self.explicit = [ref for ref in self.explicit if ref() is not fused.scheduler]
        kept = [one for one in self.fused if one.scheduler is not fused.scheduler]
        self.fused = [*kept, fused]

    def own_programs(self, tabulate: bool) -> None:
        """Give every scheduler that is not fused a program of its own.

        Args:
            tabulate: also those whose values must be computed ahead, which calls user code.
        """
        for scheduler in self.roots():
            if self.find(scheduler) or any(ref() is scheduler for ref in self.explicit):
                continue
            try:
                if scheduler._tabulated() and not tabulate:
                    reason = "its values must be tabulated first; call optimizer.prepare()"
                    self.refused[id(scheduler)] = reason
                    continue
                scheduler._segments()
            except (ArithmeticError, TypeError, ValueError, RuntimeError) as error:
                self.refused[id(scheduler)] = str(error)
                continue
            self.explicit.append(weakref.ref(scheduler))

    def lower(self, groups: int) -> list[Assembled]:
        """Every program with the schedulers' values of now: the fused one, then the explicit."""
        programs = [assemble([fused.entry() for fused in self.fused], self.columns, groups)]
        for ref in self.explicit:
            scheduler = ref()
            entries = [] if scheduler is None else [Entry(scheduler._segments())]
            programs.append(assemble(entries, self.columns, groups))
        return programs

    def rehearse(self) -> None:
        """Raise what torch raises at the next advance, changing nothing."""
        for fused in self.fused:
            fused.scheduler._rehearse()

    def program_of(self, scheduler: Any) -> int | None:
        """The number of a scheduler's own program in the block."""
        for number, ref in enumerate(self.explicit, 1):
            if ref() is scheduler:
                return number
        return None

    def lift(self, host: Block, programs: Sequence[Assembled]) -> None:
        """Take the schedulers' positions from a fetched block."""
        for program, assembled in zip(host.programs, programs, strict=True):
            ops = program.ops.tolist()
            for index, ref in assembled.sources:
                scheduler = ref()
                if scheduler is not None:
                    words = ops[index]
                    lanes = program.lanes[index].tolist()
                    scheduler._lift(words[layout.EPOCH], words[layout.COUNT], lanes)
        if self.fused and programs:
            self._lift_ticks(host, programs[0])
        for scheduler in self.roots():
            scheduler._lift_composite()

    def _lift_ticks(self, host: Block, assembled: Assembled) -> None:
        ops = host.programs[0].ops
        for fused in self.fused:
            inside = {id(fused.scheduler), *(id(s) for s in fused.scheduler._children())}
            for index, ref in assembled.sources:
                if id(ref()) in inside and ops[index, layout.INTERVAL] == fused.interval:
                    fused.tick = int(ops[index, layout.TICK])
                    break
