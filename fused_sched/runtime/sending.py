"""The way from the host to the devices: values, positions of schedules, and the programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fused_sched.tables import layout
from fused_sched.tables.program import Assembled

from .device_state import RELEASE, DeviceState, capturable
from .host import Host
from .host_copy import HostCopy
from .launch_account import LaunchAccount


class Sender:
    """Sends what the host has changed: all of it, only the values, or one column.

    Attributes:
        programs: the schedules' programs as they were sent last: the fused one, then the explicit.
        rows_behind: schedulers that the host has stepped since their rows were sent.
        written: keys of groups that were assigned while sync was suspended.
    """

    def __init__(self, host: Host, account: LaunchAccount, copy: HostCopy) -> None:
        self._host = host
        self._account = account
        self._copy = copy
        self.programs: list[Assembled] = []
        self.rows_behind = False
        self.written: set[str] = set()

    def recursive(self) -> bool:
        """Whether a table was computed from the present values, which an edit would make stale."""
        return any(program.recursive for program in self.programs)

    # -- all of it -------------------------------------------------------------------------------

    def upload(self) -> None:
        """Send every value and schedule position to every device."""
        with self._host.lock:
            self._upload(self._host.with_buffer())

    def upload_too(self, device_state: DeviceState) -> None:
        """The same, and to one more device, which gets its buffer."""
        self._upload([*self._host.with_buffer(), device_state])

    def reprogram(self) -> None:
        """A scheduler's attributes changed: send its row anew."""
        if not self._host.suspend_sync.is_entered:
            self.upload()

    def _upload(self, device_states: Sequence[DeviceState]) -> None:
        self._account.begin_upload()
        self.rows_behind = False
        self._copy.forget()
        schedules = self._host.schedules
        schedules.tables |= any(capturable(one.device) for one in device_states)
        if not device_states and not schedules.fused:
            return
        record = self._host.record()
        groups = record.shape[1]
        with self._host.suspend_sync:
            programs, explicit = schedules.lower(groups, self.programs)
        if self._account.captured and not all(one.fits(groups, programs) for one in device_states):
            raise RuntimeError(f"The schedule program changed its size, but {RELEASE}.")
        places = self._history_places(device_states, groups)
        self.programs, schedules.explicit = programs, explicit
        for device_state in device_states:
            if not device_state.fits(groups, programs):
                self._account.refresh_clock()
                device_state.build_buffer(len(schedules.columns), groups, programs)
            for row, place in zip(programs[0].histories, places):
                here = place if device_state is device_states[0] else (0, 0)
                programs[0].ops[row, layout.ADDRESS], programs[0].ops[row, layout.AUX_LENGTH] = here
            device_state.send_values(record, programs)
        self._copy.take(record, programs, self._host.optimizer.param_groups, device_states)
        self._account.arrange(programs[0].ends, launches=bool(device_states))

    def _history_places(
        self, device_states: Sequence[DeviceState], groups: int
    ) -> list[tuple[int, int]]:
        """Where the HISTORY rows write, on the first device only; may fail to allocate it."""
        histories = self._host.schedules.histories
        if not device_states or not histories:
            return []
        self._account.refresh_clock()
        return [place for history in histories for place in history.bind(device_states[0], groups)]

    # -- a part of it ----------------------------------------------------------------------------

    def follow(self, scheduler: Any = None) -> None:
        """A scheduler has stepped on the host: send what it may have changed."""
        schedules = self._host.schedules
        if not self._host.with_buffer():
            if schedules.fused:
                self.upload()  # a jump has moved the end, which the steps are counted to
            return
        rows = bool(self.programs and self.programs[0].columns)
        own = schedules.program_of(scheduler) is not None
        if rows or self._account.captured or (own and schedules.tables):
            self.upload()
            return
        if own:  # no graph can come: the rows are sent when a launch needs them
            self.rows_behind = True
            self._account.cached.drop_schedule()
        if scheduler is None or not self._send_column(scheduler):
            self._send_record()

    def _send_column(self, scheduler: Any) -> bool:
        """Send the one hyperparameter that a scheduler moves; False where that is not all."""
        host = self._host
        name = scheduler.hyper
        values = [dict.__getitem__(group, name) for group in host.optimizer.param_groups]
        simple = scheduler._MOVES_ONE and host.rule.keys.get(name) == (name,)
        others, self.written = self.written - {name}, set()
        if (
            others
            or not simple
            or scheduler._changed()
            or not all(isinstance(value, float) for value in values)
            or any(capturable(device) for device in host.device_states)
        ):
            return False
        self._copy.forget()
        column = host.schedules.columns.index(name)
        for device_state in host.with_buffer():
            assert device_state.buffer is not None
            device_state.buffer.write_column(column, values)
        return True

    def send_rows(self) -> None:
        """Before a launch of a scheduler's own program: where it stands."""
        if self.rows_behind:
            self.upload()

    def _send_record(self) -> None:
        """Send every value, and no schedule's position."""
        record = self._host.record()
        self._copy.take_record(record)
        for device_state in self._host.with_buffer():
            device_state.send_record(record)

    def write(self, group: int, values: Mapping[int, float]) -> None:
        """Send one group's values, by column."""
        self._copy.write(group, values)
        for device_state in self._host.with_buffer():
            device_state.write(group, values)

    def note_written(self, key: str) -> None:
        """A key of a group was assigned while sync was suspended."""
        self.written.add(key)

    # -- the end of it ---------------------------------------------------------------------------

    def leave_devices(self) -> None:
        """The device states go: what their launches have written is taken."""
        self._account.refresh_clock()
        self._copy.leave()
        self._account.cadence.retract()
        self._account.cadence.arrange(0, None)
        for history in self._host.schedules.histories:
            history.leave()
