"""The structs that Python passes to the compiled library: their fields, stated once.

``native_sources.py`` writes them as C++, into ``structs.h``; Python packs them by name. The build
imports this where neither torch nor Triton is installed.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any


@dataclass(frozen=True, eq=False)
class Struct:
    """A struct of C++, each of whose fields has eight bytes.

    Attributes:
        fields: (C++ type, name, comment); "" for no comment.
        first: another struct, that this one begins with, and its name in this one.
    """

    name: str
    fields: tuple[tuple[str, str, str], ...]
    first: tuple[Struct, str] | None = None

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Of all fields, those of the first struct too."""
        before = () if self.first is None else self.first[0].names
        return *before, *(name for _, name, _ in self.fields)

    @functools.cached_property
    def _in_order(self) -> Callable[[Mapping[str, int]], tuple[int, ...]]:
        get: Callable[[Any], tuple[int, ...]] = itemgetter(*self.names)
        return get

    @functools.cached_property
    def _pack(self) -> Callable[..., bytes]:
        return struct.Struct(f"{len(self.names)}q").pack

    def pack(self, values: Mapping[str, int]) -> bytes:
        """The struct's bytes, from its fields by name; an address is a number.

        Raises:
            KeyError: a field is missing.
        """
        return self._pack(*self._in_order(values))

    def text(self) -> str:
        """The struct as C++."""
        parts = [] if self.first is None else [(self.first[0].name, self.first[1], "")]
        lines = [
            f"  {kind} {name};{comment and f'  // {comment}'}"
            for kind, name, comment in (*parts, *self.fields)
        ]
        size = f"static_assert(sizeof({self.name}) == 8 * {len(self.names)});"
        return "\n".join([f"struct {self.name} {{", *lines, "};", size, ""])


UPDATE = Struct(
    "UpdateArgs",
    (
        ("int64_t*", "addresses", "[slots, tensors]"),
        ("const int64_t*", "info", "[INFO, tensors]"),
        ("int64_t*", "offsets", "[params], launches that each param missed"),
        ("double*", "recurrences", "[2, recurrences of the rule, params]"),
        ("double*", "record", "[2, columns, groups]"),
        ("int64_t*", "clock", "[CLOCK_WORDS]"),
        ("int64_t*", "ops", "[rows, OP_WORDS]"),
        ("double*", "lanes", "[rows, LANE_WORDS, groups]"),
        ("const double*", "aux", ""),
        ("const float*", "scale", "null: gradients are not scaled"),
        ("const float*", "found_inf", "null: no scaler"),
        ("const int64_t*", "kinds", "[kinds, 3] dtypes of param, grad, state; on the host"),
        ("int64_t*", "ends", "[tensors], scratch of the CPU's"),
        ("int64_t", "rows", ""),
        ("int64_t", "slots", ""),
        ("int64_t", "tensors", ""),
        ("int64_t", "params", ""),
        ("int64_t", "columns", ""),
        ("int64_t", "groups", ""),
        (
            "int64_t",
            "rule",
            "on a CPU an Update, of cpu_rules(); in cuda.cu a number in FS_CUDA_RULES",
        ),
        ("int64_t", "advance", "STAY, CALLED or COUNTED"),
    ),
)
"""One launch."""

ADVANCE = Struct(
    "AdvanceArgs",
    (
        ("double*", "record", "[2, columns, groups]"),
        ("int64_t*", "clock", "[CLOCK_WORDS]"),
        ("int64_t*", "ops", "[rows, OP_WORDS]"),
        ("double*", "lanes", "[rows, LANE_WORDS, groups]"),
        ("const double*", "aux", ""),
        ("double*", "trace", "null, or [steps, columns, groups]"),
        ("const double*", "metric", "null, or [1]"),
        ("int64_t", "rows", ""),
        ("int64_t", "columns", ""),
        ("int64_t", "groups", ""),
        ("int64_t", "steps", ""),
    ),
)
"""A schedule alone."""

_WHERE = (("int64_t", "device", ""), ("void*", "stream", "cudaStream_t"))

CUDA_UPDATE = Struct(
    "CudaUpdateArgs",
    (
        ("const int32_t*", "chunks", "[2, chunk_count]: (tensor, chunk of it)"),
        ("int64_t", "chunk_count", ""),
        ("int64_t", "chunk_size", "elements"),
        ("int64_t", "kind_count", ""),
        *_WHERE,
    ),
    first=(UPDATE, "args"),
)

CUDA_ADVANCE = Struct("CudaAdvanceArgs", _WHERE, first=(ADVANCE, "args"))

TRITON_LAUNCH = Struct(
    "TritonFields",
    (
        ("int64_t", "function", "CUfunction"),
        ("int64_t", "blocks", ""),
        ("int64_t", "threads", ""),
        ("int64_t", "shared", "bytes"),
        ("uint64_t", "grads", "address of row GRAD of the table that the kernel reads"),
        ("int64_t", "tensors", "of the row"),
        ("int64_t", "advance", "number of the parameter `advance`"),
    ),
)
"""A kernel that Triton has compiled; its parameters follow, each in eight bytes of its own."""

STRUCTS = (UPDATE, ADVANCE, CUDA_UPDATE, CUDA_ADVANCE, TRITON_LAUNCH)
