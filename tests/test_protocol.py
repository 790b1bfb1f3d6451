"""The publish protocol of Note [One launch] as a model, every interleaving of it explored.

A launch is one schedule program and two chunk programs; three launches run one after the other,
each with and without a found_inf. A program is a tuple of actions; an action touches shared
memory at most once, so any action of one program may fall between any two of another.

Memory is sequentially consistent here, which a GPU's is not. It may be assumed because programs of
one launch share nothing but the clock's word, and that by atomic adds alone, whose order all
programs agree on: ``test_programs_share_only_the_word_of_the_clock``. What they leave is read after
the end of the launch.

A broken protocol is the right one with one action replaced. Each must end in the violations that
its row names, or the checks would prove nothing.
"""

from __future__ import annotations

from collections import defaultdict
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
    """What one program read before it computed."""

    program: int
    step: int
    lr: int
    momentum: int


class Memory(NamedTuple):
    """What the programs of a launch share, and what this launch did with it so far."""

    found_inf: bool = False
    clock: int = 0  # the lower bits of a word
    turns: int = 0  # its upper bits
    tick: int = 0  # the schedule row's steps since its last advance
    halves: tuple[Record, Record] = (Record(1, -1), Record(1, -1))
    uses: frozenset[Use] = frozenset()
    updates: frozenset[tuple[int, int, int]] = frozenset()  # (program, step, lr)


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


