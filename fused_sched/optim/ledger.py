"""The ledger: what the host knows of the device, and who of the two is ahead.

In eager training the host's values are torch's own recurrences. The device runs ahead of them in
three cases: a fused schedule that the host has yet to replay (``pending``); steps that a scaler
may have skipped, or a metric that only the device saw (``values_ahead``); and a captured graph,
whose replays the host never sees (``captured``). A read first catches up, a write goes to both.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fused_sched.tables import layout
from fused_sched.tables.program import Assembled

from .group import Group
from .plan import Plan, capturing
from .schedules import Fused, Schedules
from .state import StateKeeper
from .stepper import RELEASE, Stepper


class Ledger:
    """Everything that an optimizer keeps beside torch's own attributes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = weakref.ref(optimizer)
        self.keeper = StateKeeper(type(optimizer))
        self.schedules = Schedules(type(optimizer)._COLUMNS)  # type: ignore[attr-defined]
        self.plans: dict[torch.device, Plan] = {}
        self.programs: list[Assembled] = []
        self.pending = 0
        self.values_ahead = False
        self.clock_ahead = False
        self.captured = False
        self.stale = False
        self._since_upload = 0
        self._busy = 0
        self.stepper = Stepper(self)

    @property
    def optimizer(self) -> Any:
        optimizer = self._optimizer()
        assert optimizer is not None
        return optimizer

    # -- reading ---------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring the host's values up to date; during a capture they stay as they were."""
        if self._busy or not (self.pending or self.values_ahead or self.captured):
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
            for _ in range(steps):
                for fused in self.schedules.fused:
                    fused.advance()

    def _fetch(self) -> None:
        """Read the device's values; waits for it, once."""
        plan = next((p for p in self.plans.values() if p.block is not None), None)
        self.pending = 0
        self.values_ahead = False
        if plan is None or plan.block is None:
            return
        host = plan.block.fetch()
        self._take_clock(plan, host)
        with self.host_only():
            columns = dict.fromkeys(name for p in self.programs for name in p.columns)
            current = host.record[int(host.clock[layout.CLOCK]) & 1].tolist()
            decode = type(self.optimizer)._decode
            for name in columns:
                values = current[self.schedules.columns.index(name)]
                for group, value in zip(self.optimizer.param_groups, values, strict=True):
                    decode(group, name, value)
            self.schedules.lift(host, self.programs)
        if host.clock[layout.OVERRUN]:
            raise RuntimeError(
                "A captured schedule ran past its end: the table of a tabulated scheduler or the "
                "total_steps of OneCycleLR. The value was held. Pass horizon=<total steps> to "
                "the scheduler, or call scheduler.step() outside the graph."
            )

    def _take_clock(self, plan: Plan, host: Any) -> None:
        plan.clock = int(host.clock[layout.CLOCK])
        plan.offsets = host.offsets.tolist()

    def refresh_clock(self) -> None:
        """Bring the host's step counts up to date."""
        if (self.clock_ahead or self.captured) and not capturing():
            for plan in self.plans.values():
                if plan.block is not None:
                    self._take_clock(plan, plan.block.fetch())
            self.clock_ahead = False

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

    def before_write(self, key: str) -> None:
        """Raise if a write cannot reach the device now; catch up if it must build on its values."""
        if self._busy:
            return
        columns = type(self.optimizer)._KEYS.get(key)
        if columns and capturing():
            raise RuntimeError(
                f"param_group[{key!r}] was assigned while a CUDA graph is being captured; the "
                "graph would not replay the assignment. Assign it before the capture or between "
                "replays, or let a fused_sched scheduler move it inside the graph."
            )
        if not columns or not (self.values_ahead or self.captured):
            self.refresh()

    def after_write(self, group: Group, key: str) -> None:
        """Send one group's new value to the device."""
        if self._busy or not self.plans:
            return
        numbers = [i for i, g in enumerate(self.optimizer.param_groups) if g is group]
        columns = type(self.optimizer)._KEYS.get(key, ())
        if not numbers or not any(plan.block is not None for plan in self.plans.values()):
            return
        with self.host_only():
            values = dict(zip(self.schedules.columns, self._encode(group), strict=True))
        if not columns or any(p.recursive for p in self.programs):
            self.upload()
            return
        for plan in self.plans.values():
            if plan.block is not None:
                plan.join_stream()
                for name in columns:
                    index = self.schedules.columns.index(name)
                    plan.block.write(index, numbers[0], values[name])

    def _encode(self, group: dict[str, Any]) -> list[float]:
        return type(self.optimizer)._encode(group)

    def upload(self) -> None:
        """Send every value and schedule position to every device."""
        self._upload([plan for plan in self.plans.values() if plan.block is not None])

    def upload_into(self, plan: Plan) -> None:
        """Give a plan its block, filled."""
        if plan.device.type == "cuda":
            self.schedules.own_programs(tabulate=False)
        self.refresh()
        self._upload([*(p for p in self.plans.values() if p.block is not None), plan])

    def _upload(self, plans: Sequence[Plan]) -> None:
        self.stale = False
        self._since_upload = 0
        if not plans:
            return
        with self.host_only():
            groups = self.optimizer.param_groups
            encoded = [self._encode(group) for group in groups]
            self.programs = self.schedules.lower(len(groups))
        record = torch.tensor(encoded, dtype=torch.float64).t().contiguous()
        for plan in plans:
            if not plan.fits(len(groups), self.programs):
                if self.captured:
                    raise RuntimeError(f"The schedule program changed its size, but {RELEASE}")
                self.refresh_clock()
                plan.build_block(len(self.schedules.columns), len(groups), self.programs)
            plan.send_values(record, self.programs)

    def reprogram(self) -> None:
        """A scheduler's attributes changed: send its row anew."""
        if not self._busy:
            self.upload()

    # -- schedulers ------------------------------------------------------------------------------

    def fuse(self, scheduler: Any, interval: int, on_skip: bool) -> None:
        """Let a scheduler advance in the optimizer's launch from here on."""
        self.refuse_if_captured("fuse()")
        self.refresh()
        with self.host_only():
            scheduler._segments()  # raises for what has no device form
        self.schedules.fuse(Fused(scheduler, interval, on_skip))
        self.stepper.prepare()

    def step_scheduler(self, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        """``scheduler.step()`` of one of our schedulers."""
        if self._busy:
            scheduler._host_step(*args, **kwargs)
            return
        fused = self.schedules.find(scheduler)
        if fused is not None and not args and not kwargs:
            self._answer(fused)
        elif not self._advance_on_device(scheduler, args, kwargs):
            self.refresh()
            with self.host_only():
                scheduler._host_step(*args, **kwargs)
            self.upload()

    def _answer(self, fused: Fused) -> None:
        """A ``step()`` call for a schedule that has already moved: only check the cadence."""
        if self.captured or self.values_ahead or capturing():
            return
        advances = fused.steps // fused.interval
        if advances - fused.answered >= 2:
            steps = (advances - fused.answered) * fused.interval
            raise RuntimeError(
                f"{type(fused.scheduler).__name__}.step() was called once in {steps} optimizer "
                f"steps, but the schedule is fused to advance every {fused.interval}. Pass the "
                "interval that you mean to fused_sched.fuse(), or do not fuse it."
            )
        fused.answered = min(fused.answered + 1, advances)

    def _advance_on_device(self, scheduler: Any, args: Any, kwargs: Any) -> bool:
        """Launch the scheduler's own program where the host cannot run it; False if it can."""
        metric = scheduler._device_metric(*args, **kwargs)
        inside = capturing()
        on_device = metric is not None and metric.device in self.plans
        if not (inside or self.captured or self.values_ahead or on_device):
            return False
        number = self.schedules.program_of(scheduler)
        if number is None and not inside and not self.captured and on_device:
            self.stepper.prepare()
            number = self.schedules.program_of(scheduler)
        if number is None or (metric is None and (args or kwargs)):
            if inside:
                reason = self.schedules.refused.get(
                    id(scheduler), "call optimizer.prepare() before the capture"
                )
                raise RuntimeError(f"{type(scheduler).__name__}.step() cannot be captured: {reason}")
            return False
        for plan in self.plans.values():
            if plan.block is not None:
                plan.join_stream()
                self.read_tensors()
                place = None if metric is None else metric.to(plan.device, torch.float64).reshape(1)
                plan.engine.advance(plan.block, plan.block.programs[number], metric=place)
        self.write_tensors()
        self.captured |= inside
        self.values_ahead = True
        return True

    # -- steps -----------------------------------------------------------------------------------

    def settle(self) -> None:
        """Send values that changed without passing through a group: new groups, CPU tensors."""
        if self.stale:
            if capturing():
                raise RuntimeError(
                    "The param groups were replaced since the last step, which a capture cannot "
                    "take over; call optimizer.prepare() before the capture"
                )
            self.refresh()
            self.upload()

    def check_end(self) -> None:
        """Before a fused step: renew a table that ends, raise where torch's schedule raises."""
        if not self.schedules.fused or self.values_ahead or self.captured:
            return
        if not any(plan.block is not None for plan in self.plans.values()):
            self.refresh()
            return
        ends = self.programs[0].ends if self.programs else None
        if ends is not None and self._since_upload >= ends:
            self.refresh()
            with self.host_only():
                self.schedules.rehearse()
            self.upload()

    def count(
        self, plans: Sequence[Plan], grads: Sequence[Sequence[int]], moved: bool, scaled: bool
    ) -> None:
        """The account of a step that has been launched."""
        if any(capturing(plan.device) for plan in plans):
            self.captured = True
            return
        fused = self.schedules.fused
        if scaled:
            self.clock_ahead = True
        else:
            for plan, addresses in zip(plans, grads, strict=True):
                plan.count_step(addresses)
        if not fused:
            return
        if plans and (scaled or self.lr_tensors()):
            self.values_ahead = True
        elif moved or any(one.on_skip for one in fused):
            self._since_upload += 1
            self.pending += 1
            for one in fused:
                one.steps += 1

    def lr_tensors(self) -> list[tuple[int, Tensor]]:
        """(group, lr) of the groups whose user keeps lr in a tensor."""
        groups = enumerate(self.optimizer.param_groups)
        rates = ((number, dict.__getitem__(group, "lr")) for number, group in groups)
        return [(number, lr) for number, lr in rates if isinstance(lr, Tensor)]

    def read_tensors(self) -> None:
        """The user's lr tensors: into the record before the launch."""
        for number, lr in self.lr_tensors():
            for plan in self.plans.values():
                if plan.block is not None:
                    value = lr.detach().reshape(())
                    plan.block.record[:, 0, number].copy_(value, non_blocking=True)

    def write_tensors(self) -> None:
        """What a schedule on the device made of them: back into the user's tensors."""
        plan = next((p for p in self.plans.values() if p.block is not None), None)
        for number, lr in self.lr_tensors():
            if plan is not None and plan.block is not None:
                current = plan.block.record.index_select(0, plan.block.clock[:1] & 1)
                lr.copy_(current[0, 0, number].reshape(lr.shape))

    # -- checkpoints -----------------------------------------------------------------------------

    def refuse_if_captured(self, what: str) -> None:
        if self.captured:
            raise RuntimeError(f"{what} changes the tables, but {RELEASE}.")

    @contextmanager
    def loading(self, given: list[dict[str, Any]]) -> Iterator[None]:
        """Around torch's ``load_state_dict``: its groups, but the checkpoint's own tensors."""
        optimizer = self.optimizer
        before = optimizer.param_groups, self.keeper.state
        try:
            yield
            self.keeper.take(given[-1], optimizer.param_groups)
        except BaseException:
            optimizer.param_groups, self.keeper.state = before
            raise
        self.stepper.load()

    def show_state(self) -> Any:
        """``optimizer.state`` as of now."""
        self.refresh_clock()
        return self.keeper.show(self.plans.values())
