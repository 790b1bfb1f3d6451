"""The mirror: what the host knows of the device, and who of the two is ahead.

In eager training the host's values are torch's own recurrences. The device runs ahead of them in
four cases: advances of a fused schedule that the host has yet to replay (``pending`` ones of an
interval, ``cadence.rounds`` that calls govern); one that a launch has made ahead of the call
(``cadence.ahead``), which no read shows; steps that a scaler may have skipped, or a metric that
only the device saw (``values_ahead``); and a captured graph (``captured``), whose replays the host
makes again where it is told of them (``captures``). A read first catches up, a write goes to both.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from fused_sched.rules.rule import Rule
from fused_sched.tables import layout
from fused_sched.tables.device_buffer import DeviceBuffer
from fused_sched.tables.program import Assembled

from .cached import CachedLaunches
from .cadence import Cadence
from .captures import Captures
from .device_state import RELEASE, DeviceState, capturable, capturing
from .host_copy import HostCopy
from .lr_tensors import LrTensors, lr_tensors_of, read_lr_tensors, write_lr_tensors
from .schedules import Schedules
from .view import View

_FEW = 64
"""Steps up to which the host repeats torch's own code rather than wait for a device."""

_MANY = 200_000
"""Steps times groups up to which the host makes the steps of replays again, at 45 ns each: 9 ms."""


