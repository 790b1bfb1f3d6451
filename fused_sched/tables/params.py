"""The param table: addresses and facts of every tensor that a launch updates."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import layout
from .device_buffer import send
from .local import local, real
from .param_row import Kind, ParamRow
from .uncaptured import uncaptured


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
        self._fixed = self._fixed_addresses()
        self._sent: list[int] | None = None
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

    def cached_addresses(self) -> Tensor:
        """A copy of the addresses, into which cached launches put gradients without this table."""
        self._cached_addresses = self.addresses.clone()
        return self._cached_addresses

    def send_fixed(self) -> None:
        """Put params and states into the table; the gradients travel with the launch."""
        if self._sent is None:
            self.send_addresses([0] * len(self.rows))

    def send_addresses(self, grads: Sequence[int]) -> None:
        """Put this step's gradients into the table, if they moved."""
        flat = [*self._fixed[0], *grads]
        if flat != self._sent and self.rows:
            send(self.addresses, self._address_table(grads))
            self._sent = flat

    def _address_table(self, grads: Sequence[int]) -> Tensor:
        """int64 [slots, T]: params, gradients, states."""
        params, *states = self._fixed
        return torch.tensor([params, list(grads), *states], dtype=torch.int64, device="cpu")

    def bytes_per_step(self) -> int:
        """Bytes that a step moves: param and states read and written, grad read."""
        total = 0
        for row in self.rows:
            param, grad, state = (dtype.itemsize for dtype in row.kind)
            states = sum(s is not None for s in row.states)
            total += row.dense.numel() * (2 * param + grad + 2 * state * states)
        return total


class CapturedTable(ParamTable):
    """The table of one captured launch: another table's facts, and addresses of its own."""

    def __init__(self, table: ParamTable) -> None:
        self.__dict__.update(table.__dict__)
        # The odd tensors' copies, which the graph reads at every replay.
        self._kept = [(row.staged_param, row.staged_grad) for row in self.staged]

    def send_addresses(self, grads: Sequence[int]) -> None:
        """Put the gradients into an allocation that the graph owns; called for its one launch."""
        if self.rows:
            self.addresses = uncaptured(self._address_table(grads), self.device)
