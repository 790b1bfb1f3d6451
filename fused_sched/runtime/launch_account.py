"""What launches have done that the host's values do not show yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fused_sched.tables import layout

from .cached import CachedLaunches
from .cadence import Cadence
from .captures import Captures
from .device_state import DeviceState, capturing
from .host import Host


class LaunchAccount:
    """Counts launches, and decides how the next one advances the fused schedules.

    The devices run ahead of the host in four cases: advances of a fused schedule that the host has
    yet to make (``unreplayed`` ones of an interval, ``cadence.rounds`` that calls govern); one that
    a launch has made ahead of the call (``cadence.ahead``), which no read shows; values that only
    the device knows (``values_unknown``); and a captured graph (``captured``).

    Attributes:
        unreplayed: advances of schedules with an interval that the host has yet to make.
        values_unknown: a scaler may have skipped a step, or a metric lay on the device.
        clock_unknown: likewise of the step counts.
        captured: a graph may replay a step; ``captures`` are the graphs.
        asked: the host must ask for a fused schedule's next value.
        exposed: a user may be changing a fused scheduler's lists.
        governs: the calls of ``scheduler.step()`` move what is fused, and something is.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.cadence = Cadence()
        self.cached = CachedLaunches(host.reference)
        self.captures = Captures()
        self.captured = False
        self.unreplayed = 0
        self.values_unknown = False
        self.clock_unknown = False
        self.asked = False
        self.exposed = False
        self.governs = False
        self._since_upload = 0  # steps of schedules with an interval
        self._ends: int | None = None  # steps from an upload to the first end of a schedule

    @property
    def device_leads(self) -> bool:
        """Whether a device may have moved values otherwise than by launches that are counted."""
        return self.captured or self.values_unknown

    @property
    def behind(self) -> int:
        """Advances of one kind that the host has yet to make; 0 if there are none of any kind."""
        words = self.cadence.words
        return (
            self.unreplayed
            or self.cached.unreplayed
            or words[layout.ROUNDS]
            or words[layout.ANSWERED]
        )

    # -- launches without Python -----------------------------------------------------------------

    def settle(self) -> None:
        """Count what cached launches have done since the last look."""
        _ = self._host.device_states  # which have an account of their own where they were put off
        self._count_cached(*self.cached.take_steps())
        if not self.cached.take_advances():
            self.values_unknown = True

    def _count_cached(self, steps: int, missed: Mapping[int, int]) -> None:
        """After cached launches: each moved the params, since none had a scaler.

        Args:
            missed: by number of a param, the steps in which it had no gradient.
        """
        if not steps:
            return
        for device_state in self._host.device_states.values():
            device_state.count_steps(steps, missed)
        if self._host.schedules.fused and not self._host.schedules.governed:
            self.count_interval(steps)

    def drop_cached(self) -> None:
        """Drop the cached launch: the next ``step()`` takes the full path."""
        self.settle()
        self.cached.drop_launch()

    def drop_cached_schedule(self) -> None:
        """Drop the cached advance: the next ``scheduler.step()`` is made on the host."""
        self.settle()
        self.cached.drop_schedule()

    # -- launches of a full step -----------------------------------------------------------------

    def count_clocks(
        self, device_states: Sequence[DeviceState], grads: Sequence[Sequence[int]], scaled: bool
    ) -> None:
        """After one launch on each device.

        Args:
            grads: addresses of the gradients, by device state and row.
            scaled: whether only the device knows if the step was made.
        """
        if scaled:
            self.clock_unknown = True
            return
        for device_state, addresses in zip(device_states, grads, strict=True):
            device_state.count_step(addresses)

    def count_interval(self, steps: int, moved: bool = True) -> None:
        """Optimizer steps, for the fused schedules with an interval.

        Args:
            moved: whether the launches have advanced them, and the host knows how often.
        """
        self._since_upload += steps
        for fused in self._host.schedules.fused:
            fused.count_steps(steps)
        if moved:
            self.unreplayed += steps

    def count_replays(self, advances: int) -> None:
        """Advances of what is fused, by replays of graphs."""
        self.unreplayed += advances

    def note_unknown(self) -> None:
        """Only the device knows the values from here on."""
        self.values_unknown = True

    def note_exposed(self) -> None:
        """A user may change a fused scheduler's lists from here on."""
        self.exposed = True

    def take_unreplayed(self) -> int:
        """The advances of schedules with an interval; the host makes them now."""
        unreplayed, self.unreplayed = self.unreplayed, 0
        return unreplayed

    def fetched(self) -> None:
        """The host takes the device's values: there is nothing to make again."""
        self.take_unreplayed()
        self.cached.take_unreplayed()
        self.cadence.take_rounds()
        self.captures.take()
        self.values_unknown = False

    def refresh_clock(self) -> None:
        """Bring the host's step counts up to date."""
        self.settle()
        if (self.clock_unknown or self.captured) and not capturing():
            for device_state in self._host.with_buffer():
                device_state.take_clock()
            self.clock_unknown = False

    # -- uploads ---------------------------------------------------------------------------------

    def begin_upload(self) -> None:
        """Every value and position is about to be sent: the devices start from there."""
        self.drop_cached()
        self.cached.drop_schedule()
        self._since_upload = 0
        self.captures.take()
        self.exposed = False
        self.cadence.retract()
        with self._host.suspend_sync:
            self.asked = self._host.schedules.asked

    def arrange(self, ends: int | None, launches: bool) -> None:
        """Everything was sent.

        Args:
            ends: steps until a fused schedule ends, None if none does.
            launches: whether there is a device to launch on.
        """
        schedules = self._host.schedules
        self._ends = ends
        self.governs = bool(schedules.fused) and schedules.governed
        calls = 0 if not launches or self.hosted() else len(schedules.fused)
        self.cadence.arrange(calls, ends)

    # -- the next launch -------------------------------------------------------------------------

    def next_advance(self, scaled: bool) -> int:
        """How the next launch advances the fused schedules: STAY, CALLED or COUNTED."""
        schedules = self._host.schedules
        if self.captured or capturing() or not schedules.fused:
            return layout.COUNTED
        if self.hosted(scaled):
            return layout.STAY
        return self.cadence.guess() if schedules.governed else layout.COUNTED

    def hosted(self, scaled: bool = False) -> bool:
        """Whether the host makes the fused schedules' steps, and the launches none.

        Args:
            scaled: only the device knows whether the next step is made.
        """
        host = self._host
        intervals = [fused.interval for fused in host.schedules.fused]
        looks = self.asked or (self.exposed and bool(host.with_buffer()))
        if None not in intervals:
            return looks and not (scaled and host.schedules.tables)
        mixed = any(interval is not None for interval in intervals)
        if mixed or looks or self.values_unknown:
            return True
        return not host.with_buffer() or bool(host.lr_tensors())

    def counts_intervals(self) -> bool:
        """Whether the host counts each step, for a schedule with an interval that it makes."""
        return not self._host.schedules.governed and self.hosted()

    def can_advance_alone(self) -> bool:
        """Whether one call asks for a launch of the fused program and nothing else."""
        schedules = self._host.schedules
        one = len(schedules.fused) == 1 and schedules.governed
        known = self.cadence.words[layout.PERIOD] and self.cadence.words[layout.LEFT]
        return bool(one and known and not self.hosted())

    def steps_left(self) -> int | None:
        """Steps that can be made before a fused schedule must be looked at; None for no end."""
        schedules = self._host.schedules
        if self._ends is None or not schedules.fused or schedules.governed:
            return None
        return max(self._ends - self._since_upload, 0)

    # -- captures --------------------------------------------------------------------------------

    def note_capture(self, program: int | None) -> None:
        """A step, or a scheduler's, is being captured.

        Args:
            program: which one of the schedules' each replay of it advances by one; None where only
                the device knows what it does.
        """
        self.captured = True
        self.captures.note(self._host.optimizer.watch_graphs, program)

    def forget_captures(self) -> None:
        """No graph is left."""
        self.captured = False
        self.captures.forget()
        self._host.schedules.in_graphs.clear()
        for device_state in self._host.device_states.values():
            device_state.captured_tables.clear()
