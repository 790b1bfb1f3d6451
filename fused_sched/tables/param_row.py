"""One param of a launch: what the param table must know of it, and copies where it is odd."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .local import SUPPORTED, is_dense, local, real, same_layout

_NOWHERE = 16
"""Address of an empty gradient, whose data_ptr() is 0: 0 says that there is no gradient."""


class Unreadable(Exception):
    """A tensor that no kernel reads: its param is for torch's own step."""


Kind = tuple[torch.dtype, torch.dtype, torch.dtype]
"""Storage types of (param, grad, state)."""


@dataclass
class ParamRow:
    """One param of the launch.

    Attributes:
        param: the user's tensor.
        index: its number among the optimizer's params.
        group: its param group's number.
        states: its state tensors by slot, None where the group keeps none.
    """

    param: Tensor
    index: int
    group: int
    states: list[Tensor | None]
    view: Tensor = field(init=False)
    grad_dtype: torch.dtype = field(init=False)
    staged_param: Tensor | None = field(init=False, default=None)
    staged_grad: Tensor | None = field(init=False, default=None)
    _source: Tensor | None = field(init=False, default=None)
    _plain: bool = field(init=False)

    def __post_init__(self) -> None:
        self.view = real(local(self.param.detach()))
        if not is_dense(self.view):
            # A param with gaps is updated in a dense copy, which goes in and out around the launch.
            self.staged_param = torch.empty_like(self.view)
        declared = getattr(self.param, "grad_dtype", None) or self.param.dtype
        self.grad_dtype = declared.to_real() if declared.is_complex else declared
        self._plain = type(self.param) in (Tensor, torch.nn.Parameter) and not declared.is_complex
        self._strides = self.dense.stride()
        self._state_addresses = self._addresses_of_states()
        here = local(self.param)
        self._here = here.data_ptr(), here.shape, here.stride(), here.dtype

    @property
    def dense(self) -> Tensor:
        """The param as the kernel addresses it."""
        return self.view if self.staged_param is None else self.staged_param

    @property
    def has_state(self) -> bool:
        """Whether it has a state tensor at all."""
        return any(state is not None for state in self.states)

    def _addresses_of_states(self) -> list[int]:
        return [0 if state is None else local(state).data_ptr() for state in self.states]

    @property
    def states_moved(self) -> bool:
        """Whether a state tensor got other memory (``.data``, ``share_memory_()``)."""
        return self._addresses_of_states() != self._state_addresses

    @property
    def plain(self) -> bool:
        """Whether param and gradient are addressed in place, with no copy and no view around."""
        return self._plain and self.staged_param is None and self.staged_grad is None

    @property
    def kind(self) -> Kind:
        states = [state for state in self.states if state is not None]
        state_dtype = real(local(states[0])).dtype if states else self.view.dtype
        return self.view.dtype, self.grad_dtype, state_dtype

    @property
    def moved(self) -> bool:
        """Whether the param's memory is no longer the one in the table (``.data``, ``.to()``)."""
        now = self.param if self._plain else local(self.param)
        return (now.data_ptr(), now.shape, now.stride(), now.dtype) != self._here

    def grad_address(self) -> int:
        """Address of the gradient in the param's own element order, 0 without one.

        Raises:
            Unreadable: the gradient is sparse, or its dtype is none that a kernel reads.
        """
        grad = self.param.grad
        if grad is None:
            return 0
        if (
            self._plain
            and grad.layout is torch.strided
            and grad.dtype is self.grad_dtype
            and grad.stride() == self._strides
            and not grad.is_neg()
        ):
            self.staged_grad = None
            return grad.data_ptr() or _NOWHERE
        return self._odd_grad_address(grad)

    def _odd_grad_address(self, grad: Tensor) -> int:
        if grad.layout != torch.strided:
            raise Unreadable
        own = local(grad.detach())
        # A lazy conjugate or negation has other bits than values.
        lazy = own.is_conj() or own.is_neg()
        view = real(own.resolve_neg())
        if view.dtype not in SUPPORTED:
            raise Unreadable
        self.grad_dtype = view.dtype
        if same_layout(view, self.dense) and not lazy:
            self.staged_grad = None
            return view.data_ptr() or _NOWHERE
        if self.staged_grad is None or self.staged_grad.dtype != view.dtype:
            self.staged_grad = torch.empty_like(self.dense, dtype=view.dtype)
        self._source = own
        return self.staged_grad.data_ptr() or _NOWHERE

    def stage_in(self) -> None:
        """Copy what the kernel cannot address in place; adds a launch for each such tensor."""
        if self.staged_param is not None:
            self.staged_param.copy_(self.view)
        if self.staged_grad is not None and self._source is not None:
            self.staged_grad.copy_(_values(self._source))

    def stage_out(self, unscaled: bool) -> None:
        """Copy the results back, and drop the reference to the gradient."""
        if self.staged_param is not None:
            self.view.copy_(self.staged_param)
        if unscaled and self.staged_grad is not None and self._source is not None:
            complex_ = self._source.is_complex()
            grad = torch.view_as_complex(self.staged_grad) if complex_ else self.staged_grad
            self._source.copy_(grad)
        self._source = None


def _values(grad: Tensor) -> Tensor:
    """A gradient as real numbers, with what is lazy in it done."""
    return real(grad.resolve_neg())
