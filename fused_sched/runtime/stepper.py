"""One optimizer step, from the params as they are to the engines."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fused_sched.engines import eager_engine
from fused_sched.tables import layout
from fused_sched.tables.local import local
from fused_sched.tables.program import NO_TABLE

from .advances import Advances
from .cached_steps import keep_step
from .changes import take_changes
from .device_state import DeviceState, capturing
from .fallback import is_odd
from .first_step import make_first_step
from .mirror import Mirror
from .placement import Placement
from .state import StateKeeper


@dataclass(slots=True)
class _Job:
    """What one step is to launch.

    Attributes:
        eager: params for the eager engine, None for all.
        grads: addresses of the gradients, by device state and row.
        scale, found_inf: a scaler's.
        probe: it is a checkpoint's, see ``CheckpointProbe``.
        advance: how the launches advance the fused schedules; None for not at all.
    """

    eager: list[Tensor] | None
    device_states: list[DeviceState]
    grads: list[list[int]]
    scale: Tensor | None
    found_inf: Tensor | None
    probe: bool
    advance: int | None

    @property
    def scaled(self) -> bool:
        """Whether only the device knows if the step is made."""
        return self.found_inf is not None and bool(self.device_states)


class Stepper:
    """Makes the steps that no cached launch makes."""

    def __init__(self, mirror: Mirror, keeper: StateKeeper, placement: Placement) -> None:
        self._mirror = mirror
        self._keeper = keeper
        self._placement = placement
        self._advances = Advances(mirror)

    def step(self) -> None:
        """Every param's update, and the fused schedules' advance."""
        with self._mirror.host.lock:
            self._mirror.host.optimizer.check_step()
            if not self._mirror.probe.stepped and self._first_step():
                return
            job = self._job()
            moved = self._run_eager(job) if job.eager is None or job.eager else True
            self._mirror.host.read_lr_tensors()
            for device_state, addresses in zip(job.device_states, job.grads, strict=True):
                device_state.launch(addresses, job.scale, job.found_inf, job.advance)
            self._note(job, moved)

    def _first_step(self) -> bool:
        """Where the optimizer is new and ordinary: its step, without tables; else False."""
        if self._mirror.host.device_states:
            return False
        place = self._placement
        place.adopt()
        if not make_first_step(self._mirror, self._keeper, place.params, place.group_of):
            return False
        self._mirror.probe.note_step()
        return True

    def _job(self) -> _Job:
        """Take over what has changed since the last step, and have every kernel loaded."""
        mirror = self._mirror
        mirror.account.settle()
        mirror.end_captures()
        self._placement.adopt()
        mirror.take_back()
        self._advances.check_capture()
        self._advances.check_end()
        optimizer = mirror.host.optimizer
        scale = getattr(optimizer, "grad_scale", None)
        found_inf = getattr(optimizer, "found_inf", None)
        eager, device_states, grads = self._placement.arranged()
        for device_state in device_states:
            device_state.load([(scale is not None, found_inf is not None)])
        job = _Job(eager, device_states, grads, scale, found_inf, self._is_probe(), None)
        if not job.probe:
            job.advance = mirror.account.next_advance(job.scaled)
        return job

    def _run_eager(self, job: _Job) -> bool:
        """torch's own step, for what no launch updates; whether the params moved."""
        mirror = self._mirror
        mirror.refresh()
        schedules = mirror.host.schedules
        with mirror.host.suspend_sync:
            histories = [] if job.device_states else schedules.histories
            used = mirror.host.record() if histories else NO_TABLE
            exposed = self._keeper.state_exposed
            moved = eager_engine.update(mirror.host.optimizer, job.eager)
            if not exposed:
                self._keeper.conceal()  # torch's step keeps no reference to the state
            for history in histories if moved else ():
                history.note(used, schedules.columns)
        return moved

    def _note(self, job: _Job, moved: bool) -> None:
        """After the launches: the account, the state that user code may see, the next step."""
        mirror, keeper = self._mirror, self._keeper
        for device_state, addresses in zip(job.device_states, job.grads, strict=True):
            keeper.publish(device_state, addresses)
        if job.advance == layout.COUNTED and mirror.host.schedules.fused:
            mirror.host.write_lr_tensors()
        if not job.probe:
            mirror.probe.note_step()
        if self._advances.count(job.device_states, job.grads, moved, job.scaled, job.advance):
            # User code holds the dict, or a count of it, and may read it.
            write = keeper.write_steps if keeper.state_exposed else keeper.write_held
            write(job.device_states)
        if job.advance == layout.STAY and not mirror.host.schedules.governed:
            made = moved if job.found_inf is None else not job.found_inf.item()
            self._advances.step_intervals(made)
        if job.probe:
            mirror.sender.upload()  # the launch has left one half of the record behind
            for history in mirror.host.schedules.histories:
                history.overlook()
        elif job.eager == []:
            keep_step(mirror, keeper, self._placement.params)

    def _is_probe(self) -> bool:
        """Whether the step is a checkpoint's: the state is empty, and every gradient is zeros."""
        probe = self._mirror.probe
        if not probe.comes(self._mirror.host.optimizer.param_groups) or self._keeper.state:
            return False
        return not capturing() and not any(map(_pulls, self._placement.params))

    # -- prepare, load, release ------------------------------------------------------------------

    def prepare(self, tables: bool = True, scaled: bool = True) -> None:
        """Allocate state and tables, load kernels: all that a first captured step needs.

        Args:
            tables: complete the schedules' tables, which calls users' functions ``horizon`` times.
            scaled: load the kernels for a GradScaler, too.
        """
        mirror = self._mirror
        if capturing():
            raise RuntimeError("prepare() allocates memory; call it before the capture")
        mirror.account.drop_cached()
        mirror.end_captures()
        self._placement.adopt()
        mirror.refresh()
        _, engines = self._placement.by_engine()
        self._placement.retire(engines)
        mirror.host.schedules.own_programs(tabulate=tables)
        device_states = self._placement.fitted(engines, everyone=True)
        mirror.sender.upload()
        if tables and mirror.host.schedules.complete_tables():
            mirror.sender.upload()
        for device_state in device_states:
            device_state.load(layout.SCALINGS if scaled else [layout.NO_SCALER])

    def load(self) -> None:
        """After ``load_state_dict``: the loaded values, into the addresses that there are."""
        mirror = self._mirror
        for device_state in mirror.host.device_states.values():
            device_state.join_stream()
            take_changes(mirror, self._keeper, device_state, in_place=True)
        mirror.sender.upload()
        mirror.numbers.send()

    def release(self) -> None:
        """Forget the captures; every table may change again."""
        if capturing():
            raise RuntimeError("release_capture() cannot run while a CUDA graph is being captured")
        self._mirror.release()


def _pulls(param: Tensor) -> bool:
    """Whether a gradient is not all zeros; always False for DTensor: all ranks must agree."""
    grad = param.grad
    return grad is not None and local(grad) is grad and (is_odd(grad) or bool(grad.any()))
