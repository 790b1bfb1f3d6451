"""Traces of jitted functions, and the builder that records them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from triton.language import core
from triton.runtime.interpreter import InterpreterBuilder

from .operations import LOWERED, PURE, Operation, Slot, Values, whole, with_data

MOST_OPERATIONS = 500_000
"""Operations to keep, some 200 MB; past them all are forgotten."""


class _Tensor(NamedTuple):
    """A tensor among the arguments or results of a function."""

    index: int
    type: Any
    dtype: Any


class _Node:
    """Operations without a branch, and what comes after them."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.dtypes: list[Any] = []
        self.ask: Callable[[Values], Any] | None = None
        self.children: dict[Any, _Node] = {}
        self.result: tuple[int, list[Any]] | None = None


def take_apart(thing: Any, tensors: list[Any]) -> tuple[Any, Any]:
    """(what two things share if one trace serves both, the thing with each tensor's number)."""
    if isinstance(thing, core.tensor):
        tensors.append(thing.handle)
        mark = _Tensor(len(tensors) - 1, thing.type, thing.handle.dtype)
        return (str(thing.type), str(thing.handle.dtype)), mark
    if isinstance(thing, (tuple, list, core.tuple)):
        parts = [take_apart(part, tensors) for part in thing]
        return (type(thing), *(key for key, _ in parts)), (type(thing), [one for _, one in parts])
    if isinstance(thing, core.constexpr):
        return (core.constexpr, take_apart(thing.value, tensors)[0]), thing
    return (type(thing), repr(thing) if isinstance(thing, float) else thing), thing


def put_together(template: Any, handles: list[Any]) -> Any:
    if isinstance(template, _Tensor):
        return core.tensor(handles[template.index], template.type)
    if type(template) is tuple:
        kind, parts = template
        made = [put_together(part, handles) for part in parts]
        return kind(*made) if hasattr(kind, "_fields") else kind(made)
    return template


class Trace:
    """One function with one signature of arguments."""

    def __init__(self, function: Callable[..., Any], arguments: Any, dtypes: list[Any]) -> None:
        self.function, self.arguments, self.dtypes = function, arguments, dtypes
        self.root = _Node()
        self.results: dict[Any, tuple[int, Any, list[Any]]] = {}
        self.templates: list[tuple[Any, list[Any]]] = []

    def run(self, values: Values) -> tuple[int, list[Any]]:
        """The number of the result's template, and the result's arrays."""
        node: _Node | None = self.root
        while node is not None:
            for operation in node.operations:
                operation(values)
            if node.result is not None:
                number, places = node.result
                return number, [values[one] if type(one) is int else one.data for one in places]
            node = None if node.ask is None else node.children.get(node.ask(values))
        return self._record(values)

    def _record(self, values: Values) -> tuple[int, list[Any]]:
        """Run the function, telling it the values there are already."""
        outer, recorder.frame = recorder.frame, _Frame(self, values)
        try:
            slots = [Slot(i, dtype) for i, dtype in enumerate(self.dtypes)]
            positional, named = put_together(self.arguments, slots)
            result = self.function(*positional, **dict(named))
            handles: list[Any] = []
            key, template = take_apart(result, handles)
            if key not in self.results:
                self.results[key] = len(self.templates)
                self.templates.append((template, [one.dtype for one in handles]))
            places = [one.index if type(one) is Slot else one for one in handles]
            number = self.results[key]
            recorder.frame.node.result = number, places
            return number, [values[one] if type(one) is int else one.data for one in places]
        finally:
            recorder.frame = outer


class _Frame:
    """A run that is being recorded."""

    def __init__(self, trace: Trace, values: Values) -> None:
        self.values, self.node = values, trace.root
        self.next, self.at = len(trace.dtypes), 0

    def add(self, make: Callable[[], tuple[Operation, Any]]) -> Any:
        """The slot of one more operation's result, if it has one.

        Args:
            make: runs the operation, and gives it and the dtype of its result.
        """
        if self.next == len(self.values):  # not known from the run so far
            operation, dtype = make()
            self.node.operations.append(operation)
            self.node.dtypes.append(dtype)
            recorder.operations += 1
        dtype = self.node.dtypes[self.at]
        self.next, self.at = self.next + 1, self.at + 1
        return None if dtype is None else Slot(self.next - 1, dtype)

    def ask(self, question: Callable[[Values], Any]) -> Any:
        """The answer, on which the rest of the function may depend."""
        answer = question(self.values)
        self.node.ask = question
        self.node = self.node.children.setdefault(answer, _Node())
        self.at = 0
        return answer


class Recorder:
    """What is being recorded, and what has been."""

    def __init__(self) -> None:
        self.frame: Any = None
        self.operations = 0
        self.traces: dict[Any, Trace] = {}

    def forget_if_large(self) -> None:
        """Between launches only: a trace that runs is not to be recorded twice."""
        if self.operations > MOST_OPERATIONS:
            self.traces.clear()
            self.operations = 0

    def trace(
        self, function: Callable[..., Any], positional: Any, named: dict[str, Any]
    ) -> tuple[Trace, list[Any]]:
        """The trace for these arguments, and their handles."""
        handles: list[Any] = []
        key, arguments = take_apart((positional, tuple(named.items())), handles)
        if (function, key) not in self.traces:
            dtypes = [one.dtype for one in handles]
            self.traces[function, key] = Trace(function, arguments, dtypes)
        return self.traces[function, key], handles


recorder = Recorder()

# -- Triton's builder ------------------------------------------------------------------------------

plain = InterpreterBuilder()
"""A builder that notes nothing: what is noted runs on it."""


def _noted(name: str) -> Callable[..., Any]:
    method, lower = getattr(plain, name), LOWERED.get(name, whole)

    def note(*args: Any) -> Any:
        if name in PURE and not any(type(x) is Slot for x in args):
            return method(*args)
        values = recorder.frame.values

        def make() -> tuple[Operation, Any]:
            for x in args:
                if type(x) is Slot:
                    x.shape = np.shape(values[x.index])
            result = method(*with_data(args, values))
            values.append(None if result is None else result.data)
            return lower(method, args), None if result is None else result.dtype

        return recorder.frame.add(make)

    return note


def _reads_numbers(method: Any) -> bool:
    """Whether it looks at arrays or at the grid itself; the others only call those that do."""
    return bool({"data", "grid_idx", "grid_dim"} & set(method.__code__.co_names))


NOTED = {
    name: _noted(name)
    for name, method in inspect.getmembers(InterpreterBuilder, inspect.isfunction)
    if _reads_numbers(method) and not name.startswith(("__", "set_"))
}
"""In place of the builder's methods of these names: they add to the record."""
