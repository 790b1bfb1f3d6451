"""The publish protocol of Note [One launch] as a model, every interleaving of it explored.

A launch is one schedule program and two chunk programs; three launches run one after the other,
each with and without a found_inf. A program is a tuple of actions; an action touches shared
memory at most once, so any action of one program may fall between any two of another. Memory is
sequentially consistent here: what the barrier and the fences of the compiled kernel are for.

A broken protocol is the right one with one action replaced. Each must end in the violations that
its row names, or the checks would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import NamedTuple

import pytest

SCHEDULE, FIRST_CHUNK, SECOND_CHUNK = range(3)
PROGRAMS = 3
LAUNCHES = 3
EVERY_FOUND_INF = list(product([False, True], repeat=LAUNCHES))


class Record(NamedTuple):
    """One half of the hyper record. Two columns, written one by one: momentum is always -lr."""

    lr: int
    momentum: int


class Use(NamedTuple):
    """What one program of one launch read before it computed."""

    launch: int
    program: int
    step: int
    lr: int
    momentum: int


class Memory(NamedTuple):
    """What the programs of a launch share, and the record of what they did with it."""

    launch: int = 0
    found_inf: bool = False
    clock: int = 0
    ticket: int = 0
    tick: int = 0  # the schedule row's steps since its last advance
    halves: tuple[Record, Record] = (Record(1, -1), Record(1, -1))
    uses: frozenset[Use] = frozenset()
    updates: tuple[tuple[tuple[int, int], ...], ...] = ((), (), ())  # (step, lr) per program


class Registers(NamedTuple):
    """What one program keeps to itself."""

    program: int
    clock: int = 0
    lr: int = 0
    momentum: int = 0
    due: bool = False
    last: bool = False


Action = Callable[[Memory, Registers], tuple[Memory, Registers]]
Program = tuple[Action, ...]


# -- the actions of the right protocol -----------------------------------------------------------


def read_clock(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return memory, own._replace(clock=memory.clock)


def read_lr(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return memory, own._replace(lr=memory.halves[own.clock % 2].lr)


def read_momentum(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    own = own._replace(momentum=memory.halves[own.clock % 2].momentum)
    use = Use(memory.launch, own.program, own.clock + 1, own.lr, own.momentum)
    return memory._replace(uses=memory.uses | {use}), own


def advance_tick(memory: Memory, own: Registers, interval: int) -> tuple[Memory, Registers]:
    if memory.found_inf:
        return memory, own
    due = memory.tick + 1 >= interval
    return memory._replace(tick=0 if due else memory.tick + 1), own._replace(due=due)


def every_step(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return advance_tick(memory, own, interval=1)


def every_other_step(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return advance_tick(memory, own, interval=2)


def store(memory: Memory, half: int, **column: int) -> Memory:
    """Write one column of one half; nothing where found_inf stops the launch."""
    if memory.found_inf:
        return memory
    halves = list(memory.halves)
    halves[half] = halves[half]._replace(**column)
    return memory._replace(halves=tuple(halves))


def write_lr(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return store(memory, (own.clock + 1) % 2, lr=own.lr + own.due), own


def write_momentum(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return store(memory, (own.clock + 1) % 2, momentum=own.momentum - own.due), own


def write_param(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    if memory.found_inf:
        return memory, own
    updates = list(memory.updates)
    updates[own.program] += ((own.clock + 1, own.lr),)
    return memory._replace(updates=tuple(updates)), own


def take_ticket(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    last = memory.ticket == PROGRAMS - 1
    return memory._replace(ticket=memory.ticket + 1), own._replace(last=last)


def advance_clock(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    moves = own.last and not memory.found_inf
    return memory._replace(clock=memory.clock + moves), own


def clear_ticket(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return memory._replace(ticket=0 if own.last else memory.ticket), own


def write_both_halves(memory: Memory, lr: int) -> Memory:
    return memory._replace(halves=(Record(lr, -lr),) * 2)


# -- actions of broken protocols -----------------------------------------------------------------


def write_lr_to_current(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return store(memory, own.clock % 2, lr=own.lr + own.due), own


def write_momentum_to_current(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return store(memory, own.clock % 2, momentum=own.momentum - own.due), own


def write_lr_if_due(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return write_lr(memory, own) if own.due else (memory, own)


def write_momentum_if_due(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return write_momentum(memory, own) if own.due else (memory, own)


def advance_tick_anyway(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    moved, own = every_other_step(memory._replace(found_inf=False), own)
    return moved._replace(found_inf=memory.found_inf), own


def take_ticket_schedule_is_last(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    last = own.program == SCHEDULE
    return memory._replace(ticket=memory.ticket + 1), own._replace(last=last)


def take_ticket_first_is_last(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    last = memory.ticket == 0
    return memory._replace(ticket=memory.ticket + 1), own._replace(last=last)


def advance_clock_anyway(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return memory._replace(clock=memory.clock + own.last), own


def leave_ticket(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return memory, own


def write_first_half(memory: Memory, lr: int) -> Memory:
    return memory._replace(halves=(Record(lr, -lr), memory.halves[1]))


def write_half_by_launch_count(memory: Memory, lr: int) -> Memory:
    """The half that would be current if no launch had been skipped."""
    halves = list(memory.halves)
    halves[memory.launch % 2] = Record(lr, -lr)
    return memory._replace(halves=tuple(halves))


# -- protocols -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Protocol:
    """The programs of a launch, and what the host does when somebody assigns an lr."""

    schedule: Program = (
        read_clock,
        read_lr,
        read_momentum,
        every_step,
        write_lr,
        write_momentum,
        take_ticket,
        advance_clock,
        clear_ticket,
    )
    chunk: Program = (
        read_clock,
        read_lr,
        read_momentum,
        write_param,
        take_ticket,
        advance_clock,
        clear_ticket,
    )
    host_write: Callable[[Memory, int], Memory] = write_both_halves

    def programs(self) -> tuple[Program, ...]:
        return self.schedule, self.chunk, self.chunk

    def replacing(self, actions: Mapping[Action, Action]) -> Protocol:
        """The same protocol with some of its actions replaced."""

        def swapped(program: Program) -> Program:
            return tuple(actions.get(action, action) for action in program)

        return replace(self, schedule=swapped(self.schedule), chunk=swapped(self.chunk))


def ticket_before_reads(program: Program) -> Program:
    """No barrier before the ticket: the program is counted while it still reads."""
    return take_ticket, *(action for action in program if action is not take_ticket)


RIGHT = Protocol()
INTERVAL_2 = RIGHT.replacing({every_step: every_other_step})


# -- exploring -----------------------------------------------------------------------------------


def begin(memory: Memory, programs: Iterable[Program]) -> tuple[Memory, tuple]:
    """A state: the memory, and for each program its registers and the actions still to run."""
    return memory, tuple((Registers(i), program) for i, program in enumerate(programs))


def successors(state: tuple[Memory, tuple]) -> Iterable[tuple[Memory, tuple]]:
    """Every state that one action of one program leads to."""
    memory, programs = state
    for i, (own, remaining) in enumerate(programs):
        if remaining:
            after, registers = remaining[0](memory, own)
            yield after, (*programs[:i], (registers, remaining[1:]), *programs[i + 1 :])


def launch_ends(memory: Memory, programs: Iterable[Program]) -> set[Memory]:
    """Every memory that one launch can leave, over all interleavings of its programs."""
    stack = [begin(memory, programs)]
    visited = set(stack)
    ends = set()
    while stack:
        state = stack.pop()
        following = set(successors(state))
        if not following:
            ends.add(state[0])
        stack.extend(following - visited)
        visited |= following
    return ends


def run_ends(
    protocol: Protocol, found_inf: tuple[bool, ...], writes: Mapping[int, int]
) -> set[Memory]:
    """Every memory that the launches can leave, with the host's writes of lr before some of them.

    A launch begins when all programs of the one before have ended.
    """
    memories = {Memory()}
    for launch, skipped in enumerate(found_inf):
        starts = (memory._replace(launch=launch, found_inf=skipped) for memory in memories)
        if launch in writes:
            starts = (protocol.host_write(memory, writes[launch]) for memory in starts)
        memories = {
            end for start in starts for end in launch_ends(start, protocol.programs())
        }
    return memories


# -- what must hold ------------------------------------------------------------------------------


@dataclass
class Sequential:
    """The same run, one launch after the other with nothing in parallel."""

    updates: list[tuple[int, int]] = field(default_factory=list)
    seen: list[tuple[int, int]] = field(default_factory=list)
    lr: int = 1

    @classmethod
    def run(
        cls, found_inf: tuple[bool, ...], writes: Mapping[int, int], interval: int
    ) -> Sequential:
        run = cls()
        for launch, skipped in enumerate(found_inf):
            run.lr = writes.get(launch, run.lr)
            run.seen.append((len(run.updates) + 1, run.lr))
            if not skipped:
                run.updates.append(run.seen[-1])
                run.lr += len(run.updates) % interval == 0
        return run


def reads_half_published(end: Memory, right: Sequential) -> bool:
    return any(use.momentum != -use.lr for use in end.uses)


def programs_disagree(end: Memory, right: Sequential) -> bool:
    views = {use._replace(program=0) for use in end.uses}
    return len(views) != len(right.seen)


def reads_other_values(end: Memory, right: Sequential) -> bool:
    return any((use.step, use.lr) != right.seen[use.launch] for use in end.uses)


def updates_other_than_sequential(end: Memory, right: Sequential) -> bool:
    chunks = end.updates[FIRST_CHUNK], end.updates[SECOND_CHUNK]
    return any(list(chunk) != right.updates for chunk in chunks)


def steps_lost_or_counted_twice(end: Memory, right: Sequential) -> bool:
    return end.clock != len(right.updates)


def next_record_wrong(end: Memory, right: Sequential) -> bool:
    return end.halves[end.clock % 2] != Record(right.lr, -right.lr)


def ticket_left(end: Memory, right: Sequential) -> bool:
    return end.ticket != 0


CHECKS = (
    reads_half_published,
    programs_disagree,
    reads_other_values,
    updates_other_than_sequential,
    steps_lost_or_counted_twice,
    next_record_wrong,
    ticket_left,
)


def violations(
    protocol: Protocol,
    found_inf: tuple[bool, ...],
    writes: Mapping[int, int],
    interval: int = 1,
) -> set[Callable]:
    """The checks that some interleaving violates."""
    right = Sequential.run(found_inf, writes, interval)
    ends = run_ends(protocol, found_inf, writes)
    return {check for check in CHECKS for end in ends if check(end, right)}


# -- the tests -----------------------------------------------------------------------------------

NO_WRITES: dict[int, int] = {}
HOST_WRITES = [NO_WRITES, {1: 100}, {2: 100}, {0: 50, 1: 100, 2: 200}]


@pytest.mark.parametrize("writes", HOST_WRITES, ids=str)
@pytest.mark.parametrize("found_inf", EVERY_FOUND_INF, ids=str)
@pytest.mark.parametrize(
    ("protocol", "interval"), [(RIGHT, 1), (INTERVAL_2, 2)], ids=["interval 1", "interval 2"]
)
def test_protocol_equals_the_sequential_run(protocol, interval, found_inf, writes):
    assert violations(protocol, found_inf, writes, interval) == set()


@dataclass(frozen=True)
class Broken:
    """A protocol with one mistake, and checks that some interleaving of some run must violate."""

    id: str
    protocol: Protocol
    violates: set[Callable]
    interval: int = 1
    writes: Mapping[int, int] = field(default_factory=dict)


BROKEN = [
    Broken(
        "schedule writes the current half",
        RIGHT.replacing(
            {write_lr: write_lr_to_current, write_momentum: write_momentum_to_current}
        ),
        {reads_half_published, programs_disagree, updates_other_than_sequential},
    ),
    Broken(
        "schedule program publishes",
        RIGHT.replacing({take_ticket: take_ticket_schedule_is_last}),
        {reads_half_published, programs_disagree, updates_other_than_sequential, ticket_left},
    ),
    Broken(
        "first program to finish publishes",
        RIGHT.replacing({take_ticket: take_ticket_first_is_last}),
        {reads_half_published, programs_disagree, updates_other_than_sequential, ticket_left},
    ),
    Broken(
        "ticket before the reads",
        replace(
            RIGHT,
            schedule=ticket_before_reads(RIGHT.schedule),
            chunk=ticket_before_reads(RIGHT.chunk),
        ),
        {reads_half_published, programs_disagree, updates_other_than_sequential},
    ),
    Broken(
        "ticket not cleared",
        RIGHT.replacing({clear_ticket: leave_ticket}),
        {steps_lost_or_counted_twice, updates_other_than_sequential, ticket_left},
    ),
    Broken(
        "clock ignores found_inf",
        RIGHT.replacing({advance_clock: advance_clock_anyway}),
        {steps_lost_or_counted_twice, reads_other_values, next_record_wrong},
    ),
    Broken(
        "schedule not due does not copy",
        INTERVAL_2.replacing({write_lr: write_lr_if_due, write_momentum: write_momentum_if_due}),
        {next_record_wrong},
        interval=2,
    ),
    Broken(
        "schedule's state ignores found_inf",
        INTERVAL_2.replacing({every_other_step: advance_tick_anyway}),
        {reads_other_values, updates_other_than_sequential},
        interval=2,
    ),
    Broken(
        "host writes the first half only",
        replace(RIGHT, host_write=write_first_half),
        {reads_other_values, updates_other_than_sequential},
        writes={1: 100},
    ),
    Broken(
        "host writes the half it counts as current",
        replace(RIGHT, host_write=write_half_by_launch_count),
        {reads_other_values, updates_other_than_sequential},
        writes={1: 100},
    ),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.id)
def test_broken_protocol_is_found_out(broken):
    found = set()
    for found_inf in EVERY_FOUND_INF:
        found |= violations(broken.protocol, found_inf, broken.writes, broken.interval)
    assert broken.violates <= found


def test_stale_half_shows_two_launches_later():
    """Without the copy the launch after the next one reads what the schedule has left behind."""
    broken = next(row for row in BROKEN if row.id == "schedule not due does not copy")
    no_skips = (False,) * 4
    assert violations(INTERVAL_2, no_skips, NO_WRITES, interval=2) == set()
    found = violations(broken.protocol, no_skips, NO_WRITES, interval=2)
    assert {reads_other_values, updates_other_than_sequential} <= found


def increment(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return memory._replace(clock=own.clock + 1), own


def test_exploration_finds_the_lost_update():
    """Two programs that load, add and store: both orders and the lost update, nothing else."""
    ends = launch_ends(Memory(), [(read_clock, increment)] * 2)
    assert {end.clock for end in ends} == {1, 2}


def test_exploration_visits_every_combination_of_positions():
    """With actions that do nothing the states are the product of the programs' positions."""
    programs = [(leave_ticket,) * length for length in (2, 3, 4)]
    stack, visited = [begin(Memory(), programs)], set()
    while stack:
        state = stack.pop()
        visited.add(state)
        stack.extend(set(successors(state)) - visited)
    assert len(visited) == 3 * 4 * 5
