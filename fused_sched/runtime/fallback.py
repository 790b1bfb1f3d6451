"""What no launch can update, so that torch's own step does: which params, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fused_sched.engines.choose import SERVED
from fused_sched.engines.eager_engine import has_stock
from fused_sched.tables.local import SUPPORTED, local

from .device_state import capturing
from .mirror import Mirror
from .state import StateKeeper

_DIFFERENTIABLE = "with differentiable=True"


class Fallback:
    """Finds the params that torch's own step updates.

    Attributes:
        why: the reason, by number of such a param; as the last step found it.
    """

    def __init__(self, mirror: Mirror, keeper: StateKeeper) -> None:
        self._mirror = mirror
        self._keeper = keeper
        self.why: dict[int, str] = {}

    @property
    def takes_all(self) -> bool:
        """Whether torch records its step with autograd, which no launch can be part of."""
        optimizer = self._mirror.host.optimizer
        return has_stock(type(optimizer)) and bool(optimizer.defaults.get("differentiable"))

    def find(
        self, params: Sequence[Tensor], moved: Container[int], everywhere: bool
    ) -> Container[int]:
        """Look again; the numbers of these params.

        Args:
            moved: rows of the tables that lie elsewhere now.
            everywhere: look at all rows, not only at these and at the params without a place.
        """
        tables = [device_state.table for device_state in self._mirror.host.device_states.values()]
        if sum(len(t.rows) for t in tables) == len(params) and not (moved or everywhere):
            self.why = {}
            return self.why
        sure = {m.index for t in tables for m in t.rows if m.index not in moved}
        self.why = {
            i: why
            for i, param in enumerate(params)
            if (everywhere or i not in sure)
            and (param.grad is not None or param.requires_grad)
            and (why := why_torch(param, self._keeper.state.get(param, {}).values()))
        }
        return self.why

    def foretold(self, params: Sequence[Tensor], moved: Container[int]) -> dict[str, int]:
        """Reasons for the next step, each with the number of its params.

        A gradient that is not there is taken to come as it last came.
        """
        if self.takes_all:
            return {_DIFFERENTIABLE: len(params)}
        before = dict(self.why)
        self.find(params, moved, everywhere=True)
        gone = {i: why for i, why in before.items() if i < len(params) and params[i].grad is None}
        self.why |= gone
        return dict(Counter(self.why.values()))

    def refuse_capture(self) -> None:
        """Raise while a stream captures: what torch's step does is not fit to be replayed."""
        if not capturing() or not (self.why or self.takes_all):
            return
        every = f"every param, {_DIFFERENTIABLE}"
        which = every if self.takes_all else described(Counter(self.why.values()))
        name = type(self._mirror.host.optimizer).__name__
        raise RuntimeError(
            f"{name}.step() cannot be captured: torch's own step "
            f"updates {which}. Give what it updates to an optimizer of its own, and step that one "
            "outside the graph"
        )


def why_torch(param: Tensor, states: Iterable[Any]) -> str | None:
    """Why torch's own step updates a param; None where a launch can.

    Args:
        states: its state tensors, as far as there are any.
    """
    if param.device.type not in SERVED:
        return f"on {param.device.type}"
    reason = _odd(param)
    if reason is not None:
        return f"of {reason}"
    if param.grad is not None and (reason := _odd(param.grad)) is not None:
        return _sparse(param.grad, "gradient") or f"with a gradient of {reason}"
    for state in states:
        if isinstance(state, Tensor) and (reason := _odd(state)) is not None:
            return _sparse(state, "state") or f"with a state of {reason}"
    return None


def is_odd(tensor: Tensor) -> bool:
    """Whether no kernel reads a tensor."""
    return tensor.device.type not in SERVED or _odd(tensor) is not None


def _odd(tensor: Tensor) -> str | None:
    """What a kernel cannot read in a tensor; None where it can."""
    here = local(tensor)
    if type(here).__torch_dispatch__ != Tensor.__torch_dispatch__:
        return f"type {type(here).__name__}"
    if here.layout is not torch.strided:
        return f"layout {_short(here.layout)}"
    dtype = here.dtype.to_real() if here.dtype.is_complex else here.dtype
    return None if dtype in SUPPORTED else f"dtype {_short(here.dtype)}"


def _sparse(tensor: Tensor, what: str) -> str | None:
    return None if tensor.layout is torch.strided else f"with a sparse {what}"


def _short(name: Any) -> str:
    return str(name).removeprefix("torch.")


def described(reasons: Mapping[str, int]) -> str:
    """The same in words: ``1 param with a sparse gradient, 2 params on meta``."""
    return ", ".join(f"{n} param{'s' * (n > 1)} {why}" for why, n in reasons.items())
