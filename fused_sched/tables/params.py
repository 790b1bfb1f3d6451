"""The param table: addresses and facts of every tensor that a launch updates."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import layout
from .device_buffer import send
from .local import SUPPORTED, is_dense, local, real, same_layout
from .uncaptured import uncaptured

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
        """Copy the results back and let go of the gradient."""
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


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """Of a GPU; a CPU counts as one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


class ParamTable:
    """Addresses [slots, T], facts [INFO, T] and chunks [2, N] of T rows on one device."""

    def __init__(self, rows: Sequence[ParamRow], device: torch.device, name: str) -> None:
        self.rows = list(rows)
        self.device = device
        self.name = name
        total = sum(row.dense.numel() for row in self.rows)
        self.chunk_size = layout.chunk_size(total, _multiprocessors(device))
        self.state_slots = max(
            (i + 1 for m in self.rows for i, s in enumerate(m.states) if s is not None),
            default=0,
        )
        self.elements = total
        self._fixed = self._fixed_addresses()
        self._sent: list[int] | None = None
        self._borrowed = False  # the addresses are another table's
        self._kept: list[Any] = []  # odd tensors, which a graph reads at every replay
        self.addresses = torch.zeros(
            1 + len(self._fixed), max(len(self.rows), 1), dtype=torch.int64, device=device
        )
        self._cached_addresses: Tensor | None = None
        # Scratch of the native engine on a CPU.
        self.ends = torch.zeros(max(len(self.rows), 1), dtype=torch.int64, device="cpu")
        if device.type != "cpu":
            _ = self.chunks  # a capture may allocate nothing
        self.kinds: tuple[Kind, ...] = ()
        self._grad_dtypes: list[torch.dtype] = []
        self._facts: dict[tuple[Kind, ...], Tensor] = {}
        self.arrange()

    def _to_device(self, host: Tensor) -> Tensor:
        if self.device.type == "cpu":
            return host.to(self.device)
        table = torch.empty(host.shape, dtype=host.dtype, device=self.device)
        send(table, host)
        return table

    @functools.cached_property
    def chunks(self) -> Tensor:
        """int32 [2, N]: (tensor, chunk of it); an empty tensor has one, for its step's sake."""
        return self._to_device(self._chunk_table())

    def _chunk_table(self) -> Tensor:
        size = self.chunk_size
        chunks_of = [max(-(-m.dense.numel() // size), 1) for m in self.rows]
        counts = torch.tensor(chunks_of, dtype=torch.int64, device="cpu")
        numbers = torch.arange(len(self.rows), device="cpu")
        tensors = torch.repeat_interleave(numbers, counts)
        starts = torch.cumsum(counts, 0) - counts
        chunks = torch.arange(tensors.numel(), device="cpu") - starts[tensors]
        return torch.stack((tensors, chunks)).to(torch.int32)

    def _fixed_addresses(self) -> list[list[int]]:
        params = [row.dense.data_ptr() for row in self.rows]
        slots = len(self.rows[0].states) if self.rows else 0
        states = [
            [0 if (s := m.states[i]) is None else real(local(s)).data_ptr() for m in self.rows]
            for i in range(slots)
        ]
        return [params, *states]

    def arrange(self, allocate: bool = True) -> bool:
        """Choose the facts (sizes, groups, kinds) for the gradients' present dtypes.

        A captured graph goes on reading those that it was captured with.

        Returns:
            False if they are new and ``allocate`` forbids to make them.
        """
        dtypes = [row.grad_dtype for row in self.rows]
        if dtypes == self._grad_dtypes and self._facts:
            return True
        kinds = tuple(row.kind for row in self.rows)
        if kinds not in self._facts:
            if not allocate:
                return False
            self._facts[kinds] = self._to_device(self._fact_table(kinds))
        self.kinds = tuple(dict.fromkeys(kinds))
        self.info = self._facts[kinds]
        self._grad_dtypes = dtypes
        return True

    def _fact_table(self, kinds: Sequence[Kind]) -> Tensor:
        """int64 [INFO, T]; one column without rows, so that there is an address."""
        numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
        facts = [
            [row.dense.numel() for row in self.rows],
            [row.group for row in self.rows],
            [numbers[kind] for kind in kinds],
            [row.index for row in self.rows],
        ]
        if not self.rows:
            return torch.zeros(layout.INFO, 1, dtype=torch.int64, device="cpu")
        return torch.tensor(facts, dtype=torch.int64, device="cpu")

    def moved(self) -> set[int]:
        """Numbers of the params that lie elsewhere now."""
        return {row.index for row in self.rows if row.moved}

    @property
    def programs(self) -> int:
        """Programs of a launch: the chunks and the schedule's."""
        return self.chunks.shape[1] + 1

    @property
    def staged(self) -> list[ParamRow]:
        """Members with a copy around the launch."""
        return [m for m in self.rows if m.staged_param is not None or m.staged_grad is not None]

    def tensors(self) -> Iterator[Tensor]:
        """Its allocations."""
        yield self.addresses
        if self._cached_addresses is not None:
            yield self._cached_addresses
        yield self.chunks
        yield from self._facts.values()
        for row in self.staged:
            yield from (t for t in (row.staged_param, row.staged_grad) if t is not None)

    def grad_addresses(self) -> list[int]:
        """Every row's gradient, 0 for those without."""
        return [row.grad_address() for row in self.rows]

    def params_with(self, grads: Sequence[int]) -> list[Tensor]:
        """The params that a launch with these gradients writes."""
        return [m.param for m, address in zip(self.rows, grads, strict=True) if address]

    def capture_copy(self) -> ParamTable:
        """A table of this table's rows whose addresses a captured graph may own."""
        copy = object.__new__(ParamTable)
        copy.__dict__.update(self.__dict__)
        copy._borrowed = True
        copy._kept = [(m.staged_param, m.staged_grad) for m in self.staged]
        return copy

    def cached_addresses(self) -> Tensor:
        """A copy of the addresses, into which cached launches put gradients without this table."""
        self._cached_addresses = self.addresses.clone()
        return self._cached_addresses

    def send_fixed(self) -> None:
        """Put params and states into the table; the gradients travel with the launch."""
        if self._sent is None:
            self.send_addresses([0] * len(self.rows))

    def send_addresses(self, grads: Sequence[int]) -> None:
        """Put this step's gradients into the table, if they moved; a captured copy gets its own."""
        params, *states = self._fixed
        flat = [*params, *grads]
        if (flat == self._sent and not self._borrowed) or not self.rows:
            return
        rows = [params, list(grads), *states]
        host = torch.tensor(rows, dtype=torch.int64, device="cpu")
        if self._borrowed:
            self.addresses = uncaptured(host, self.device)
            self._borrowed = False
        else:
            send(self.addresses, host)
        self._sent = flat

    def bytes_per_step(self) -> int:
        """Bytes that a step moves: param and states read and written, grad read."""
        total = 0
        for row in self.rows:
            param, grad, state = (dtype.itemsize for dtype in row.kind)
            states = sum(s is not None for s in row.states)
            total += row.dense.numel() * (2 * param + grad + 2 * state * states)
        return total
