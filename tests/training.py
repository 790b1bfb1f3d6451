"""Short trainings of ours and of stock torch's, side by side."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import fused_sched
from tests.cases import OPTIMIZERS, SHAPES, TOLERANCES, gradient
from tests.differences import note_params

OURS = fused_sched.optim
STEPS = 5


def named(rows: Sequence[Any]) -> dict[str, Any]:
    """For ``pytest.mark.parametrize``."""
    return {"argvalues": rows, "ids": [_name(row) for row in rows]}


def _name(row: Any) -> str:
    return getattr(row, "id", None) or getattr(row, "__name__", None) or str(row)


def launched(rows: Sequence[Any]) -> dict[str, Any]:
    """For ``pytest.mark.parametrize``: each row on the engines that launch."""
    return _pairs(rows, "launch_engine", ["triton", "native"])


def launched_in(dtypes: Sequence[Any], rows: Sequence[Any], few: Sequence[Any]) -> dict[str, Any]:
    """Each row in each dtype; the interpreter has all rows in the first dtype, ``few`` in others.

    A rule's arithmetic is in float32 or float64 whatever is stored, so that one row tells of a
    dtype's loads and stores; native has the full product.
    """
    cases = [
        (row, dtype, engine)
        for row, dtype, engine in itertools.product(rows, dtypes, ("triton", "native"))
        if engine == "native" or (row.interpreted and (dtype is dtypes[0] or row in few))
    ]
    return {
        "argnames": ("row", "dtype", "launch_engine"),
        "argvalues": cases,
        "ids": [f"{engine}-{row.id}-{_name(dtype)}" for row, dtype, engine in cases],
        "indirect": ["launch_engine"],
    }


def stepped(rows: Sequence[Any]) -> dict[str, Any]:
    """The same on every engine."""
    return _pairs(rows, "engine", ["triton", "native", "eager"])


def _pairs(rows: Sequence[Any], fixture: str, engines: Sequence[str]) -> dict[str, Any]:
    pairs = [(row, e) for row in rows for e in engines if row.interpreted or e != "triton"]
    ids = [f"{engine}-{row.id}" for row, engine in pairs]
    return {"argnames": ("row", fixture), "argvalues": pairs, "ids": ids, "indirect": [fixture]}


def case(id: str) -> Any:
    return next(row for row in OPTIMIZERS if row.id == id)


FEW = [case("SGD-combo"), case("Adam-combo"), case("AdamW-weight_decay")]
"""One row per class, with momentum and weight decay."""


def three() -> list[Tensor]:
    return [SHAPES[i].build() for i in (7, 9, 2)]


def set_grads(params: Sequence[Tensor], step: int) -> None:
    for param in params:
        param.grad = gradient(param, step)


def train(opt: Any, params: Sequence[Tensor], steps: Sequence[int] = range(STEPS)) -> None:
    for step in steps:
        set_grads(params, step)
        opt.step()


def stock(row: Any, params: Any, **overrides: Any) -> Any:
    """torch's own for-loop."""
    return row.build(torch.optim, params, foreach=False, **overrides)


def check(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Within the table's tolerance of the dtype."""
    note_params(ours, theirs)
    for mine, other in zip(ours, theirs, strict=True):
        limit = TOLERANCES[mine.dtype]
        torch.testing.assert_close(mine, other, rtol=limit.rtol, atol=limit.atol, equal_nan=True)


def pair(row: Any, build: Callable[[], list[Tensor]], **options: Any) -> tuple[Any, Any, Any, Any]:
    """One of ours and one of torch's on equal params."""
    ours, theirs = build(), build()
    return row.build(OURS, ours, **options), ours, stock(row, theirs, **options), theirs
