"""Triton's interpreter without most of its bookkeeping, for runs of thousands of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch


def _cached_dtypes(look_up: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The numpy dtype of a Triton dtype; Triton builds its dict of all of them in each call."""
    known: dict[str, Any] = {}

    def dtype_of(dtype: Any) -> Any:
        element = dtype.scalar
        name = element.name
        if name not in known:
            known[name] = look_up(element)
        return known[name]

    return dtype_of


def _bind_semantic(obj: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
    """Put a built-in function in place that knows its ``_semantic``: one call, not two."""
    from triton.runtime import interpreter

    semantic, inner = interpreter.interpreter_semantic, getattr(member, "__wrapped__", member)

    def bound(*args: Any, **kwargs: Any) -> Any:
        kwargs["_semantic"] = semantic
        return inner(*args, **kwargs)

    scope.set_attr(obj, name, bound)


def _lean_tensor() -> Callable[..., None]:
    """``tl.tensor.__init__``, which makes the shape of a block once."""
    from triton.language import core

    shapes: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def make(self: Any, handle: Any, type: Any) -> None:
        sizes = tuple(type.shape) if type.is_block() else ()
        if sizes not in shapes:
            plain = _tensor(handle, type)
            shapes[sizes] = plain.shape, plain.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shapes[sizes]

    original = core.tensor.__init__

    def _tensor(handle: Any, type: Any) -> Any:
        blank = core.tensor.__new__(core.tensor)
        original(blank, handle, type)
        return blank

    return make


@contextmanager
def quick() -> Iterator[None]:
    """Within, the interpreter runs the same operations in a tenth of the time (Triton 3.7.1).

    It does not check integers for overflow. See Note [Recorded programs] of ``tests/replay``.
    """
    from triton import language as tl
    from triton.language import core
    from triton.runtime import interpreter

    from tests.replay import replaying

    options = interpreter.interpreter_builder.options
    checked = options.sanitize_overflow
    object.__setattr__(options, "sanitize_overflow", False)  # a frozen dataclass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_get_np_dtype", _cached_dtypes(interpreter._get_np_dtype))
        patch.setattr(interpreter, "_validate_np_data_size", lambda *_: True)
        patch.setattr(interpreter, "_patch_attr", _bind_semantic)
        patch.setattr(core.tensor, "__init__", _lean_tensor())
        language = interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": core}))
        try:
            with replaying():
                yield
        finally:
            language.restore()
            object.__setattr__(options, "sanitize_overflow", checked)


@contextmanager
def round_as_gpus_do() -> Iterator[None]:
    """Within, the interpreter rounds float32 to the nearest bfloat16, ties to even.

    By itself it cuts the lower bits off (Triton 3.7.1), which no GPU does.
    """
    from triton import language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.array(values)).to(torch.bfloat16)
            return rounded.view(torch.uint16).numpy()
        return convert(values, source, target, rounding)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", converted)
        yield