def read_lr(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return memory, own._replace(lr=memory.halves[own.clock % 2].lr)


def read_momentum(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    own = own._replace(momentum=memory.halves[own.clock % 2].momentum)
    use = Use(own.program, own.clock + 1, own.lr, own.momentum)
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
    update = (own.program, own.clock + 1, own.lr)
    return memory._replace(updates=memory.updates | {update}), own


def draw(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    """One atomic add to the word; what it held before is the clock and the ticket."""
    last = memory.turns == PROGRAMS - 1
    own = own._replace(clock=memory.clock, last=last)
    return memory._replace(turns=memory.turns + 1), own


def publish(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    """One more atomic add, by the program with the last ticket."""
    if not own.last:
        return memory, own
    moved = memory.clock + (not memory.found_inf)
    return memory._replace(clock=moved, turns=memory.turns - PROGRAMS), own


ATOMIC = {draw, publish}


def write_both_halves(memory: Memory, lr: int, launch: int) -> Memory:
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


def draw_schedule_is_last(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    memory, own = draw(memory, own)
    return memory, own._replace(last=own.program == SCHEDULE)


def draw_first_is_last(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    first = memory.turns == 0
    memory, own = draw(memory, own)
    return memory, own._replace(last=first)


def read_clock(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return memory, own._replace(clock=memory.clock)


def draw_alone(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    """A ticket without the clock that it was drawn at."""
    memory, drawn = draw(memory, own)
    return memory, drawn._replace(clock=own.clock)


def publish_anyway(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    published, own = publish(memory._replace(found_inf=False), own)
    return published._replace(found_inf=memory.found_inf), own


def publish_keeps_turns(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    published, own = publish(memory, own)
    return published._replace(turns=memory.turns), own


def do_nothing(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return memory, own


def write_first_half(memory: Memory, lr: int, launch: int) -> Memory:
    return memory._replace(halves=(Record(lr, -lr), memory.halves[1]))


def write_half_by_launch_count(memory: Memory, lr: int, launch: int) -> Memory:
    """The half that would be current if no launch had been skipped."""
    halves = list(memory.halves)
    halves[launch % 2] = Record(lr, -lr)
    return memory._replace(halves=tuple(halves))


# -- protocols -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Protocol:
    """The programs of a launch, and what the host does when somebody assigns an lr."""

    schedule: Program = (
        draw,
        publish,
        read_lr,
        read_momentum,
        every_step,
        write_lr,
        write_momentum,
    )
    chunk: Program = (draw, publish, read_lr, read_momentum, write_param)
    host_write: Callable[[Memory, int, int], Memory] = write_both_halves

    def programs(self) -> tuple[Program, ...]:
        return self.schedule, self.chunk, self.chunk

    def replacing(self, actions: Mapping[Action, Action]) -> Protocol:
        """The same protocol with some of its actions replaced."""

        def swapped(program: Program) -> Program:
            return tuple(actions.get(action, action) for action in program)

        return replace(self, schedule=swapped(self.schedule), chunk=swapped(self.chunk))


def clock_after_ticket(program: Program) -> Program:
    """The clock read by an access of its own: the program is counted before it has read."""
    return draw_alone, publish, read_clock, *program[2:]


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


def reachable(memory: Memory, programs: Iterable[Program]) -> set[tuple[Memory, tuple]]:
    """Every state of one launch, over all interleavings of its programs."""
    stack = [begin(memory, programs)]
    visited = set(stack)
    while stack:
        unseen = set(successors(stack.pop())) - visited
        visited |= unseen
        stack.extend(unseen)
    return visited


def launch_ends(memory: Memory, programs: Iterable[Program]) -> set[Memory]:
    """Every memory that one launch can leave."""
    states = reachable(memory, programs)
    return {after for after, running in states if not any(left for _, left in running)}


@dataclass(frozen=True)
class Expected:
    """One launch of the sequential run: what it uses, and what it leaves."""

    step: int
    lr: int
    skipped: bool
    next_lr: int

    @property
    def clock(self) -> int:
        return self.step - self.skipped


def sequential(
    found_inf: tuple[bool, ...], writes: Mapping[int, int], interval: int
) -> list[Expected]:
    """The same run with nothing in parallel: the schedule adds 1 every interval steps."""
    launches, clock, lr = [], 0, 1
    for launch, skipped in enumerate(found_inf):
        lr = writes.get(launch, lr)
        advances = not skipped and (clock + 1) % interval == 0
        launches.append(Expected(clock + 1, lr, skipped, lr + advances))
        clock, lr = launches[-1].clock, launches[-1].next_lr
    return launches


# -- what must hold when a launch has ended ------------------------------------------------------


def reads_half_published(end: Memory, right: Expected) -> bool:
    return any(use.momentum != -use.lr for use in end.uses)


def programs_disagree(end: Memory, right: Expected) -> bool:
    return len({(use.step, use.lr, use.momentum) for use in end.uses}) != 1


def reads_other_values(end: Memory, right: Expected) -> bool:
    return any((use.step, use.lr) != (right.step, right.lr) for use in end.uses)


def updates_other_than_sequential(end: Memory, right: Expected) -> bool:
    chunks = () if right.skipped else (FIRST_CHUNK, SECOND_CHUNK)
    return end.updates != {(chunk, right.step, right.lr) for chunk in chunks}


def step_lost_or_counted_twice(end: Memory, right: Expected) -> bool:
    return end.clock != right.clock


def next_record_wrong(end: Memory, right: Expected) -> bool:
    return end.halves[end.clock % 2] != Record(right.next_lr, -right.next_lr)


def turns_left(end: Memory, right: Expected) -> bool:
    return end.turns != 0


CHECKS = (
    reads_half_published,
    programs_disagree,
    reads_other_values,
    updates_other_than_sequential,
    step_lost_or_counted_twice,
    next_record_wrong,
    turns_left,
)


def violations(
    protocol: Protocol,
    found_inf: tuple[bool, ...],
    writes: Mapping[int, int],
    interval: int = 1,
) -> set[str]:
    """The checks that some interleaving violates.

    A launch begins when all programs of the one before have ended, from every memory that they
    can leave. ``writes`` are the host's assignments of lr, by the launch that they precede.
    """
    found, memories = set(), {Memory()}
    for launch, right in enumerate(sequential(found_inf, writes, interval)):
        if launch in writes:
            memories = {protocol.host_write(m, writes[launch], launch) for m in memories}
        starts = {
            m._replace(found_inf=right.skipped, uses=frozenset(), updates=frozenset())
            for m in memories
        }
        memories = set().union(*(launch_ends(start, protocol.programs()) for start in starts))
        found |= {check.__name__ for check in CHECKS for end in memories if check(end, right)}
    return found


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
    """A protocol with one mistake, and the checks that some interleaving must violate."""

    id: str
    protocol: Protocol
    violates: set[Callable]
    interval: int = 1
    writes: Mapping[int, int] = field(default_factory=dict)

    def missed(self) -> set[str]:
        """The checks that no interleaving of any run violates."""
        missing = {check.__name__ for check in self.violates}
        for found_inf in EVERY_FOUND_INF:
            if missing:
                missing -= violations(self.protocol, found_inf, self.writes, self.interval)
        return missing


BROKEN = [
    Broken(
        "schedule writes the current half",
        RIGHT.replacing({write_lr: write_lr_to_current, write_momentum: write_momentum_to_current}),
        {reads_half_published, programs_disagree, updates_other_than_sequential},
    ),
    Broken(
        "schedule program publishes",
        RIGHT.replacing({draw: draw_schedule_is_last}),
        {programs_disagree, reads_other_values, updates_other_than_sequential},
    ),
    Broken(
        "first program to draw publishes",
        RIGHT.replacing({draw: draw_first_is_last}),
        {reads_half_published, programs_disagree, reads_other_values},
    ),
    Broken(
        "clock read apart, after the ticket",
        replace(
            RIGHT,
            schedule=clock_after_ticket(RIGHT.schedule),
            chunk=clock_after_ticket(RIGHT.chunk),
        ),
        {reads_half_published, programs_disagree, updates_other_than_sequential},
    ),
    Broken(
        "turns not taken back",
        RIGHT.replacing({publish: publish_keeps_turns}),
        {step_lost_or_counted_twice, updates_other_than_sequential, turns_left},
    ),
    Broken(
        "clock ignores found_inf",
        RIGHT.replacing({publish: publish_anyway}),
        {step_lost_or_counted_twice, reads_other_values, next_record_wrong},
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
    assert broken.missed() == set()


def test_stale_half_shows_two_launches_later():
    """Without the copy the launch after the next one reads what the schedule has left behind."""
    broken = next(row for row in BROKEN if row.id == "schedule not due does not copy")
    no_skips = (False,) * 4
    assert violations(INTERVAL_2, no_skips, NO_WRITES, interval=2) == set()
    found = violations(broken.protocol, no_skips, NO_WRITES, interval=2)
    assert {"reads_other_values", "updates_other_than_sequential"} <= found


# -- why the adds need no fence ------------------------------------------------------------------

WORD = "the clock's word"


def numbers(memory: Memory) -> dict[str, object]:
    """What lies at each address that the kernel touches."""
    columns = {
        f"{name} of half {half}": value
        for half, record in enumerate(memory.halves)
        for name, value in record._asdict().items()
    }
    word = memory.clock, memory.turns
    return {WORD: word, "tick": memory.tick, "found_inf": memory.found_inf, **columns}


def other_memories(memory: Memory) -> Iterable[tuple[str, Memory]]:
    """(address, the memory with another number there) for every address."""
    yield WORD, memory._replace(clock=memory.clock + 1)
    yield WORD, memory._replace(turns=memory.turns + 1)
    yield "tick", memory._replace(tick=memory.tick + 1)
    yield "found_inf", memory._replace(found_inf=not memory.found_inf)
    for half, name in product((0, 1), Record._fields):
        halves = list(memory.halves)
        halves[half] = halves[half]._replace(**{name: 1_000})
        yield f"{name} of half {half}", memory._replace(halves=tuple(halves))


def written(action: Action, memory: Memory, own: Registers) -> set[str]:
    before, after = numbers(memory), numbers(action(memory, own)[0])
    return {address for address in before if before[address] != after[address]}


def read(action: Action, memory: Memory, own: Registers) -> set[str]:
    """The addresses whose number makes a difference to the program, or to another address."""

    def outcome(start: Memory, but: str) -> object:
        after, registers = action(start, own)
        kept = {address: n for address, n in numbers(after).items() if address != but}
        return registers, kept, after.uses, after.updates

    return {
        address
        for address, other in other_memories(memory)
        if outcome(other, address) != outcome(memory, address)
    }


def shared(protocol: Protocol, start: Memory) -> dict[str, set[Action]]:
    """The actions on each address that one program of a launch writes and another one touches."""
    writers, touchers, actions = defaultdict(set), defaultdict(set), defaultdict(set)
    for memory, programs in reachable(start, protocol.programs()):
        for own, (action, *_) in (program for program in programs if program[1]):
            wrote = written(action, memory, own)
            for address in wrote | read(action, memory, own):
                touchers[address].add(own.program)
                actions[address].add(action)
            for address in wrote:
                writers[address].add(own.program)
    return {
        address: actions[address]
        for address in writers
        if any(touchers[address] - {writer} for writer in writers[address])
    }


@pytest.mark.parametrize("found_inf", [False, True])
@pytest.mark.parametrize("protocol", [RIGHT, INTERVAL_2], ids=["interval 1", "interval 2"])
def test_programs_share_only_the_word_of_the_clock(protocol, found_inf):
    assert shared(protocol, Memory(found_inf=found_inf)) == {WORD: ATOMIC}


def test_a_record_in_one_half_would_be_shared():
    """The check above finds what the two halves are for."""
    writes = {write_lr: write_lr_to_current, write_momentum: write_momentum_to_current}
    found = shared(RIGHT.replacing(writes), Memory())
    assert found.keys() == {WORD, "lr of half 0", "momentum of half 0"}


# -- the model itself ----------------------------------------------------------------------------


def increment(memory: Memory, own: Registers) -> tuple[Memory, Registers]:
    return memory._replace(clock=own.clock + 1), own


def test_exploration_finds_the_lost_update():
    """Two programs that load, add and store: both orders and the lost update, nothing else."""
    ends = launch_ends(Memory(), [(read_clock, increment)] * 2)
    assert {end.clock for end in ends} == {1, 2}


def test_exploration_visits_every_combination_of_positions():
    """With actions that do nothing the states are the product of the programs' positions."""
    programs = [(do_nothing,) * length for length in (2, 3, 4)]
    assert len(reachable(Memory(), programs)) == 3 * 4 * 5
