"""``optimizer.state`` as torch has it, and its way into and out of the tables."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _get_scalar_dtype

from fused_sched.rules.rule import Rule
from fused_sched.tables.local import SUPPORTED, fill, is_dense, local, new_state, real, same_layout
from fused_sched.tables.param_row import ParamRow, Unreadable

from .counts import Counts, Noted
from .device_state import DeviceState
from .held import is_held
from .recurrences import Recurrences

Entry = dict[str, Any]


class StateKeeper:
    """Owns ``optimizer.state`` and what is allocated before a first step may show it.

    Attributes:
        state: torch's ``{param: {"step": ..., "exp_avg": ...}}``.
        state_exposed: user code may have changed ``state`` since the tables were built from it.
        waiting: the state of params that no step has reached, not shown yet.
    """

    def __init__(self, optimizer: Any) -> None:
        self._start = partial(_start, weakref.ref(optimizer))
        self._rule: Rule = type(optimizer)._rule
        self.state: defaultdict[Tensor, Entry] = defaultdict(dict)
        self.state_exposed = False
        self.waiting: dict[Tensor, Entry] = {}
        self.counts = Counts()
        self.recurrences = Recurrences(self._rule.recurrences, self._start)

    # -- who has it ------------------------------------------------------------------------------

    def replace(self, state: defaultdict[Tensor, Entry], exposed: bool) -> None:
        """Another dict in place of ``state``."""
        self.state, self.state_exposed = state, exposed

    def expose(self) -> None:
        """User code gets the dict."""
        self.state_exposed = True

    def conceal(self) -> None:
        """No user code has the dict."""
        self.state_exposed = False

    def look_at_held(self) -> None:
        """Before a step: a held count that was written counts as a change of the dict."""
        if self.counts.held:
            self.state_exposed = self.state_exposed or self.counts.held_one_written()
            self.counts.look_who_holds(self.counts.held)

    def look_who_holds(self) -> None:
        """Find whether user code still has the dict, or else a count of it."""
        self.state_exposed = is_held(self) or self.recurrences.are_held()
        if not self.state_exposed:
            self.counts.look_who_holds()

    # -- in --------------------------------------------------------------------------------------

    def row(
        self,
        param: Tensor,
        index: int,
        number: int,
        group: Mapping[str, Any],
        names: Sequence[str],
    ) -> ParamRow:
        """A row of the param table, with state as torch's first step would create it.

        Raises:
            KeyError: there is state of the param, but not all that its group asks for.
            Unreadable: no kernel reads a state tensor.
            ValueError: a state tensor has another shape than its param.
        """
        entry = self.state.get(param)
        if entry:
            self.waiting.pop(param, None)
        else:
            entry = self._waiting_entry(param)
        tensors = _of_one_dtype({name: self._tensor(param, entry, name, group) for name in names})
        entry = self._numbered(param, entry, group)
        entry.update(tensors)
        if self.state.get(param):
            self.state[param] = entry
        else:
            self.waiting[param] = entry
        if self._rule.counts_steps:
            self.counts.note(param, entry["step"])
        self.recurrences.note(param, entry)
        self.counts.hide(param, False)
        slots = [tensors.get(name) for name in self._rule.states]
        return ParamRow(param, index, number, slots)

    def _waiting_entry(self, param: Tensor) -> Entry:
        """What no step has reached yet, unless the param has got another dtype since."""
        entry = self.waiting.get(param) or {}
        states = [value for name, value in entry.items() if name in self._rule.states]
        return entry if all(state.dtype == param.dtype for state in states) else {}

    def leave(self, param: Tensor) -> None:
        """A param's state is torch's own step's from here on."""
        self.waiting.pop(param, None)
        self.counts.forget(param)
        self.recurrences.forget(param)

    def _numbered(self, param: Tensor, entry: Entry, group: Mapping[str, Any]) -> Entry:
        """An entry with the step count and the recurrences that it may lack, in torch's order."""
        if self._rule.counts_steps and "step" not in entry:
            entry = self._first_step(param, group) | entry
        begun = self.recurrences.begin(param, entry, group)
        if not begun:
            return entry
        counted = {"step": entry["step"]} if self._rule.counts_steps else {}
        return counted | begun | entry

    def _first_step(self, param: Tensor, group: Mapping[str, Any]) -> Entry:
        on_device = group.get("fused") or group.get("capturable")
        dtype = _get_scalar_dtype(is_fused=group.get("fused"))
        return {"step": torch.zeros((), dtype=dtype, device=param.device if on_device else "cpu")}

    def _tensor(self, param: Tensor, entry: Entry, name: str, group: Mapping[str, Any]) -> Tensor:
        """A state tensor that the kernel can address: the entry's own, a copy of it, a new one."""
        state = entry.get(name)
        if state is None:
            if self._rule.counts_steps and int(entry.get("step", 0)) > 0:
                raise KeyError(name)  # as torch's: there are steps, but not this moment of them
            return new_state(param, self._start(name, group)).detach()
        check_shape(name, state, param)
        if state.layout is not torch.strided or real(local(state)).dtype not in SUPPORTED:
            raise Unreadable
        if not _addressable(param, state):
            fresh = torch.zeros_like(param, dtype=state.dtype, memory_format=torch.preserve_format)
            state = fresh.copy_(state)
        return state.detach()

    def step_of(self, param: Tensor) -> int:
        """Steps that the state has behind it; 0 means that its moments count as zero."""
        entry = self.state.get(param) or {}
        if self._rule.counts_steps:
            return int(entry.get("step", 0))
        return int(any(isinstance(value, Tensor) for value in entry.values()))

    def recurrences_of(self, param: Tensor, group: Mapping[str, Any]) -> list[float]:
        """The recurrences that the state shows, or those of a first step."""
        entry = self.state.get(param) or self.waiting.get(param)
        return self.recurrences.numbers(entry, group)

    # -- out -------------------------------------------------------------------------------------

    def reached(self, row: ParamRow) -> bool:
        """Whether a step has shown the row's state."""
        return row.param not in self.waiting

    def publish(self, device_state: DeviceState, grads: Sequence[int]) -> None:
        """Show the state of params that a step has now reached: those with a gradient."""
        if not self.waiting:
            return
        device_state.note_unwritten()  # even where an overflow stopped the clock
        for row, address in zip(device_state.table.rows, grads, strict=True):
            entry = self.waiting.pop(row.param, None) if address else None
            if entry:
                self.state[row.param] = entry

    def write_steps(self, device_states: Iterable[DeviceState]) -> None:
        """Bring the step counts in ``state`` up to date, except where user code wrote its own."""
        for device_state in device_states:
            device_state.note_written()
            if self.recurrences.names:
                self._write_recurrences(device_state)
            if self._rule.counts_steps:
                self._write_counts(device_state, device_state.table.rows)
            else:
                self._write_buffers(device_state)

    def _write_recurrences(self, device_state: DeviceState) -> None:
        device_state.take_carried()
        for row in device_state.table.rows:
            entry = self.state.get(row.param)
            if entry and not self.recurrences.written(row.param, entry):
                self.recurrences.show(row.param, entry, device_state.carried_of(row))

    def write_held(self, device_states: Iterable[DeviceState]) -> None:
        """Bring the step counts up to date that user code holds without the state dict."""
        held = set(self.counts.held)
        for device_state in device_states if held else ():
            self._write_counts(
                device_state, [m for m in device_state.table.rows if m.param in held]
            )

    def _write_counts(self, device_state: DeviceState, rows: Iterable[ParamRow]) -> None:
        on_device: list[ParamRow] = []
        for row in rows:
            entry = self.state.get(row.param)
            if not entry or self.external_step(row, False) is not None:
                continue
            if entry["step"].device.type == "cpu":
                self.counts.fill(row.param, entry["step"], device_state.step_of(row))
            else:
                on_device.append(row)
        if on_device and device_state.buffer is not None:
            steps = (device_state.buffer.clock[0] - device_state.buffer.offsets).to(torch.float32)
            targets = [self.state[row.param]["step"] for row in on_device]
            torch._foreach_copy_(targets, [steps[row.index] for row in on_device])
            for row, target in zip(on_device, targets, strict=True):
                self.counts.note(row.param, target)

    def _write_buffers(self, device_state: DeviceState) -> None:
        """Before its first step a momentum buffer is None, as stock torch's is."""
        for row in device_state.table.rows:
            entry = self.state.get(row.param)
            if not entry or self.replaced(row):
                continue
            hide = device_state.step_of(row) == 0
            self.counts.hide(row.param, hide)
            for name, state in self._slots(row):
                entry[name] = None if hide else state

    def _slots(self, row: ParamRow) -> Iterable[tuple[str, Tensor]]:
        named = zip(self._rule.states, row.states, strict=False)
        return ((name, state) for name, state in named if state is not None)

    # -- changes by user code --------------------------------------------------------------------

    def replaced(self, row: ParamRow) -> bool:
        """Whether the state dict holds other tensors than the table."""
        param = row.param
        entry = self.state.get(param)
        if not entry:
            return row.has_state and param not in self.waiting
        if param in self.waiting:
            return True
        hidden = self.counts.noted(param).hidden
        return any(
            entry.get(name) is not state and not (hidden and entry.get(name) is None)
            for name, state in self._slots(row)
        )

    def external_step(self, row: ParamRow, replaced: bool) -> int | None:
        """The step count that user code put into the state dict; None without one."""
        if not self._rule.counts_steps:
            return self.step_of(row.param) if replaced else None
        entry = self.state.get(row.param)
        if not entry:
            return 0 if replaced else None
        step = entry.get("step", 0)
        return int(step) if self.counts.written(row.param, step) else None

    def external_recurrences(
        self, row: ParamRow, replaced: bool, group: Mapping[str, Any]
    ) -> list[float] | None:
        """The recurrences that user code put into the state dict; None without any."""
        entry = self.state.get(row.param)
        if entry and self.recurrences.written(row.param, entry):
            self.recurrences.note(row.param, entry)
            return self.recurrences.numbers(entry, group)
        return self.recurrences.numbers({}, group) if replaced and not entry else None

    def same_dtypes(self, row: ParamRow) -> bool:
        """Whether the state dict's tensors fit into the table's without being rounded."""
        entry = self.state.get(row.param) or {}
        return all(
            entry.get(name) is None
            or (entry[name].dtype == state.dtype and entry[name].layout == state.layout)
            for name, state in self._slots(row)
        )

    def restore(self, row: ParamRow, group: Mapping[str, Any], captured: bool) -> None:
        """Bring the state dict's tensors into the table's, whose addresses a graph may know.

        Args:
            captured: replays reach the param without the host, so its state is shown at once.
        """
        param = row.param
        entry = self.state.get(param)
        for name, state in self._slots(row):
            theirs = (entry or {}).get(name)
            if theirs is None:
                fill(state, self._start(name, group))
            elif theirs is not state:
                state.copy_(theirs)
        numbered = self._numbered(param, entry or {}, group)
        tensors = {name: numbered[name] for name in numbered if name not in (entry or {})}
        if "step" in tensors:
            self.counts.note(param, tensors["step"])
        self.recurrences.note(param, numbered)
        tensors |= dict(self._slots(row))
        if entry:
            self.waiting.pop(param, None)
            entry.update(tensors)
        elif captured:
            self.waiting.pop(param, None)
            self.state[param] = tensors
        else:
            self.state.pop(param, None)
            self.waiting[param] = tensors
        self.counts.hide(param, False)

    def note_step(self, row: ParamRow) -> None:
        """A step count that user code wrote is in use now."""
        entry = self.state.get(row.param)
        if entry and self._rule.counts_steps:
            self.counts.note(row.param, entry.get("step", 0))

    def look(self, row: ParamRow) -> tuple[dict[str, Tensor], Noted | None]:
        """What ``state`` shows of a row: its tensors by name, and its step count."""
        if not self.state.get(row.param):
            return {}, None
        noted = self.counts.noted(row.param) if self._rule.counts_steps else None
        return dict(self._slots(row)), noted


def _start(optimizer: Callable[[], Any], name: str, group: Mapping[str, Any]) -> float:
    """Where a state begins, or a recurrence."""
    owner = optimizer()
    assert owner is not None, "it owns the keeper that asks"
    return owner.initial_state(name, group)


def check_shape(name: str, state: Tensor, param: Tensor) -> None:
    if state.shape != param.shape:
        raise ValueError(
            f"State {name!r} has shape {tuple(state.shape)}, its param {tuple(param.shape)}; "
            "load a checkpoint of this model, or start with an empty state"
        )


def _of_one_dtype(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """State tensors of one param in the widest of their dtypes: the kernel knows one per param."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) < 2:
        return tensors
    widest = reduce(torch.promote_types, dtypes)
    return {name: tensor.to(widest) for name, tensor in tensors.items()}


def _addressable(param: Tensor, state: Tensor) -> bool:
    """Whether element i of the state lies where the kernel expects it."""
    mine, dense = real(local(state)), real(local(param))
    if not is_dense(dense):
        dense = torch.empty_like(dense, device="meta")
    return state.device == param.device and same_layout(mine, dense)