class Suspension(AbstractContextManager[None]):
    """See ``Mirror.suspend_sync``: one thread's; may be entered within itself."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._owner = self._depth = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._owner = get_ident()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        self._lock.release()

    def is_entered(self) -> bool:
        """Whether this thread is within."""
        return self._depth > 0 and self._owner == get_ident()


class Mirror:
    """The host's copy of what the launches read and move, and its way to and from the devices."""

    device_states: dict[torch.device, DeviceState]

    def __init__(self, optimizer: Any) -> None:
        self.reference = weakref.ref(optimizer)
        self.rule: Rule = type(optimizer)._rule
        self.schedules = Schedules(self.rule.columns)
        self.device_states = {}
        self._put_off: Callable[[Mirror], None] | None = None  # what builds the device states
        self.programs: list[Assembled] = []
        self.cadence = Cadence()
        self.asked = False  # whether the host must ask for a fused schedule's next value
        self.pending = 0
        self.values_ahead = False
        self.clock_ahead = False
        self.captured = False
        self.captures = Captures()
        self.cached = CachedLaunches(self.reference)
        self.since_upload = 0
        self.exposed = False  # whether a user may be changing a fused scheduler's lists
        self.rows_behind = False  # the devices' rows, to schedulers that the host has stepped
        self.copy = HostCopy(self.schedules)
        self._readable: DeviceBuffer | None = None  # the only one, if it lies on this CPU
        self._governs = False  # whether calls govern all that is fused
        self.lock = threading.RLock()  # a thread that logs lr may read while another one trains
        self._suspension = Suspension(self.lock)
        self.written: set[str] = set()  # keys of groups that were assigned on the host's account
        self.zeroed: set[int] = set()  # groups whose lr was assigned 0 since the last step

    @property
    def optimizer(self) -> Any:
        optimizer = self.reference()
        assert optimizer is not None
        return optimizer

    def __getattr__(self, name: str) -> Any:
        """``device_states``, where the first step has put them off."""
        if name != "device_states":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with self.lock:
            if "device_states" not in self.__dict__:
                self.device_states = {}
                build, self._put_off = self._put_off, None
                if build is not None and self.reference() is not None:
                    build(self)
            return self.device_states

    def put_device_states_off(self, build: Callable[[Mirror], None]) -> None:
        """Let ``build`` make the device states, when something asks for them."""
        self._put_off = build
        del self.device_states

    def with_buffer(self) -> list[DeviceState]:
        """The device states that have a buffer on their device."""
        return [
            device_state
            for device_state in self.device_states.values()
            if device_state.buffer is not None
        ]

    # -- reading ---------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring the host's values up to date; during a capture they stay as they were."""
        if self.sync_suspended:
            return
        with self.lock:
            self.settle()
            self._catch_up()
            self._take_positions()

    def refresh_values(self) -> None:
        """Bring the groups up to date, and the schedulers only where that costs nothing more."""
        if self._suspension.is_entered():
            return
        with self.lock:
            if self._put_off is not None:
                return  # nothing moves a value there
            if (view := self._view()) is not None:
                view.show(self.rule.decode)
                return
            if not self._governs:
                self.settle()
            self._catch_up()

    def _view(self) -> View | None:
        """The values of now where they lie on this CPU, no launch ahead of the user's calls."""
        if self._readable is None or self.cadence.words[layout.AHEAD]:
            return None
        if self.values_ahead or self.clock_ahead or self.captured:
            return None
        return self.copy.view(self._readable)

    def last_values(self, scheduler: Any) -> list[float] | None:
        """What a scheduler has set last; None where its attributes must be looked at.

        Spares a loop that logs ``get_last_lr()`` at each step the rest of them.
        """
        if self.sync_suspended:
            return None
        with self.lock:
            view = None if self.rows_behind else self._view()
            last = None if view is None else view.last(scheduler)
            if last is not None:
                return last
            self.refresh_values()
            return self.copy.last_values(scheduler)

    def _catch_up(self) -> None:
        cadence = self.cadence
        words = cadence.words
        behind = self.pending or self.cached.owed or words[layout.ROUNDS] or words[layout.ANSWERED]
        if not (behind or self.values_ahead or self.captured) or capturing():
            return
        if self.asks_device():
            self._fetch()
        elif self.captured:
            self._replay_graphs()
        elif self.copy.is_ready():
            self._replay()
        elif behind > _FEW and not cadence.ahead and self.with_buffer():
            self._fetch()
        else:
            self._repeat()
        if answered := words[layout.ANSWERED]:
            self._split_round(answered)

    def _replay(self) -> None:
        """Make the steps that the device has made alone, by the same arithmetic."""
        steps, self.pending = self.pending + self.cadence.take_rounds(), 0
        if steps:
            self.copy.advance(0, steps)
        if self.cached.owed:
            number = self.schedules.program_of(self.cached.scheduler)
            owed, self.cached.owed = self.cached.owed, 0
            if number is not None:
                self.copy.advance(number, owed)
        self.copy.show_values(self.rule.decode)

    def asks_device(self) -> bool:
        """Whether only the device knows the values, so that a read waits for it."""
        alone = self.captured and not (self.captures.counted() and self.copy.is_ready())
        return self.values_ahead or alone

    def _replay_graphs(self) -> None:
        """Make the steps of the graphs' replays as well."""
        advances = self.captures.take()
        fused = advances.pop(0, 0)
        self.pending += fused if self.schedules.fused else 0
        steps = self.pending + sum(advances.values())
        if steps * len(self.optimizer.param_groups) > _MANY:
            self._fetch()
            return
        if not (steps or self.cached.owed or self.cadence.words[layout.ROUNDS]):
            return  # nothing since the last read
        for program, times in advances.items():
            self.copy.advance(program, times)
        self._replay()
        if self.copy.overran():
            self._fetch()  # which raises

    def _repeat(self) -> None:
        """Run torch's recurrences for the steps that the device has made alone."""
        steps, self.pending = self.pending, 0
        with self.suspend_sync():
            self.cached.replay()
            for _ in range(steps):
                self.schedules.count_step()
            for _ in range(self.cadence.take_rounds()):
                for fused in self.schedules.fused:
                    fused.scheduler._host_step()

    def _split_round(self, answered: int) -> None:
        """Show a round of which only the first calls have come; the device has made all of it."""
        self.cadence.retract()
        self._take_positions()
        with self.suspend_sync():
            for fused in self.schedules.fused[:answered]:
                fused.scheduler._host_step()
        self.upload()

    def _take_positions(self) -> None:
        """Bring the schedulers up to date, where only the groups are."""
        if self.copy.behind:
            with self.suspend_sync():
                self.copy.show_positions()

    def _fetch(self) -> None:
        """Read the device's values; waits for it, once."""
        self.pending = self.cached.owed = 0
        self.cadence.take_rounds()
        self.captures.take()
        self.copy.forget()
        self.copy.behind = False
        self.values_ahead = False
        device_states = self.with_buffer()
        if not device_states:
            return
        assert device_states[0].buffer is not None
        host = device_states[0].buffer.fetch()
        with self.suspend_sync():
            self.schedules.read_back(host, self.programs)
        current = host.record[int(host.clock[layout.CLOCK]) & 1].tolist()
        self.copy.put_values(self.rule.decode, current.__getitem__)
        if host.clock[layout.OVERRUN]:
            for device_state in device_states:
                assert device_state.buffer is not None
                device_state.buffer.clock[layout.OVERRUN].zero_()
            raise RuntimeError(
                "A captured schedule ran past its end: the table of a tabulated scheduler or the "
                "total_steps of OneCycleLR. The value was held. Pass horizon=<total steps> to "
                "the scheduler, or call scheduler.step() outside the graph."
            )
        if self.captured:
            self.schedules.raise_contradiction()

    def refresh_clock(self) -> None:
        """Bring the host's step counts up to date."""
        self.settle()
        if (self.clock_ahead or self.captured) and not capturing():
            for device_state in self.with_buffer():
                device_state.take_clock()
            self.clock_ahead = False

    @property
    def sync_suspended(self) -> bool:
        """Whether the host is changing values on its own account."""
        return self._suspension.is_entered()

    def suspend_sync(self) -> Suspension:
        """Within: reads do not catch up and writes stay on the host."""
        return self._suspension

    # -- cached launches -------------------------------------------------------------------------

    def settle(self) -> None:
        """Count what was launched without Python since the last look."""
        _ = self.device_states  # which have an account of their own where they were put off
        self._count_cached(*self.cached.take_steps())
        if not self.cached.take_advances():
            self.values_ahead = True

    def drop_cached(self) -> None:
        """Something changed: the next step must look."""
        self.settle()
        self.cached.drop_step()

    def drop_cached_schedule(self) -> None:
        """Something else may move the schedule: its next step is the host's."""
        self.settle()
        self.cached.drop_schedule()

    def expect_change(self) -> None:
        """A list of a scheduler's was handed out, which may be changed in place.

        The next step of each schedule is the host's, which then sends what it has become.
        """
        self.drop_cached_schedule()
        if self.schedules.fused and not self.exposed:
            self.take_back()
            self.drop_cached()
            self.exposed = True

    # -- what a launch changed -------------------------------------------------------------------

    def count(
        self,
        device_states: Sequence[DeviceState],
        grads: Sequence[Sequence[int]],
        moved: bool,
        scaled: bool,
        advance: int | None,
    ) -> bool:
        """After a launch; whether the host knows every step count.

        Args:
            grads: addresses of the gradients, by device state and row.
            moved: whether the params of the eager engine moved.
            scaled: whether only the device knows if the step was made.
            advance: how the launch was to advance the fused schedules; None for not at all.
        """
        self.zeroed.clear()
        inside = [capturing(device_state.device) for device_state in device_states]
        if any(inside):
            known = all(inside) and not scaled and not self.lr_tensors()
            self.note_capture(0 if known else None)
            return False
        if scaled:
            self.clock_ahead = True
        else:
            for device_state, addresses in zip(device_states, grads, strict=True):
                device_state.count_step(addresses)
        if self.schedules.fused and advance is not None:
            lr_tensors = bool(self.lr_tensors())
            if advance == layout.COUNTED:
                self._count_interval(moved, unknown=bool(device_states) and (scaled or lr_tensors))
            else:
                self.cadence.launched(advance)
            if lr_tensors and not device_states:
                self.refresh()  # the user reads the tensor without asking us
        return not self.clock_ahead

    def _count_interval(self, moved: bool, unknown: bool) -> None:
        """The account of schedules with an interval; only the device has it if ``unknown``."""
        self.since_upload += 1
        for fused in self.schedules.fused:
            fused.steps += 1
        if unknown:
            self.values_ahead = True
        elif moved:
            self.pending += 1
            if self.pending > _FEW and not self.with_buffer():
                self.refresh()  # on the eager engine: by and by, not all of it at the next read
        else:
            self.refresh()
            with self.suspend_sync():
                self.schedules.count_step(moved=False)

    def step_intervals(self, made: bool) -> None:
        """After a step that held what is fused: those with an interval advance on the host.

        Args:
            made: False if ``found_inf`` stopped the step.
        """
        self.refresh()
        for fused in self.schedules.fused:
            fused.steps += 1
        changed = True
        try:
            with self.suspend_sync():
                changed = self.schedules.count_step(made)
        finally:
            if changed or self.schedules.tables:
                self.follow()

    def _count_cached(self, steps: int, missed: Mapping[int, int]) -> None:
        """After steps made alone: each moved the params, since none had a scaler.

        Args:
            missed: by number of a param, the steps in which it had no gradient.
        """
        if not steps:
            return
        for device_state in self.device_states.values():
            device_state.clock += steps
            for index, number in missed.items():
                device_state.offsets[index] += number
        if self.schedules.fused and not self.schedules.governed:
            self.since_upload += steps
            self.pending += steps
            for fused in self.schedules.fused:
                fused.steps += steps

    def next_advance(self, scaled: bool) -> int:
        """How the next launch advances the fused schedules: STAY, CALLED or COUNTED."""
        if self.captured or capturing() or not self.schedules.fused:
            return layout.COUNTED
        if self.hosted(scaled):
            return layout.STAY
        return self.cadence.guess() if self.schedules.governed else layout.COUNTED

    def hosted(self, scaled: bool = False) -> bool:
        """Whether the host makes the fused schedules' steps, and the launches none.

        Args:
            scaled: only the device knows whether the next step is made.
        """
        intervals = [fused.interval for fused in self.schedules.fused]
        looks = self.asked or (self.exposed and bool(self.with_buffer()))
        if None not in intervals:
            return looks and not (scaled and self.schedules.tables)
        mixed = any(interval is not None for interval in intervals)
        return (
            mixed or looks or self.values_ahead or not self.with_buffer() or bool(self.lr_tensors())
        )

    def counts_intervals(self) -> bool:
        """Whether the host counts each step, for a schedule with an interval that it makes."""
        return not self.schedules.governed and self.hosted()

    def can_advance_alone(self) -> bool:
        """Whether a launch of the fused program alone is what one call asks for."""
        one = len(self.schedules.fused) == 1 and self.schedules.governed
        known = self.cadence.words[layout.PERIOD] and self.cadence.words[layout.LEFT]
        return bool(one and known and not self.hosted())

    def check_capture(self) -> None:
        """While a stream captures: raise for a fused schedule that the graph could not move."""
        if capturing():
            self.schedules.check_capture()

    def take_back(self) -> None:
        """Put the device back to the last call, if a launch has made steps ahead of the next."""
        if not self.cadence.ahead:
            return
        if capturing():
            raise RuntimeError(
                "The last optimizer step expected a scheduler.step() that has not come, and a "
                "capture cannot take its schedule back; call optimizer.prepare() before the capture"
            )
        self.refresh()
        self.upload()

    def check_end(self) -> None:
        """Before a step with an interval: renew a table, raise where torch's schedule raises."""
        if not self.schedules.fused or self.schedules.governed or self.captured or self.hosted():
            return
        if not self.with_buffer():
            self.refresh()
        program = self.programs[0]
        grown = program.lanes.shape[2] != len(self.optimizer.param_groups)
        if grown or (program.ends is not None and self.since_upload >= program.ends):
            self.refresh()
            with self.suspend_sync():
                self.schedules.dry_run()
            self.upload()

    def steps_left(self) -> int | None:
        """Steps that can be made before a fused schedule must be looked at; None for no end."""
        looks = self.schedules.fused and not self.schedules.governed
        ends = self.programs[0].ends if looks else None
        return None if ends is None else max(ends - self.since_upload, 0)

    # -- writing ---------------------------------------------------------------------------------

    def recursive(self) -> bool:
        """Whether a table was computed from the values of now, which an edit would make stale."""
        return any(program.recursive for program in self.programs)

    def encode(self, group: Mapping[str, Any]) -> list[float]:
        """A group's columns; an lr on a device is read there, before each launch."""
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.device.type != "cpu":
            group = {**group, "lr": 0.0}
        return self.rule.encode(group)

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The state tensors that each param of this group needs."""
        if self.schedules.cycle_momentum():
            group = {**group, "momentum": 1.0}
        return self.rule.state_names(group)

    def upload(self) -> None:
        """Send every value and schedule position to every device."""
        with self.lock:
            self._upload(self.with_buffer())

    def upload_into(self, device_state: DeviceState) -> None:
        """Give a device state its buffer, filled."""
        if capturable(device_state.device) or hasattr(device_state.engine, "cached_schedule"):
            self.schedules.own_programs(tabulate=False)
        self.refresh()
        self._upload([*self.with_buffer(), device_state])

    def _upload(self, device_states: Sequence[DeviceState]) -> None:
        self.drop_cached()
        self.cached.drop_schedule()
        self.since_upload = 0
        self.captures.take()
        self.rows_behind = self.exposed = False
        self.cadence.retract()
        self.copy.forget()
        with self.suspend_sync():
            self.asked = self.schedules.asked
        self.schedules.tables |= any(
            capturable(device_state.device) for device_state in device_states
        )
        if not device_states and not self.schedules.fused:
            return
        record = self.host_record()
        groups = record.shape[1]
        with self.suspend_sync():
            programs, explicit = self.schedules.lower(groups, self.programs)
        if self.captured and not all(
            device_state.fits(groups, programs) for device_state in device_states
        ):
            raise RuntimeError(f"The schedule program changed its size, but {RELEASE}.")
        places = self._history_places(device_states, groups)
        self.programs, self.schedules.explicit = programs, explicit
        self._governs = bool(self.schedules.fused) and self.schedules.governed
        for device_state in device_states:
            if not device_state.fits(groups, self.programs):
                self.refresh_clock()
                device_state.build_buffer(len(self.schedules.columns), groups, self.programs)
            for row, place in zip(programs[0].histories, places):
                here = place if device_state is device_states[0] else (0, 0)
                programs[0].ops[row, layout.ADDRESS], programs[0].ops[row, layout.AUX_LENGTH] = here
            device_state.send_values(record, self.programs)
        self.copy.take(record if device_states else None, programs, self.optimizer.param_groups)
        alone = len(device_states) == 1 and device_states[0].device.type == "cpu"
        self._readable = device_states[0].buffer if alone else None
        calls = 0 if not device_states or self.hosted() else len(self.schedules.fused)
        self.cadence.arrange(calls, programs[0].ends)

    def _history_places(
        self, device_states: Sequence[DeviceState], groups: int
    ) -> list[tuple[int, int]]:
        """Where the HISTORY rows write, on the first device alone; may fail to allocate it."""
        histories = self.schedules.histories
        if not device_states or not histories:
            return []
        self.refresh_clock()
        return [place for history in histories for place in history.bind(device_states[0], groups)]

    def follow(self, scheduler: Any = None) -> None:
        """A scheduler has stepped on the host: send what it may have changed."""
        if not self.with_buffer():
            return
        rows = bool(self.programs and self.programs[0].columns)
        own = self.schedules.program_of(scheduler) is not None
        if rows or self.captured or (own and self.schedules.tables):
            self.upload()
            return
        if own:  # no graph can come: the rows are sent when a launch needs them
            self.rows_behind = True
            self.cached.drop_schedule()
        if scheduler is None or not self._send_column(scheduler):
            self._send_record()

    def _send_column(self, scheduler: Any) -> bool:
        """Send the one hyperparameter that a scheduler moves; False where that is not all."""
        name = scheduler.hyper
        values = [dict.__getitem__(group, name) for group in self.optimizer.param_groups]
        simple = scheduler._MOVES_ONE and self.rule.keys.get(name) == (name,)
        others, self.written = self.written - {name}, set()
        if (
            others
            or not simple
            or scheduler._changed()
            or not all(isinstance(value, float) for value in values)
        ):
            return False
        if any(capturable(device) for device in self.device_states):
            return False
        self.copy.forget()
        for device_state in self.with_buffer():
            device_state.buffer.write_column(self.schedules.columns.index(name), values)  # type: ignore[union-attr]
        return True

    def send_rows(self) -> None:
        """Before a launch of a scheduler's own program: where it stands."""
        if self.rows_behind:
            self.upload()

    def _send_record(self) -> None:
        """Send every value, and no schedule's position."""
        record = self.host_record()
        self.copy.take_record(record)
        for device_state in self.with_buffer():
            device_state.send_record(record)

    def write(self, group: int, values: Mapping[int, float]) -> None:
        """Send one group's values, by column."""
        self.copy.write(group, values)
        for device_state in self.with_buffer():
            device_state.write(group, values)

    def host_record(self) -> Tensor:
        """The groups' values, float64 [columns, groups]."""
        with self.suspend_sync():
            groups = self.optimizer.param_groups
            encoded = [self.encode(dict(dict.items(group))) for group in groups]
        return torch.tensor(list(zip(*encoded)), dtype=torch.float64, device="cpu")

    def reprogram(self) -> None:
        """A scheduler's attributes changed: send its row anew."""
        if not self.sync_suspended:
            self.upload()

    def leave_device_states(self) -> None:
        """The device states go: what their launches have written is taken."""
        self.refresh_clock()
        self._readable = None
        self.copy.forget()
        self.cadence.retract()
        self.cadence.arrange(0, None)
        for history in self.schedules.histories:
            history.leave()

    # -- lr tensors -------------------------------------------------------------------------------

    def lr_tensors(self) -> LrTensors:
        """(group, lr) of the groups whose user keeps lr in a tensor."""
        return lr_tensors_of(self.optimizer.param_groups)

    def read_lr_tensors(self) -> None:
        """The user's lr tensors, into the record."""
        read_lr_tensors(self.lr_tensors(), self.with_buffer())

    def write_lr_tensors(self) -> None:
        """What a schedule on the device made of them, into the user's tensors."""
        write_lr_tensors(self.lr_tensors(), next(iter(self.with_buffer()), None))

    # -- captures --------------------------------------------------------------------------------

    def note_capture(self, program: int | None) -> None:
        """A step, or a scheduler's, is being captured.

        Args:
            program: which one of the schedules' each replay of it advances by one; None where only
                the device knows what it does.
        """
        self.captured = True
        self.captures.note(self.optimizer.watch_graphs, program)

    def end_captures(self) -> None:
        """Release by itself what graphs have captured of which none is left."""
        if not self.captured or capturing() or not self.captures.over():
            return
        for device_state in self.with_buffer():
            if device_state.device.type == "cuda":
                torch.cuda.synchronize(device_state.device)  # a graph that is gone may still run
        self.release()

    def release(self) -> None:
        """Forget the captures; every table may change again."""
        self.refresh()
        self.refresh_clock()
        self.captured = False
        self.captures.forget()
        self.schedules.in_graphs.clear()
        for device_state in self.device_states.values():
            device_state.captured_tables.clear()
        self.upload()  # the calls govern again

    def refuse_if_captured(self, what: str) -> None:
        self.end_captures()
        if self.captured:
            raise RuntimeError(f"{what} changes the tables, but {RELEASE}.")
