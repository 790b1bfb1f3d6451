"""Schedule rows on the host, and their assembly into one program's tensors."""

from __future__ import annotations

import functools
import weakref
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import layout

Lanes = Mapping[int, float | Sequence[float]]

NO_TABLE = torch.empty(0, dtype=torch.float64, device="cpu")


@dataclass
class Row:
    """One op of a schedule program.

    Attributes:
        opcode: one of ``layout``'s opcodes.
        lanes: word -> value, a float for all groups or one per group.
        words: op word -> integer, beside those named here.
        aux: the row's table, float64; the same object as long as it holds the same values.
        epoch, count: torch's ``last_epoch`` and ``_step_count`` now.
        source: the scheduler whose position this row carries, if any.
        span: rows to the one that follows (a child jumps over its later siblings).
        child: it advances when its SequentialLR says so, not by itself.
        ends: advances until a table or a OneCycleLR is at its end, None if it never is.
        ahead: its table was run ahead; the host catches up by running the scheduler itself.
        recursive: its table was computed from the present lr, so an edit of lr makes it stale.
    """

    opcode: int
    lanes: Lanes = field(default_factory=dict)
    words: Mapping[int, int] = field(default_factory=dict)
    aux: Tensor = NO_TABLE
    epoch: int = 0
    count: int = 0
    source: Any = None
    span: int = 1
    child: bool = False
    ends: int | None = None
    ahead: bool = False
    recursive: bool = False

    def fits(self, groups: int) -> bool:
        """Whether the lanes have a value for each group."""
        lists = (value for value in self.lanes.values() if isinstance(value, Sequence))
        return all(len(value) == groups for value in lists)


Segments = dict[str, list[Row]]
"""Rows by the name of the hyper column that they move."""


class Source(NamedTuple):
    """A scheduler in a program: the number of the row that has its position."""

    row: int
    scheduler: weakref.ref[Any]
    ahead: bool


@dataclass
class Entry:
    """A scheduler's rows in a program, with its cadence."""

    segments: Segments
    interval: int = 1
    tick: int = 0
    on_skip: bool = False

    def rows(self) -> list[Row]:
        return [row for rows in self.segments.values() for row in rows]

    def ends(self) -> int | None:
        """Optimizer steps that can be made before the one for which a row has no value."""
        advances = min((row.ends for row in self.rows() if row.ends is not None), default=None)
        return None if advances is None else (advances + 1) * self.interval - self.tick - 1


@dataclass
class Assembled:
    """A program on the host, as ``DeviceBuffer.send_values`` takes it, and who stands in which row.

    Attributes:
        tables: the parts of ``aux``, which is the same object as long as they are.
        histories: numbers of the HISTORY rows.
        epochs: of each row, up to which the host has its scheduler's position.
        ends: optimizer steps that can be made before a row is past its end, None if none ends.
    """

    ops: Tensor
    lanes: Tensor
    aux: Tensor
    tables: list[Tensor]
    histories: range
    epochs: list[int]
    sources: list[Source]
    columns: list[str]
    ends: int | None
    recursive: bool


