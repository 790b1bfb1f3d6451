"""A first step on the CPU, with memory of its own instead of a buffer and a param table."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fused_sched.rules.rule import Rule
from fused_sched.tables import layout

from .native_library import DLPACK_DEVICES, DLPACK_DTYPES, kind_numbers
from .native_structs import UPDATE

_NOTHING = dict.fromkeys(("ops", "lanes", "aux", "rows", "scale", "found_inf"), 0)
"""No schedule, no scaler."""


@dataclass(slots=True)
class FirstRow:
    """A param of a first step, and where it was then; param, gradient and state have one dtype.

    Attributes:
        index: its number among the optimizer's params.
        group: its param group's number.
        states: its state tensors by name.
    """

    param: Tensor
    index: int
    group: int
    states: Mapping[str, Tensor]
    address: int
    shape: torch.Size
    dtype: torch.dtype

    def is_in_place(self) -> bool:
        """Whether the param is still there."""
        now = self.param.data_ptr(), self.param.shape, self.param.dtype
        return now == (self.address, self.shape, self.dtype)


def make_first_step(
    module: Any,
    optimizer: Any,
    params: Sequence[Tensor],
    rows: Sequence[FirstRow],
    values: Sequence[Sequence[float]],
    rule: Rule,
    code: int,
    forced: Mapping[None, str | None],
) -> Any:
    """A CachedLaunch of csrc/cached_launch.cpp that no full step has come before.

    Args:
        module: the compiled library.
        values: each group's, by column.
        code: the rule's address, of native_rules.
        forced: where the engine asked for is noted.
    """
    count = len(params)
    dtypes = tuple(dict.fromkeys([row.dtype for row in rows]))
    kinds = _kinds(dtypes)
    memory = _memory(rows, dtypes, count, values, list(rule.states))
    slots = layout.STATE0 + len(rule.states)
    return module.CachedLaunch(
        _fields(memory, slots, len(rows), count, values, kinds.data_ptr(), code),
        None,
        (DLPACK_DEVICES["cpu"], 0),
        optimizer.param_groups,
        tuple(params),
        _facts(rows, count),
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        forced,
        0,
        (memory, kinds, [row.states for row in rows]),
        None,
    )


@functools.cache
def _kinds(dtypes: tuple[torch.dtype, ...]) -> Tensor:
    return kind_numbers(tuple((dtype,) * 3 for dtype in dtypes))


def _memory(
    rows: Sequence[FirstRow],
    dtypes: Sequence[torch.dtype],
    params: int,
    values: Sequence[Sequence[float]],
    names: Sequence[str],
) -> array[int]:
    """All that a launch needs: addresses, facts, ends, offsets, clock and record, in one array."""
    columns = [
        (
            *(row.address, 0),
            *[row.states[n].data_ptr() if n in row.states else 0 for n in names],
            *(row.shape.numel(), row.group, dtypes.index(row.dtype), row.index, 0),
        )
        for row in rows
    ]
    memory = array("q", [*chain(*zip(*columns, strict=True)), *[0] * (params + layout.CLOCK_WORDS)])
    memory.frombytes(array("d", chain(*zip(*values, strict=True))).tobytes() * 2)
    return memory


def _fields(
    memory: array[int],
    slots: int,
    tensors: int,
    params: int,
    values: Sequence[Sequence[float]],
    kinds: int,
    rule: int,
) -> bytes:
    """UPDATE, into the memory."""
    columns, groups = len(values[0]), len(values)
    addresses = memory.buffer_info()[0]
    info = addresses + 8 * slots * tensors
    ends = info + 8 * layout.INFO * tensors
    offsets = ends + 8 * tensors
    clock = offsets + 8 * params
    record = clock + 8 * layout.CLOCK_WORDS
    return UPDATE.pack(
        {
            **_NOTHING,
            "addresses": addresses,
            "info": info,
            "offsets": offsets,
            "recurrences": 0,
            "record": record,
            "clock": clock,
            "kinds": kinds,
            "ends": ends,
            "slots": slots,
            "tensors": tensors,
            "params": params,
            "columns": columns,
            "groups": groups,
            "rule": rule,
            "advance": layout.COUNTED,
        }
    )


def _facts(rows: Sequence[FirstRow], params: int) -> bytes:
    """See ParamRows::note in csrc/cached_params.h."""
    facts = array("q", (-1, 0, *DLPACK_DTYPES[torch.float32]) * params)
    for column, row in enumerate(rows):
        at = 4 * row.index
        facts[at : at + 4] = array("q", (column, 1, *DLPACK_DTYPES[row.dtype]))
    return facts.tobytes()
