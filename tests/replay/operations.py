"""What Triton's interpreter does to numpy arrays, without what it does to find out.

Each function here makes an ``Operation`` of a call of Triton's builder, for ``tests/replay``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from triton import language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

Values = list[Any]
"""The arrays of one run: its arguments, then the result of each operation."""

Operation = Callable[[Values], None]
"""Appends its result to the values."""


class Slot(TensorHandle):
    """In a recording, what stands for an array: its place among the values."""

    def __init__(self, index: int, dtype: Any) -> None:
        self.index, self.dtype, self.attr = index, dtype, {}

    @property
    def data(self) -> Any:
        raise NotImplementedError("tests/replay: an array is read beside Triton's builder")


def with_data(args: tuple[Any, ...], values: Values) -> list[Any]:
    return [TensorHandle(values[x.index], x.dtype) if type(x) is Slot else x for x in args]


def whole(method: Callable[..., Any], args: tuple[Any, ...]) -> Operation:
    """Any method of the builder, as Triton has it."""

    def run(values: Values) -> None:
        result = method(*with_data(args, values))
        values.append(None if result is None else result.data)

    return run


def _of_arrays(function: Callable[..., Any], *args: Any) -> Operation:
    """A function of arrays, of which some are constants."""
    places = [x.index if type(x) is Slot else None for x in args]
    data = [None if type(x) is Slot else x.data for x in args]
    if len(args) == 1:
        return lambda values, i=places[0]: values.append(function(values[i]))
    if len(args) == 2 and None not in places:
        return lambda values, i=places[0], j=places[1]: values.append(
            function(values[i], values[j])
        )
    if len(args) == 2 and places[0] is None:
        return lambda values, x=data[0], j=places[1]: values.append(function(x, values[j]))
    if len(args) == 2:
        return lambda values, i=places[0], y=data[1]: values.append(function(values[i], y))
    return lambda values: values.append(
        function(*[x if i is None else values[i] for i, x in zip(places, data)])
    )


def _elementwise(method: Callable[..., Any], args: tuple[Any, ...]) -> Operation:
    *arrays, function = args
    return _of_arrays(function, *arrays)


def _add_to_pointer(method: Callable[..., Any], args: tuple[Any, ...]) -> Operation:
    pointer, offset = args
    size = np.uint64(max(1, pointer.get_element_ty().primitive_bitwidth // 8))
    if type(offset) is Slot:
        return _of_arrays(lambda p, o: p + o.astype(np.uint64) * size, pointer, offset)
    moved = offset.data.astype(np.uint64) * size
    return _of_arrays(lambda p: p + moved, pointer)


def _cast(method: Callable[..., Any], args: tuple[Any, ...]) -> Operation:
    source, target = args
    if tl.bfloat16 in (source.dtype.scalar, target.scalar):  # kept in integers
        return whole(method, args)
    dtype = interpreter._get_np_dtype(target)
    return _of_arrays(lambda x: x.astype(dtype), source)


def _splat(method: Callable[..., Any], args: tuple[Any, ...]) -> Operation:
    block, source = args
    shape = tuple(block.shape)
    count = math.prod(shape)
    if len(shape) == 1:
        return _of_arrays(lambda x: x.repeat(count), source)
    return _of_arrays(lambda x: x.repeat(count).reshape(shape), source)


def _load(method: Callable[..., Any], args: tuple[Any, ...]) -> Operation:
    """Without a mask, of what has the shape that the first one has."""
    pointers = args[0]
    dtype, shape = interpreter._get_np_dtype(pointers.get_element_ty()), pointers.shape
    mask, other = np.ones(shape, bool), np.zeros(shape, dtype)
    return _of_arrays(lambda p: interpreter._interpreter.load(p, mask, other, dtype), pointers)


def _load_masked(method: Callable[..., Any], args: tuple[Any, ...]) -> Operation:
    pointers, mask, other = args[:3]
    dtype = interpreter._get_np_dtype(pointers.get_element_ty())
    load = interpreter._interpreter.load
    if other is not None:
        return _of_arrays(lambda p, m, o: load(p, m, o, dtype), pointers, mask, other)
    zeros = np.zeros(pointers.shape, dtype)
    return _of_arrays(lambda p, m: load(p, m, zeros, dtype), pointers, mask)


LOWERED = {
    "binary_op": _elementwise,
    "unary_op": _elementwise,
    "ternary_op": _elementwise,
    "cast_impl": _cast,
    "create_splat": _splat,
    "create_load": _load,
    "create_masked_load": _load_masked,
    "create_addptr": _add_to_pointer,
}
"""What the most frequent ones are without their handles."""

PURE = {"binary_op", "unary_op", "ternary_op", "cast_impl", "create_splat", "create_addptr"}
"""The builder's functions that are run once where all arguments are constants."""
