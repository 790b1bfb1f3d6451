"""Programs of Triton's interpreter, recorded at their first run and replayed at the next ones.

Note [Recorded programs]
~~~~~~~~~~~~~~~~~~~~~~~~
Of ten microseconds that the interpreter takes for an operation, nine go into finding its types: the
same ones each time. So the first run of a jitted function with arguments of given types notes what
it asks of Triton's builder, and the next runs make the same numpy calls, a tenth of the time.

A *trace* is a tree, for a function may branch on what it loads: a node is a run of operations, and
after it the number that Python asked for (``if``, ``while``), whose answer chooses the child. Where
an answer is new, the function runs again from its top, is told the numbers it had until then, and
goes on from there: nothing is loaded, stored or added twice.

What is recorded reaches numpy through the builder alone: a `Slot` stands for each array, and has
no data to read. So an operation of the language that does not go through the builder fails.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from triton import language as tl
from triton.language import core
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle, interpreter_builder
from triton.runtime.jit import _normalize_ty

from .operations import Operation, Slot, Values
from .traces import NOTED, plain, put_together, recorder


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A jitted function called by another: one operation of the caller, with its own trace."""
    frame, function = recorder.frame, self.rewrite()
    trace, handles = recorder.trace(function, args, kwargs)
    places = [x.index if type(x) is Slot else x.data for x in handles]

    def run(values: Values) -> None:
        values.append(trace.run([values[x] if type(x) is int else x for x in places]))

    def make() -> tuple[Operation, Any]:
        run(frame.values)
        return run, tl.int1

    called = frame.add(make).index
    template, dtypes = trace.templates[frame.ask(lambda values: values[called][0])]
    return put_together(template, [_picked(called, k, dtype) for k, dtype in enumerate(dtypes)])


def _picked(called: int, k: int, dtype: Any) -> Slot:
    """Result k of the function whose results are value ``called``."""
    frame = recorder.frame

    def run(values: Values) -> None:
        values.append(values[called][1][k])

    def make() -> tuple[Operation, Any]:
        run(frame.values)
        return run, dtype

    return frame.add(make)


def _launch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    """A kernel on CPU tensors."""
    if warmup:
        return
    recorder.forget_if_large()
    function, constants = self.rewrite(), _constants(self.fn)
    known = {name: value for name, value in kwargs.items() if name in self.arg_names}
    named = inspect.getcallargs(function, *args, **known)
    named = {
        name: value if name in constants else interpreter._implicit_cvt(value)
        for name, value in named.items()
    }
    trace, handles = recorder.trace(function, (), named)
    sizes = grid(named) if callable(grid) else grid
    sizes = (*sizes, 1, 1)[:3]
    arrays = [one.data for one in handles]
    plain.set_grid_dim(*sizes)
    try:
        with np.errstate(all="ignore"):
            for index in np.ndindex(*sizes):
                plain.set_grid_idx(*index)
                trace.run(arrays.copy())
    except Exception as error:
        raise interpreter.InterpreterError(repr(error)) from error


@functools.cache
def _constants(function: Callable[..., Any]) -> set[str]:
    annotations = function.__annotations__.items()
    return {name for name, kind in annotations if _normalize_ty(kind) == "constexpr"}


def _bool(self: Any) -> bool:
    if type(self.handle) is not Slot:
        return bool(self.handle.data) if self.handle.data.size == 1 else True
    index = self.handle.index
    if recorder.frame.values[index].size != 1:
        return True
    return recorder.frame.ask(lambda values: bool(values[index]))


def _index(self: Any) -> int:
    if type(self.handle) is not Slot:
        return int(self.handle.data.squeeze())
    index = self.handle.index
    return recorder.frame.ask(lambda values: int(values[index].squeeze()))


def _reduce(input: Any, axis: Any, combine_fn: Any, keep_dims: bool = False, **_: Any) -> Any:
    """``tl.reduce`` of one tensor, which does not go through the builder."""
    frame, index, dtype = recorder.frame, input.handle.index, input.handle.dtype
    reduction = interpreter.ReduceOps(axis, combine_fn, keep_dims)

    def reduced(values: Values) -> Any:
        return reduction.apply(core.tensor(TensorHandle(values[index], dtype), input.type))

    def make() -> tuple[Operation, Any]:
        first = reduced(frame.values)
        frame.values.append(first.handle.data)
        return lambda values: values.append(reduced(values).handle.data), first.type

    slot = frame.add(make)
    return core.tensor(Slot(slot.index, slot.dtype.scalar), slot.dtype)


@contextmanager
def replaying() -> Iterator[None]:
    """Within, kernels are recorded and replayed; Triton's language is patched already."""
    with pytest.MonkeyPatch.context() as patch:
        for name, method in NOTED.items():
            patch.setattr(interpreter_builder, name, method)
        patch.setattr(interpreter.InterpretedFunction, "__call__", _call)
        patch.setattr(interpreter.InterpretedFunction, "run", _launch)
        patch.setattr(core.tensor, "__bool__", _bool)
        patch.setattr(core.tensor, "__index__", _index)
        for module in (tl, core):
            patch.setattr(module, "reduce", _reduce)
        yield
