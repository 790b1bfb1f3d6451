"""The mirror: the host's values follow the devices' at a read, and a write goes to both.

In eager training the host's values are torch's own recurrences. Where launches have run ahead of
them (see ``LaunchAccount``), a read first catches up: by making the same steps on the host, or
where only the device knows, by reading from it.
"""

from __future__ import annotations

from typing import Any

import torch

from fused_sched.tables import layout

from .device_state import RELEASE, DeviceState, capturable, capturing
from .group_numbers import GroupNumbers
from .host import Host
from .host_copy import HostCopy
from .launch_account import LaunchAccount
from .probe import CheckpointProbe
from .sending import Sender
from .view import View

FEW = 64
"""Steps up to which the host repeats torch's own code rather than wait for a device."""

_MANY = 200_000
"""Steps times groups up to which the host makes the steps of replays again, at 45 ns each: 9 ms."""


class Mirror:
    """Who is ahead, host or device; catches up.

    Attributes:
        host: the optimizer's side.
        account: what launches have done that the host does not show.
        copy: what the devices have got.
        sender: the way to the devices.
        probe: of torch's checkpoints.
        numbers: what a rule carries on for each group.
    """

    def __init__(self, optimizer: Any) -> None:
        self.host = Host(optimizer)
        self.account = LaunchAccount(self.host)
        self.copy = HostCopy(self.host.schedules)
        self.sender = Sender(self.host, self.account, self.copy)
        self.probe = CheckpointProbe()
        self.numbers = GroupNumbers(self.host)

    # -- reading ---------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring the host's values up to date; during a capture they stay as they were."""
        if self.host.suspend_sync.is_entered:
            return
        with self.host.lock:
            self.account.settle()
            self._catch_up()
            self._take_positions()

    def refresh_group(self) -> None:
        """The same, and what the rule carries on for each group; waits for the device for that."""
        if self.host.suspend_sync.is_entered:
            return
        with self.host.lock:
            self.refresh()
            self.numbers.take()

    def refresh_values(self) -> None:
        """Bring the groups up to date, and the schedulers only where that costs nothing more."""
        host = self.host
        if host.suspend_sync.is_entered:
            return
        with host.lock:
            if host.put_off is not None:
                return  # nothing moves a value there
            if (view := self._view()) is not None:
                view.show(host.rule.decode)
                return
            if not self.account.governs:
                self.account.settle()
            self._catch_up()

    def _view(self) -> View | None:
        """The present values where they lie on this CPU, no launch ahead of the user's calls."""
        account = self.account
        if self.copy.readable is None or account.cadence.words[layout.AHEAD]:
            return None
        if account.device_leads or account.clock_unknown:
            return None
        return self.copy.view(self.copy.readable)

    def last_values(self, scheduler: Any) -> list[float] | None:
        """What a scheduler has set last; None where its attributes must be looked at.

        Spares a loop that logs ``get_last_lr()`` at each step the rest of them.
        """
        if self.host.suspend_sync.is_entered:
            return None
        with self.host.lock:
            view = None if self.sender.rows_behind else self._view()
            last = None if view is None else view.last(scheduler)
            if last is not None:
                return last
            self.refresh_values()
            return self.copy.last_values(scheduler)

    def _catch_up(self) -> None:
        account = self.account
        behind = account.behind
        if not (behind or account.device_leads) or capturing():
            return
        if self.asks_device():
            self._fetch()
        elif account.captured:
            self._replay_graphs()
        elif self.copy.is_ready():
            self._replay()
        elif behind > FEW and not account.cadence.ahead and self.host.with_buffer():
            self._fetch()
        else:
            self._repeat()
        if answered := account.cadence.answered:
            self._split_round(answered)

    def _replay(self) -> None:
        """Make the steps of uncaptured launches again, by the same arithmetic."""
        account = self.account
        steps = account.take_unreplayed() + account.cadence.take_rounds()
        if steps:
            self.copy.advance(0, steps)
        if account.cached.unreplayed:
            number = self.host.schedules.program_of(account.cached.scheduler)
            steps = account.cached.take_unreplayed()
            if number is not None:
                self.copy.advance(number, steps)
        self.copy.show_values(self.host.rule.decode)

    def asks_device(self) -> bool:
        """Whether only the device knows the values, so that a read waits for it."""
        account = self.account
        if account.values_unknown:
            return True
        return account.captured and not (account.captures.counted() and self.copy.is_ready())

    def _replay_graphs(self) -> None:
        """Make the steps of the graphs' replays as well."""
        account = self.account
        advances = account.captures.take()
        fused = advances.pop(0, 0)
        account.count_replays(fused if self.host.schedules.fused else 0)
        steps = account.unreplayed + sum(advances.values())
        if steps * len(self.host.optimizer.param_groups) > _MANY:
            self._fetch()
            return
        if not (steps or account.cached.unreplayed or account.cadence.rounds):
            return  # nothing since the last read
        for program, times in advances.items():
            self.copy.advance(program, times)
        self._replay()
        if self.copy.overran():
            self._fetch()  # which raises

    def _repeat(self) -> None:
        """Run torch's recurrences for the steps of launches."""
        account, schedules = self.account, self.host.schedules
        steps = account.take_unreplayed()
        with self.host.suspend_sync:
            account.cached.replay()
            for _ in range(steps):
                schedules.count_step()
            for _ in range(account.cadence.take_rounds()):
                for fused in schedules.fused:
                    fused.scheduler._host_step()

    def _split_round(self, answered: int) -> None:
        """Show a round of which only the first calls have come; the device has made all of it."""
        self.account.cadence.retract()
        self._take_positions()
        with self.host.suspend_sync:
            for fused in self.host.schedules.fused[:answered]:
                fused.scheduler._host_step()
        self.sender.upload()

    def _take_positions(self) -> None:
        """Bring the schedulers up to date, where only the groups are."""
        if self.copy.behind:
            with self.host.suspend_sync:
                self.copy.show_positions()

    def _fetch(self) -> None:
        """Read the device's values; waits for it, once."""
        self.account.fetched()
        self.copy.forget()
        device_states = self.host.with_buffer()
        if not device_states:
            return
        assert device_states[0].buffer is not None
        fetched = device_states[0].buffer.fetch()
        schedules = self.host.schedules
        with self.host.suspend_sync:
            schedules.read_back(fetched, self.sender.programs)
        current = fetched.record[int(fetched.clock[layout.CLOCK]) & 1].tolist()
        self.copy.put_values(self.host.rule.decode, current.__getitem__)
        if fetched.clock[layout.OVERRUN]:
            for device_state in device_states:
                device_state.clear_overrun()
            raise RuntimeError(
                "A captured schedule ran past its end: the table of a tabulated scheduler or the "
                "total_steps of OneCycleLR. The value was held. Pass horizon=<total steps> to "
                "the scheduler, or call scheduler.step() outside the graph."
            )
        if self.account.captured:
            schedules.raise_contradiction()

    def expect_change(self) -> None:
        """A list of a scheduler's was handed out, which may be changed in place.

        The next step of each schedule is the host's, which then sends what it has become.
        """
        self.account.drop_cached_schedule()
        if self.host.schedules.fused and not self.account.exposed:
            self.take_back()
            self.account.drop_cached()
            self.account.note_exposed()

    # -- writing ---------------------------------------------------------------------------------

    def upload_into(self, device_state: DeviceState) -> None:
        """Give a device its buffer, filled."""
        if capturable(device_state.device) or hasattr(device_state.engine, "cached_schedule"):
            self.host.schedules.own_programs(tabulate=False)
        self.refresh()
        self.sender.upload_too(device_state)

    def take_back(self) -> None:
        """Put the device back to the last call, if a launch has made steps ahead of the next."""
        if not self.account.cadence.ahead:
            return
        if capturing():
            raise RuntimeError(
                "The last optimizer step expected a scheduler.step() that has not come, and a "
                "capture cannot take its schedule back; call optimizer.prepare() before the capture"
            )
        self.refresh()
        self.sender.upload()

    # -- captures --------------------------------------------------------------------------------

    def end_captures(self) -> None:
        """Release by itself what graphs have captured of which none is left."""
        if not self.account.captured or capturing() or not self.account.captures.over():
            return
        for device_state in self.host.with_buffer():
            if device_state.device.type == "cuda":
                # A graph that is gone may still run.
                torch.cuda.synchronize(device_state.device)
        self.release()

    def release(self) -> None:
        """Forget the captures; every table may change again."""
        self.refresh()
        self.account.refresh_clock()
        self.account.forget_captures()
        self.sender.upload()  # the calls govern again

    def refuse_if_captured(self, what: str) -> None:
        self.end_captures()
        if self.account.captured:
            raise RuntimeError(f"{what} changes the tables, but {RELEASE}.")
