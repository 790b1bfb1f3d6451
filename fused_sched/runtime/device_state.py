"""What one device needs for a step: the buffer, the param table, and the launch."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fused_sched.rules.rule import Rule
from fused_sched.tables import layout
from fused_sched.tables.device_buffer import DeviceBuffer, Program, send
from fused_sched.tables.param_row import ParamRow
from fused_sched.tables.params import CapturedTable, ParamTable
from fused_sched.tables.program import Assembled

RELEASE = (
    "a captured graph uses the present tables. Call optimizer.release_capture() once its graphs "
    "are gone, then capture again"
)

_NEEDS_PREPARE = "call optimizer.prepare() before the capture"


def capturing(device: torch.device | None = None) -> bool:
    """Whether the current CUDA stream is being captured."""
    if device is not None and device.type != "cuda":
        return False
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def capturable(device: torch.device) -> bool:
    """Whether a CUDA graph may hold work on a device."""
    return device.type == "cuda"


def refuse_capturing(what: str) -> None:
    """Raise for a call that reads the device or allocates, while a stream captures."""
    if capturing():
        raise RuntimeError(f"{what} cannot run while a CUDA graph is being captured")


def refuse_capture(device: torch.device, name: str, what: str) -> None:
    """Raise while a stream captures, where something would have to be allocated."""
    if capturing(device):
        raise RuntimeError(
            f"{name}.step() cannot be captured: {what}, and memory that is set up inside a capture "
            f"would be set up again at every replay; {_NEEDS_PREPARE}"
        )


@functools.cache
def _empty_table(device: torch.device, name: str) -> ParamTable:
    """The table that every optimizer of a name starts with."""
    return ParamTable([], device, name)


class DeviceState:
    """One device's tables, and the host's account of its clock.

    Attributes:
        clock: launches that moved the params, as far as the host knows.
        state_clock: the clock to which the step counts in ``optimizer.state`` belong.
        offsets: per param, the launches that it missed; its step is ``clock - offset``.
        carried: of each recurrence of the rule every param's number, as of ``take_carried()``.
    """

    def __init__(
        self, device: torch.device, engine: ModuleType, rule: Rule, name: str, params: int
    ) -> None:
        self.device = device
        self.engine = engine
        self.rule = rule
        self.name = name
        self.clock = 0
        self.state_clock = 0
        self.offsets = [0] * params
        self.carried = [[0.0] * params for _ in rule.carried]
        self.buffer: DeviceBuffer | None = None
        self.table = _empty_table(device, name)
        self.captured_tables: list[CapturedTable] = []
        self.loaded: set[Any] = set()
        self._last_stream: Any = None

    def build_table(self, rows: Sequence[ParamRow]) -> None:
        self.table = ParamTable(rows, self.device, self.name)

    def build_buffer(self, columns: int, groups: int, programs: Sequence[Assembled]) -> None:
        """Allocate the buffer for programs of these sizes; its clock and offsets go along."""
        self.take_carried()
        rows = [program.ops.shape[0] for program in programs]
        aux = [program.aux.numel() for program in programs]
        sizes = columns, groups, len(self.offsets), rows, aux, len(self.carried)
        self.buffer = DeviceBuffer(self.device, *sizes)
        self._sent: list[Tensor | None] = [None] * len(programs)  # tables that do not change
        if self.clock or any(self.offsets) or self.carried:
            self.send_clock()

    def fits(self, groups: int, programs: Sequence[Assembled]) -> bool:
        """Whether the buffer has the place that these programs need."""
        if self.buffer is None or self.buffer.record.shape[2] != groups:
            return False
        here = self.buffer.programs
        return len(here) == len(programs) and all(
            mine.rows == program.ops.shape[0] and mine.aux.numel() >= program.aux.numel()
            for mine, program in zip(here, programs, strict=True)
        )

    def send_clock(self) -> None:
        assert self.buffer is not None
        self.join_stream()
        send(self.buffer.clock[:1], torch.tensor([self.clock], device="cpu"))
        if self.offsets:
            offsets = torch.tensor(self.offsets, dtype=torch.int64, device="cpu")
            send(self.buffer.offsets, offsets)
        if self.carried:
            carried = torch.tensor(self.carried, dtype=torch.float64, device="cpu")
            send(self.buffer.recurrences, torch.stack((carried, carried)))

    def send_values(self, record: Tensor, programs: Sequence[Assembled]) -> None:
        assert self.buffer is not None
        self.join_stream()
        self.buffer.send_values(record, [(p.ops, p.lanes) for p in programs])
        for number, program in enumerate(programs):
            if program.aux is not self._sent[number]:
                send(self.buffer.programs[number].aux[: program.aux.numel()], program.aux)
                self._sent[number] = program.aux

    def send_record(self, record: Tensor) -> None:
        """Send every group's values, and nothing else."""
        assert self.buffer is not None
        self.join_stream()
        self.buffer.send_record(record)

    def write(self, group: int, values: Mapping[int, float]) -> None:
        """Send one group's values, by column."""
        assert self.buffer is not None
        self.join_stream()
        for column, value in values.items():
            self.buffer.write(column, group, value)

    def clear_overrun(self) -> None:
        """A schedule that ran past its end has been reported."""
        assert self.buffer is not None
        self.buffer.clock[layout.OVERRUN].zero_()

    def take_clock(self) -> None:
        """Take the device's clock and offsets; waits for it."""
        assert self.buffer is not None
        host = self.buffer.fetch()
        self.clock = int(host.clock[layout.CLOCK])
        self.offsets = host.offsets.tolist()

    def take_carried(self) -> None:
        """Take the recurrences from the device; waits for it, where the rule has any."""
        if self.carried and self.buffer is not None:
            host = self.buffer.fetch()
            self.carried = host.recurrences[int(host.clock[layout.CLOCK]) & 1].tolist()

    def join_stream(self) -> None:
        """Order this stream's work behind the last launch's."""
        if self.device.type != "cuda" or capturing(self.device):
            return
        stream = torch.cuda.current_stream(self.device)
        if stream == self._last_stream:
            return
        if self._last_stream is not None:
            stream.wait_stream(self._last_stream)
        for tensor in self._tensors():
            # Made on another stream, whose next allocation would reuse its memory as soon as it is
            # freed, even under a later launch on this one.
            tensor.record_stream(stream)
        self._last_stream = stream

    def _tensors(self) -> Iterator[Tensor]:
        """What this device state has allocated for its launches."""
        yield from self.table.tensors()
        if self.buffer is not None:
            yield from self.buffer.tensors()

    def load(self, scalings: Iterable[layout.Scaling]) -> None:
        """Load the kernels that the present table, its gradients and these scalings need."""
        assert self.buffer is not None
        if not self.table.arrange(allocate=not capturing(self.device)):
            self.refuse_capture("its gradients have other dtypes than before")
        kernel = self.table.kinds, self.table.state_slots
        new = [scaling for scaling in scalings if self._variant(kernel, scaling) not in self.loaded]
        if not new:
            return
        if capturing(self.device):
            what = "these dtypes" if layout.NO_SCALER in new else "a step with this GradScaler"
            raise RuntimeError(
                f"{self.name}.step() cannot be captured: its kernel for {what} is not loaded; "
                f"{_NEEDS_PREPARE}"
            )
        self.engine.load(self.buffer, self.table, self.fused_program(), self.rule, new)
        self.loaded.update(self._variant(kernel, scaling) for scaling in new)

    def _variant(self, kernel: Any, scaling: layout.Scaling) -> Any:
        return (kernel, scaling) if self.engine.KERNEL_BY_SCALING else kernel

    def fused_program(self) -> Program | None:
        """The program that rides in the launch, None while nothing is fused."""
        assert self.buffer is not None
        program = self.buffer.programs[0]
        return program if program.rows else None

    def launch(
        self,
        grads: Sequence[int],
        scale: Tensor | None,
        found_inf: Tensor | None,
        advance: int | None,
    ) -> None:
        """One step of every row.

        Args:
            advance: how the fused schedules advance: STAY, CALLED or COUNTED; None leaves them out.
        """
        assert self.buffer is not None
        table = self.table
        if capturing(self.device):
            # The graph owns its addresses: eager steps and other captures have theirs.
            table = captured = CapturedTable(table)
            self.captured_tables.append(captured)
        self.join_stream()
        staged = table.staged
        for row in staged:
            row.stage_in()
        program, how = self.fused_program(), advance
        if how is None:
            program, how = None, layout.STAY
        scale, found_inf = self._readable(scale), self._readable(found_inf)
        self.engine.update(self.buffer, table, grads, program, self.rule, how, scale, found_inf)
        increment_version(table.params_with(grads))
        for row in staged:
            row.stage_out(unscaled=scale is not None)

    def advance(self, number: int, metric: Tensor | None = None) -> None:
        """Advance one of the schedules' programs by a launch of its own."""
        assert self.buffer is not None
        self.join_stream()
        here = None if metric is None else metric.to(self.device, torch.float64).reshape(1)
        self.engine.advance(self.buffer, self.buffer.programs[number], metric=here)

    def _readable(self, scalar: Tensor | None) -> Tensor | None:
        """A scaler's tensor as the kernel reads it, on this device."""
        if scalar is None or (scalar.device == self.device and scalar.dtype == torch.float32):
            return scalar
        return scalar.to(self.device, torch.float32, non_blocking=True)

    def count_step(self, grads: Sequence[int]) -> None:
        """The host's account of a launch that moved."""
        self.clock += 1
        if 0 in grads:
            for row, address in zip(self.table.rows, grads, strict=True):
                self.offsets[row.index] += address == 0

    def count_steps(self, steps: int, missed: Mapping[int, int]) -> None:
        """The host's account of cached launches.

        Args:
            missed: by number of a param, the launches for which it had no gradient.
        """
        self.clock += steps
        for index, number in missed.items():
            self.offsets[index] += number

    def set_step(self, index: int, step: int) -> None:
        """A param has made this many steps."""
        self.offsets[index] = self.clock - step

    def carried_of(self, row: ParamRow) -> list[float]:
        """A param's recurrences, as of ``take_carried()``."""
        return [numbers[row.index] for numbers in self.carried]

    def set_carried(self, index: int, numbers: Sequence[float], first: int = 0) -> None:
        """Replace recurrences of a param, between ``take_carried()`` and ``send_clock()``.

        Args:
            first: which one ``numbers`` begins with.
        """
        for k, number in enumerate(numbers, first):
            self.carried[k][index] = number

    def note_written(self) -> None:
        """The state dict shows the steps of the clock."""
        self.state_clock = self.clock

    def note_unwritten(self) -> None:
        """The state dict shows other steps than the clock's."""
        self.state_clock = -1

    def step_of(self, row: ParamRow) -> int:
        return self.clock - self.offsets[row.index]

    def refuse_capture(self, what: str) -> None:
        """Raise while a stream captures, where something would have to be allocated."""
        refuse_capture(self.device, self.name, what)
