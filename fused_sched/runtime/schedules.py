"""The schedulers of one optimizer: which advance in its launch, which by themselves."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from fused_sched.tables import layout
from fused_sched.tables.device_buffer import DeviceBuffer
from fused_sched.tables.program import Assembled, Entry, Row, Segments, Source, assemble

from .cached import CACHED
from .fused_schedule import NO_FORM, FusedSchedule, is_tabulated
from .rings import Rings


class Schedules:
    """Every scheduler that was built on an optimizer, lowered to programs on demand."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns
        self.fused: list[FusedSchedule] = []
        self.tables = False  # whether a graph may come, so that tabulated schedules need tables
        self.explicit: list[weakref.ref[Any]] = []  # those with a program of their own
        self.in_graphs: list[Any] = []  # those that captured graphs step
        self._refused: dict[int, tuple[weakref.ref[Any], str]] = {}  # by id, which may be reused
        self.histories: list[Rings] = []
        self._roots: list[weakref.ref[Any]] = []

    def register(self, scheduler: Any, children: Sequence[Any] = ()) -> None:
        """Note a scheduler; its children no longer advance by themselves."""
        gone = {id(child) for child in children} | {id(scheduler)}
        kept = [ref for ref in self._roots if (s := ref()) is not None and id(s) not in gone]
        self._roots = [*kept, weakref.ref(scheduler)]

    @property
    def none_yet(self) -> bool:
        """Whether there never was a scheduler, nor a history."""
        return not (self._roots or self.fused or self.histories)

    def roots(self) -> Iterator[Any]:
        return (scheduler for ref in self._roots if (scheduler := ref()) is not None)

    def complete_tables(self) -> bool:
        """Compute what the tables lack; whether that was anything."""
        return any([one._complete_table() for one in self._all()])

    def _all(self) -> Iterator[Any]:
        """Every scheduler of ours, those inside composites too."""
        waiting = list(self.roots())
        while waiting:
            one = waiting.pop()
            waiting.extend(getattr(one, "_schedulers", ()))
            if hasattr(one, "_complete_table"):
                yield one

    def check_capture(self) -> None:
        """Raise for a schedule that a graph could not move."""
        for fused in self.fused:
            if fused.refused is not None:
                name = type(fused.scheduler).__name__
                raise RuntimeError(f"{name} is fused and cannot be captured: {fused.refused}")
        for one in self._all():
            if one._lacks_rows():
                raise RuntimeError(
                    f"{type(one).__name__} is computed ahead, and not all of its {one.horizon} "
                    "steps (its horizon) are there yet; call optimizer.prepare() before the "
                    "capture, or give the scheduler a smaller horizon"
                )

    def raise_contradiction(self) -> None:
        """Raise, once, where a graph uses values that a user's function no longer gives."""
        for one in self._all():
            if not (values := one.__dict__.get("_contradiction")):
                continue
            one.__dict__["_contradiction"] = ()
            raise RuntimeError(
                f"{type(one).__name__}'s function now gives {values[0]} for step "
                f"{one.__dict__['last_epoch']}, but the captured graph uses {values[1]}, computed "
                "before the capture. Read again for the values that are used; to change them, call "
                "optimizer.release_capture() and capture again."
            )

    def is_inside(self, scheduler: Any) -> bool:
        """Whether another scheduler steps this one."""
        return any(_steps(one, scheduler) for one in self.roots())

    def cycle_momentum(self) -> bool:
        """Whether a schedule moves momentum, so that a momentum of 0 may not stay 0."""
        return any(_cycles(one) for one in self.roots())

    def find(self, scheduler: Any) -> FusedSchedule | None:
        return next((f for f in self.fused if f.scheduler is scheduler), None)

    def fuse(self, fused: FusedSchedule) -> None:
        """Add a scheduler to the launch, or give the one there another cadence, in its place."""
        self.explicit = [ref for ref in self.explicit if ref() is not fused.scheduler]
        self._drop_cached_calls()
        for number, other in enumerate(self.fused):
            if other.scheduler is fused.scheduler:
                self.fused[number] = fused
                return
        self.fused.append(fused)

    def drop_abandoned(self) -> None:
        """Take out the schedulers that only this list still holds: their calls cannot come."""
        held = []
        for fused in self.fused:
            reference = weakref.ref(fused.scheduler)
            fused.scheduler = None
            fused.scheduler = reference()
            if fused.scheduler is not None:
                held.append(fused)
        self.fused = held

    def _drop_cached_calls(self) -> None:
        """They know their scheduler by its number, which may change."""
        for fused in self.fused:
            fused.scheduler.__dict__.pop(CACHED, None)

    def unfuse(self, scheduler: Any) -> bool:
        """Take a scheduler, or with None every one, out of the launch; whether any was in it."""
        self._drop_cached_calls()
        before = len(self.fused)
        self.fused = [f for f in self.fused if scheduler not in (None, f.scheduler)]
        return len(self.fused) < before

    @property
    def governed(self) -> bool:
        """Whether only calls of ``scheduler.step()`` move what is fused."""
        return all([fused.interval is None for fused in self.fused])

    @property
    def asked(self) -> bool:
        """Whether the host must ask a function or class for a fused schedule's next value."""
        return any(is_tabulated(fused.scheduler) for fused in self.fused)

    # -- lowering --------------------------------------------------------------------------------

    def own_programs(self, tabulate: bool) -> None:
        """Give every scheduler that is not fused a program of its own.

        Args:
            tabulate: also those whose values must be computed ahead, which calls user code.
        """
        for scheduler in self.roots():
            if self.find(scheduler) or self.program_of(scheduler) is not None:
                continue
            if not tabulate and is_tabulated(scheduler):
                reason = "its values must be tabulated first; call optimizer.prepare()"
                if self.why_refused(scheduler) is None:
                    self._refuse(scheduler, reason)
            elif self._lowered(scheduler) is not None:
                self.explicit.append(weakref.ref(scheduler))

    def _lowered(self, scheduler: Any) -> Segments | None:
        """A scheduler's rows; None, with the reason noted, if it has no device form now."""
        try:
            return scheduler._segments()
        except NO_FORM as error:
            self._refuse(scheduler, str(error))
            return None

    def _refuse(self, scheduler: Any, reason: str) -> None:
        self._refused[id(scheduler)] = weakref.ref(scheduler), reason

    def why_refused(self, scheduler: Any) -> str | None:
        """Why no graph can hold a scheduler's own program; None where it was never refused."""
        reference, reason = self._refused.get(id(scheduler), (None, None))
        return reason if reference is not None and reference() is scheduler else None

    def lower(
        self, groups: int, before: Sequence[Assembled] = ()
    ) -> tuple[list[Assembled], list[weakref.ref[Any]]]:
        """Every program with the schedulers' present values: the fused one, then the explicit.

        Args:
            before: the programs of last time.

        Returns:
            The programs, and those of ``explicit`` that still have one.
        """
        entries = [[fused.entry(self.tables) for fused in self.fused]]
        kept = []
        for ref in self.explicit:
            scheduler = ref()
            segments = None if scheduler is None else self._lowered(scheduler)
            if segments is not None:
                kept.append(ref)
                entries.append([Entry(segments)])
        last = [*before, *[None] * len(entries)]
        rows = [row for history in self.histories for row in history.rows(self.columns)]
        explicit = [
            assemble(one, self.columns, groups, last[i]) for i, one in enumerate(entries[1:], 1)
        ]
        return [self._assemble_fused(entries[0], groups, last[0], rows), *explicit], kept

    def _assemble_fused(
        self, entries: list[Entry], groups: int, before: Assembled | None, histories: Sequence[Row]
    ) -> Assembled:
        """The program of the fused schedulers; empty where they cannot stand beside each other."""
        try:
            return assemble(entries, self.columns, groups, before, histories)
        except ValueError as error:
            for fused in self.fused:
                fused.refused = str(error)
            return assemble([], self.columns, groups, before, histories)

    def forget_tables(self) -> None:
        """A scheduler has been changed by hand: what was run ahead may be stale."""
        for scheduler in self.roots():
            scheduler._forget_tables()

    def program_of(self, scheduler: Any) -> int | None:
        """The number of a scheduler's own program in the buffer."""
        for number, ref in enumerate(self.explicit, 1):
            if ref() is scheduler:
                return number
        return None

    # -- the host's side -------------------------------------------------------------------------

    def count_step(self, moved: bool = True) -> bool:
        """One optimizer step, for those with an interval; whether a value has changed.

        Args:
            moved: False for a step that ``found_inf`` stopped.
        """
        timed = [f for f in self.fused if f.interval is not None and (moved or f.on_skip)]
        return any([fused.advance() for fused in timed])

    def dry_run(self) -> None:
        """Raise what torch raises at the next advance of an interval, changing nothing."""
        for fused in self.fused:
            if fused.interval is not None and fused.tick + 1 >= fused.interval:
                fused.scheduler._dry_run()

    def read_back(self, host: DeviceBuffer, programs: Sequence[Assembled]) -> None:
        """Take the schedulers' positions from a fetched buffer."""
        for number, (program, assembled) in enumerate(zip(host.programs, programs, strict=True)):
            ops = program.ops.tolist()
            epochs = [words[layout.EPOCH] for words in ops]
            if number == 0 and not self.governed:
                self._read_back_ticks(ops, assembled)
            if epochs == assembled.epochs:
                continue  # it has not moved, and the host may have since
            sources = [source for source in assembled.sources if source.scheduler() is not None]
            for source in sources:
                self._read_back_source(source, ops[source.row], program.lanes, assembled)
            assembled.epochs = epochs
            for scheduler in self.roots():
                if any(_steps(scheduler, source.scheduler()) for source in sources):
                    scheduler._read_back_composite()

    def _read_back_source(
        self, source: Source, words: Sequence[int], lanes: Any, assembled: Assembled
    ) -> None:
        scheduler = source.scheduler()
        if scheduler is None:
            return
        values = lanes[source.row].tolist()
        if source.ahead:
            scheduler._catch_up(words[layout.EPOCH] - assembled.epochs[source.row], values)
        else:
            scheduler._read_back(words[layout.EPOCH], words[layout.COUNT], values)

    def _read_back_ticks(self, ops: Sequence[Sequence[int]], assembled: Assembled) -> None:
        for fused in self.fused:
            inside = {id(fused.scheduler), *(id(s) for s in fused.scheduler._children())}
            for source in assembled.sources:
                row = source.row
                if id(source.scheduler()) in inside and ops[row][layout.INTERVAL] == fused.interval:
                    fused.tick = ops[row][layout.TICK]
                    break


def _cycles(one: Any) -> bool:
    inside = getattr(one, "_schedulers", ())
    return getattr(one, "cycle_momentum", False) or any(map(_cycles, inside))


def _steps(one: Any, other: Any) -> bool:
    """Whether a scheduler has another inside it, at any depth."""
    return any(child is other or _steps(child, other) for child in getattr(one, "_schedulers", ()))
