"""A first step on the CPU, with memory of its own instead of a block and a param table."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fused_sched.tables import layout

from .native_library import DLPACK_DEVICES, DLPACK_DTYPES, RULES, kind_numbers


@dataclass(slots=True)
class FirstMember:
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
    members: Sequence[FirstMember],
    values: Sequence[Sequence[float]],
    rule: str,
    forced: Mapping[None, str | None],
) -> Any:
    """A LeanStep of csrc/lean_step.cpp that no whole step has come before.

    Args:
        module: the compiled library.
        values: each group's, by column.
        forced: where the engine asked for is noted.
    """
    dtypes = tuple(dict.fromkeys([member.dtype for member in members]))
    kinds = _kinds(dtypes)
    memory = _table(members, dtypes)
    fields = _extend(memory, len(members), len(params), values, kinds.data_ptr(), RULES[rule])
    return module.LeanStep(
        fields,
        None,
        (DLPACK_DEVICES["cpu"], 0),
        optimizer.param_groups,
        tuple(params),
        _facts(members, len(params)),
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        forced,
        0,
        (memory, kinds, [member.states for member in members]),
        None,
    )


@functools.cache
def _kinds(dtypes: tuple[torch.dtype, ...]) -> Tensor:
    return kind_numbers(tuple((dtype,) * 3 for dtype in dtypes))


def _table(members: Sequence[FirstMember], dtypes: Sequence[torch.dtype]) -> array[int]:
    """Addresses and facts, as a ParamTable has them."""
    addresses = [
        (member.address, 0, *[state.data_ptr() for state in member.states.values()], 0, 0, 0)
        for member in members
    ]
    facts = [(m.shape.numel(), m.group, dtypes.index(m.dtype), m.index) for m in members]
    slots = list(zip(*addresses, strict=False))[: layout.SLOTS]
    return array("q", [*chain(*slots, *zip(*facts, strict=True))])


def _extend(
    memory: array[int],
    tensors: int,
    params: int,
    values: Sequence[Sequence[float]],
    kinds: int,
    rule: int,
) -> bytes:
    """Put all that a launch needs behind the table; the fields of UpdateArgs of csrc/cpu.h."""
    columns, groups = len(values[0]), len(values)
    memory.frombytes(bytes(8 * (tensors + params + layout.CLOCK_WORDS)))
    record = array("d", chain(*zip(*values, strict=True)))
    memory.frombytes(record.tobytes() * 2)
    addresses = memory.buffer_info()[0]
    info = addresses + 8 * layout.SLOTS * tensors
    ends = info + 8 * layout.INFO * tensors
    offsets = ends + 8 * tensors
    clock = offsets + 8 * params
    numbers = clock + 8 * layout.CLOCK_WORDS
    nothing = 0, 0, 0, 0, 0  # no program, no scaler
    sizes = 0, tensors, columns, groups
    tables = addresses, info, offsets, numbers, clock
    words = *tables, *nothing, kinds, ends, *sizes, rule, layout.COUNTED
    return array("q", words).tobytes()


def _facts(members: Sequence[FirstMember], params: int) -> bytes:
    """See Members::note in csrc/lean_members.h."""
    facts = array("q", (-1, 0, *DLPACK_DTYPES[torch.float32]) * params)
    for column, member in enumerate(members):
        at = 4 * member.index
        facts[at : at + 4] = array("q", (column, 1, *DLPACK_DTYPES[member.dtype]))
    return facts.tobytes()
