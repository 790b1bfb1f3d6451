"""Triton's interpreter without two thirds of its bookkeeping, for runs of thousands of steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    from triton.runtime import interpreter

    if self.fn.__module__.startswith("triton."):  # it sees the language by another name
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*args, **kwargs)


@contextmanager
def quick() -> Iterator[None]:
    """Within, the interpreter runs the same operations in half the time (Triton 3.7.1).

    It does not check integers for overflow, and does not patch ``triton.language`` anew in every
    call of one of our jitted functions by another: the kernel's own call has done so.
    """
    from triton.runtime import interpreter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", _call)
        options = interpreter.interpreter_builder.options
        checked = options.sanitize_overflow
        object.__setattr__(options, "sanitize_overflow", False)  # a frozen dataclass
        try:
            yield
        finally:
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
