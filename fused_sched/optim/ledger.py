"""The ledger: what the host knows of the device, and who of the two is ahead.

In eager training the host's values are torch's own recurrences. The device runs ahead of them in
three cases: a fused schedule that the host has yet to replay (``pending``); steps that a scaler
may have skipped, or a metric that only the device saw (``values_ahead``); and a captured graph,
whose replays the host never sees (``captured``). A read first catches up, a write goes to both.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fused_sched.tables import layout
from fused_sched.tables.block import Block
from fused_sched.tables.program import Assembled

from .explicit import step_scheduler
from .history import History
from .lean import Lean
from .loading import Loading
from .plan import RELEASE, Plan, capturing, refuse_capturing
from .rates import Rates, rates_of, read_rates, write_rates
from .schedules import Fused, Schedules
from .state import StateKeeper
from .stepper import Stepper


class Ledger:
    """Everything that an optimizer keeps beside torch's own attributes."""

    def __init__(self, optimizer: Any) -> None:
        self.reference = weakref.ref(optimizer)
        self.rules: Any = type(optimizer)
        self.keeper = StateKeeper(self.rules)
        self.schedules = Schedules(self.rules._COLUMNS)
        self.plans: dict[torch.device, Plan] = {}
        self.programs: list[Assembled] = []
        self.pending = 0
        self.values_ahead = False
        self.clock_ahead = False
        self.captured = False
        self.loading: Loading | None = None
        self.lean = Lean()
        self.since_upload = 0
        self._busy = 0
        self.stepped = False  # whether a step was ever made
        self.zeroed: set[int] = set()  # groups whose lr was assigned 0 since the last step
        self.stepper = Stepper(self)

    @property
    def optimizer(self) -> Any:
        optimizer = self.reference()
        assert optimizer is not None
        return optimizer

    def blocks(self) -> list[Plan]:
        """The plans that have a block on their device."""
        return [plan for plan in self.plans.values() if plan.block is not None]

    # -- reading ---------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring the host's values up to date; during a capture they stay as they were."""
        if self._busy:
            return
        self.lean.settle(self)
        if not (self.pending or self.lean.owed or self.values_ahead or self.captured):
            return
        if capturing():
            return
        if self.values_ahead or self.captured:
            self._fetch()
        else:
            self._replay()

    def _replay(self) -> None:
        """Run torch's recurrences for the steps that the device has made alone."""
        steps, self.pending = self.pending, 0
        with self.host_only():
            self.lean.replay()
            for _ in range(steps):
                for fused in self.schedules.fused:
                    fused.advance()

    def _fetch(self) -> None:
        """Read the device's values; waits for it, once."""
        self.pending = self.lean.owed = 0
        self.values_ahead = False
        plans = self.blocks()
        if not plans:
            return
        assert plans[0].block is not None
        host = plans[0].block.fetch()
        with self.host_only():
            self.schedules.lift(host, self.programs)
            self._take_values(host)
        if host.clock[layout.OVERRUN]:
            for plan in plans:
                assert plan.block is not None
                plan.block.clock[layout.OVERRUN].zero_()
            raise RuntimeError(
                "A captured schedule ran past its end: the table of a tabulated scheduler or the "
                "total_steps of OneCycleLR. The value was held. Pass horizon=<total steps> to "
                "the scheduler, or call scheduler.step() outside the graph."
            )

    def _take_values(self, host: Block) -> None:
        """Put the scheduled columns into the groups, as Python floats."""
        current = host.record[int(host.clock[layout.CLOCK]) & 1].tolist()
        for name in dict.fromkeys(name for program in self.programs for name in program.columns):
            values = current[self.schedules.columns.index(name)]
            for group, value in zip(self.optimizer.param_groups, values):
                self.rules._decode(group, name, value)

    def refresh_clock(self) -> None:
        """Bring the host's step counts up to date."""
        self.lean.settle(self)
        if (self.clock_ahead or self.captured) and not capturing():
            for plan in self.blocks():
                plan.take_clock()
            self.clock_ahead = False
            self.keeper.behind = True

    def drop_lean(self) -> None:
        """Something changed: the next step must look."""
        self.lean.drop_step(self)

    @property
    def hosting(self) -> bool:
        """Whether the host is changing values on its own account."""
        return self._busy > 0

    @contextmanager
    def host_only(self) -> Iterator[None]:
        """Within: reads do not catch up and writes stay on the host."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    # -- writing ---------------------------------------------------------------------------------

    def recursive(self) -> bool:
        """Whether a table was computed from the values of now, which an edit would make stale."""
        return any(program.recursive for program in self.programs)

    def encode(self, group: Mapping[str, Any]) -> list[float]:
        """A group's columns; an lr on a device is read there, before each launch."""
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.device.type != "cpu":
            group = {**group, "lr": 0.0}
        return self.rules._encode(group)

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The state tensors that each param of this group needs."""
        cycled = {"momentum": 1.0} if self.schedules.cycle_momentum() else {}
        return self.rules._state_names({**group, **cycled})

    def upload(self) -> None:
        """Send every value and schedule position to every device."""
        self._upload(self.blocks())

    def upload_into(self, plan: Plan) -> None:
        """Give a plan its block, filled."""
        if plan.device.type == "cuda" or hasattr(plan.engine, "lean_schedule"):
            self.schedules.own_programs(tabulate=False)
        self.refresh()
        self._upload([*self.blocks(), plan])

    def _upload(self, plans: Sequence[Plan]) -> None:
        self.drop_lean()
        self.lean.drop_schedule(self)
        self.since_upload = 0
        if not plans and not self.schedules.fused:
            return
        record = self.host_record()
        groups = record.shape[1]
        with self.host_only():
            programs, explicit = self.schedules.lower(groups, self.programs)
        if self.captured and not all(plan.fits(groups, programs) for plan in plans):
            raise RuntimeError(f"The schedule program changed its size, but {RELEASE}.")
        places = self._history_places(plans, groups)
        self.programs, self.schedules.explicit = programs, explicit
        for plan in plans:
            if not plan.fits(groups, self.programs):
                self.refresh_clock()
                plan.build_block(len(self.schedules.columns), groups, self.programs)
            for row, place in zip(programs[0].histories, places):
                here = place if plan is plans[0] else (0, 0)
                programs[0].ops[row, layout.ADDRESS], programs[0].ops[row, layout.AUX_LENGTH] = here
            plan.send_values(record, self.programs)

    def _history_places(self, plans: Sequence[Plan], groups: int) -> list[tuple[int, int]]:
        """Where the HISTORY rows write, on the first device alone; may fail to allocate it."""
        histories = self.schedules.histories
        if not plans or not histories:
            return []
        self.refresh_clock()
        return [place for history in histories for place in history.bind(plans[0], groups)]

    def follow(self, scheduler: Any) -> None:
        """A scheduler has stepped on the host: send what it may have changed."""
        positions = self.schedules.fused or self.schedules.program_of(scheduler) is not None
        if positions or self.captured:
            self.upload()
            return
        record = self.host_record()
        for plan in self.blocks():
            plan.send_record(record)

    def host_record(self) -> Tensor:
        """The groups' values, float64 [columns, groups]."""
        with self.host_only():
            groups = self.optimizer.param_groups
            encoded = [self.encode(dict(dict.items(group))) for group in groups]
        return torch.tensor(encoded, dtype=torch.float64).t().contiguous()

    def reprogram(self) -> None:
        """A scheduler's attributes changed: send its row anew."""
        if not self._busy:
            self.upload()

    # -- schedulers ------------------------------------------------------------------------------

    def fuse(self, scheduler: Any, interval: int, on_skip: bool) -> None:
        """Let a scheduler advance in the optimizer's launch from here on."""
        self.refuse_if_captured("fuse()")
        self.refresh()
        self.zeroed.clear()  # by a scheduler that warms up from 0, not by a checkpoint's probe
        before = list(self.schedules.fused)
        self.schedules.fuse(Fused(scheduler, interval, on_skip))
        try:
            with self.host_only():
                scheduler._rehearse()  # raises for what ends at once
            self.stepper.prepare()
        except BaseException:
            self.schedules.fused = before
            raise

    def keep_history(self, names: Sequence[str], capacity: int) -> History:
        """Let the launches write down what they use of these columns."""
        refuse_capturing("history()")
        self.refuse_if_captured("history()")
        self.refresh()
        history = History(self, names, capacity)
        self.schedules.histories.append(history)
        try:
            self.upload()
        except BaseException:
            self.schedules.histories.remove(history)
            raise
        return history

    def leave_plans(self) -> None:
        """The plans go: what their launches have written is taken."""
        self.refresh_clock()
        for history in self.schedules.histories:
            history.leave()

    def step_scheduler(self, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        """``scheduler.step()`` of one of our schedulers."""
        step_scheduler(self, scheduler, *args, **kwargs)

    # -- lr tensors -------------------------------------------------------------------------------

    def rates(self) -> Rates:
        """(group, lr) of the groups whose user keeps lr in a tensor."""
        return rates_of(self.optimizer.param_groups)

    def read_rates(self) -> None:
        """The user's lr tensors, into the record."""
        read_rates(self.rates(), self.blocks())

    def write_rates(self) -> None:
        """What a schedule on the device made of them, into the user's tensors."""
        write_rates(self.rates(), next(iter(self.blocks()), None))

    # -- state, captures -------------------------------------------------------------------------

    def refuse_if_captured(self, what: str) -> None:
        if self.captured:
            raise RuntimeError(f"{what} changes the tables, but {RELEASE}.")

    def show_state(self) -> Any:
        """``optimizer.state`` as of now."""
        self.drop_lean()
        keeper = self.keeper
        keeper.shown = True
        if not self._busy and not capturing():
            self.refresh_clock()
            if keeper.behind:
                keeper.write_steps(self.plans.values())
        return keeper.state