class _Assembly:
    """A program in the making."""

    def __init__(self, columns: Sequence[str], groups: int) -> None:
        self.columns = columns
        self.groups = groups
        self.ops: list[list[int]] = []
        self.lanes = array("d")  # all rows, one behind the other
        self.tables: list[Tensor] = []
        self.sources: list[Source] = []
        self._aux_length = 0

    def bracket(self, opcode: int, name: str) -> None:
        """LOAD or STORE of a column."""
        derived = f"log_{name}"
        number = self.columns.index(derived) if derived in self.columns else -1
        words = {layout.COLUMN: self.columns.index(name), layout.DERIVED: number}
        self.add(Row(opcode, words=words), Entry({}))

    def add(self, row: Row, entry: Entry) -> None:
        if row.source is not None:
            self.sources.append(Source(len(self.ops), weakref.ref(row.source), row.ahead))
        self.ops.append(self._words(row, entry))
        self._add_lanes(row)
        if row.aux.numel():
            self.tables.append(row.aux)
            self._aux_length += row.aux.numel()

    def _words(self, row: Row, entry: Entry) -> list[int]:
        words = [0] * layout.OP_WORDS
        words[layout.OPCODE] = row.opcode
        words[layout.DERIVED] = -1
        words[layout.NEXT] = len(self.ops) + row.span
        words[layout.INTERVAL] = 1 if row.child else entry.interval
        words[layout.TICK] = 0 if row.child else entry.tick
        words[layout.EPOCH] = row.epoch
        words[layout.COUNT] = row.count
        words[layout.COUNT_INCREMENT] = 1
        words[layout.AUX_START] = self._aux_length
        words[layout.ON_SKIP] = int(entry.on_skip or row.child)
        for word, value in row.words.items():
            words[word] = value
        return words

    def _add_lanes(self, row: Row) -> None:
        groups = self.groups
        first = len(self.lanes)
        self.lanes.frombytes(bytes(8 * layout.LANE_WORDS * groups))
        for word, value in row.lanes.items():
            values = value if isinstance(value, Sequence) else [value] * groups
            at = first + word * groups
            self.lanes[at : at + groups] = array("d", values)

    def stacked_lanes(self) -> Tensor:
        """[rows, LANE_WORDS, groups] float64."""
        shape = len(self.ops), layout.LANE_WORDS, self.groups
        if not self.lanes:
            return torch.zeros(shape, dtype=torch.float64, device="cpu")
        return torch.frombuffer(self.lanes, dtype=torch.float64).view(shape)


def assemble(
    entries: Sequence[Entry],
    columns: Sequence[str],
    groups: int,
    before: Assembled | None = None,
    histories: Sequence[Row] = (),
) -> Assembled:
    """One program out of several schedulers' rows: column by column, in the schedulers' order.

    Args:
        before: the last program of the same schedulers, whose ``aux`` is kept if it is the same.
        histories: HISTORY rows, which stand behind the others.

    Raises:
        ValueError: a table that holds one schedule's values stands beside another schedule of the
            same column, which it would overrule.
    """
    if not entries and not histories:
        return _nothing(groups)
    return _assemble(entries, columns, groups, before, histories)


def _assemble(
    entries: Sequence[Entry],
    columns: Sequence[str],
    groups: int,
    before: Assembled | None,
    histories: Sequence[Row],
) -> Assembled:
    targets = list(dict.fromkeys(name for entry in entries for name in entry.segments))
    assembly = _Assembly(columns, groups)
    for name in targets:
        assembly.bracket(layout.LOAD, name)
        users = [entry for entry in entries if name in entry.segments]
        if len(users) > 1 and any(row.recursive for e in users for row in e.segments[name]):
            raise ValueError(
                f"A tabulated composite of recursive schedules cannot share {name} with another "
                "schedule inside one launch; fuse one of them and step the other by itself"
            )
        for entry in users:
            for row in entry.segments[name]:
                assembly.add(row, entry)
        assembly.bracket(layout.STORE, name)
    scheduled = len(assembly.ops)
    for row in histories:
        assembly.add(row, Entry({}))
    rows = [row for entry in entries for row in entry.rows()]
    ends = (end for entry in entries if (end := entry.ends()) is not None)
    return Assembled(
        torch.tensor(assembly.ops, dtype=torch.int64, device="cpu").view(-1, layout.OP_WORDS),
        assembly.stacked_lanes(),
        _joined(assembly.tables, before),
        assembly.tables,
        range(scheduled, len(assembly.ops)),
        [words[layout.EPOCH] for words in assembly.ops],
        assembly.sources,
        targets,
        min(ends, default=None),
        any(row.recursive for row in rows),
    )


@functools.cache
def _nothing(groups: int) -> Assembled:
    """The program of no schedule: the same object for every optimizer."""
    return _assemble([], (), groups, None, ())


def _joined(tables: Sequence[Tensor], before: Assembled | None) -> Tensor:
    same = before is not None and len(before.tables) == len(tables)
    if before is not None and same and all(map(is_, before.tables, tables)):
        return before.aux
    return torch.cat(list(tables)) if tables else NO_TABLE


@functools.lru_cache(maxsize=256)
def table_of(*values: float) -> Tensor:
    """A short table; the same object for the same values."""
    return torch.tensor(values, dtype=torch.float64, device="cpu")
