"""Schedule rows on the host, and their assembly into one program's tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import layout

Lanes = Mapping[int, float | Sequence[float]]


@dataclass
class Row:
    """One op of a schedule program.

    Attributes:
        opcode: one of ``layout``'s opcodes.
        lanes: word -> value, a float for all groups or one per group.
        words: op word -> integer, beside those named here.
        aux: the row's table, in float64.
        epoch, count: torch's ``last_epoch`` and ``_step_count`` now.
        source: the scheduler whose position this row carries, if any.
        span: rows to the one that follows (a child jumps over its later siblings).
        child: it advances when its SequentialLR says so, not by itself.
        ends: advances until a table or a OneCycleLR is at its end, None if it never is.
        recursive: its table was computed from the lr of now, so an edit of lr makes it stale.
    """

    opcode: int
    lanes: Lanes = field(default_factory=dict)
    words: Mapping[int, int] = field(default_factory=dict)
    aux: Sequence[float] = ()
    epoch: int = 0
    count: int = 0
    source: Any = None
    span: int = 1
    child: bool = False
    ends: int | None = None
    recursive: bool = False


Segments = dict[str, list[Row]]
"""Rows by the name of the hyper column that they move."""


@dataclass
class Assembled:
    """A program on the host, as ``Block.send_values`` takes it, and who stands in which row."""

    ops: Tensor
    lanes: Tensor
    aux: Tensor
    sources: list[tuple[int, weakref.ref[Any]]]
    columns: list[str]
    ends: int | None  # optimizer steps until a row is at its end
    recursive: bool


def _lane_values(row: Row, groups: int) -> Tensor:
    lanes = torch.zeros(layout.LANE_WORDS, groups, dtype=torch.float64)
    for word, value in row.lanes.items():
        lanes[word] = torch.tensor(value, dtype=torch.float64)
    return lanes


def _op_values(row: Row, index: int, aux_start: int, interval: int, on_skip: bool) -> list[int]:
    words = [0] * layout.OP_WORDS
    words[layout.OPCODE] = row.opcode
    words[layout.DERIVED] = -1
    words[layout.NEXT] = index + row.span
    words[layout.INTERVAL] = 1 if row.child else interval
    words[layout.EPOCH] = row.epoch
    words[layout.COUNT] = row.count
    words[layout.COUNT_INCREMENT] = 1
    words[layout.AUX_START] = aux_start
    words[layout.ON_SKIP] = int(on_skip or row.child)
    for word, value in row.words.items():
        words[word] = value
    return words


@dataclass
class Entry:
    """A scheduler's rows in a program, with its cadence."""

    segments: Segments
    interval: int = 1
    tick: int = 0
    on_skip: bool = False


def assemble(entries: Iterable[Entry], columns: Sequence[str], groups: int) -> Assembled:
    """One program out of several schedulers' rows: column by column, in the schedulers' order."""
    entries = list(entries)
    targets = list(dict.fromkeys(name for entry in entries for name in entry.segments))
    ops: list[list[int]] = []
    lanes: list[Tensor] = []
    aux: list[float] = []
    sources: list[tuple[int, weakref.ref[Any]]] = []

    def bracket(opcode: int, name: str) -> None:
        column = columns.index(name)
        words = {layout.COLUMN: column}
        log_name = f"log_{name}"
        if log_name in columns:
            words[layout.DERIVED] = columns.index(log_name)
        ops.append(_op_values(Row(opcode, words=words), len(ops), 0, 1, False))
        lanes.append(torch.zeros(layout.LANE_WORDS, groups, dtype=torch.float64))

    for name in targets:
        bracket(layout.LOAD, name)
        for entry in entries:
            for row in entry.segments.get(name, ()):
                if row.source is not None:
                    sources.append((len(ops), weakref.ref(row.source)))
                words = _op_values(row, len(ops), len(aux), entry.interval, entry.on_skip)
                words[layout.TICK] = 0 if row.child else entry.tick
                ops.append(words)
                lanes.append(_lane_values(row, groups))
                aux.extend(row.aux)
        bracket(layout.STORE, name)
    rows = [(e, row) for e in entries for part in e.segments.values() for row in part]
    ends = (e.interval * row.ends - e.tick for e, row in rows if row.ends is not None)
    return Assembled(
        torch.tensor(ops, dtype=torch.int64).view(-1, layout.OP_WORDS),
        torch.stack(lanes) if lanes else torch.zeros(0, layout.LANE_WORDS, groups).double(),
        torch.tensor(aux, dtype=torch.float64),
        sources,
        targets,
        min(ends, default=None),
        any(row.recursive for _, row in rows),
    )
