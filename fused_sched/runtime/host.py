"""The host's side of an optimizer: groups, schedulers, and what it keeps for each device."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from fused_sched.rules.rule import Rule

from .device_state import DeviceState
from .lr_tensors import LrTensors, lr_tensors_of, read_lr_tensors, write_lr_tensors
from .schedules import Schedules


class SuspendSync(AbstractContextManager[None]):
    """Within: reads do not catch up and writes stay on the host, for one thread; may be nested."""

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

    @property
    def is_entered(self) -> bool:
        """Whether this thread is within."""
        return self._depth > 0 and self._owner == get_ident()


class Host:
    """What the account, the sender and the mirror of one optimizer share.

    Attributes:
        reference: weak, to the optimizer.
        schedules: every scheduler that was built on it.
        device_states: by device; made at the first access where a first step has put them off.
        put_off: what makes them then, None otherwise.
        suspend_sync: entered by code that changes values on the host alone.
        lock: a thread that logs lr may read while another one trains.
    """

    device_states: dict[torch.device, DeviceState]

    def __init__(self, optimizer: Any) -> None:
        self.reference = weakref.ref(optimizer)
        self.rule: Rule = type(optimizer)._rule
        self.schedules = Schedules(self.rule.columns)
        self.device_states = {}
        self.put_off: Callable[[], None] | None = None
        self.lock = threading.RLock()
        self.suspend_sync = SuspendSync(self.lock)

    @property
    def optimizer(self) -> Any:
        optimizer = self.reference()
        assert optimizer is not None
        return optimizer

    # -- devices ---------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """``device_states``, where the first step has put them off."""
        if name != "device_states":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with self.lock:
            if "device_states" not in self.__dict__:
                self.device_states = {}
                build, self.put_off = self.put_off, None
                if build is not None and self.reference() is not None:
                    build()
            return self.device_states

    def put_device_states_off(self, build: Callable[[], None]) -> None:
        """Let ``build`` make the device states at the first access to them."""
        self.put_off = build
        del self.device_states

    def with_buffer(self) -> list[DeviceState]:
        """The device states that have a buffer on their device."""
        states = self.device_states.values()
        return [device_state for device_state in states if device_state.buffer is not None]

    # -- values ----------------------------------------------------------------------------------

    def encode(self, group: Mapping[str, Any]) -> list[float]:
        """A group's columns; an lr on a device is read there, before each launch."""
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.device.type != "cpu":
            group = {**group, "lr": 0.0}
        return self.rule.encode(group)

    def record(self) -> Tensor:
        """The groups' values, float64 [columns, groups]."""
        with self.suspend_sync:
            groups = self.optimizer.param_groups
            encoded = [self.encode(dict(dict.items(group))) for group in groups]
        return torch.tensor(list(zip(*encoded)), dtype=torch.float64, device="cpu")

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The state tensors that each param of this group needs."""
        values = dict(dict.items(group))  # past the reads of a Group, which catch up
        if self.schedules.cycle_momentum():
            values["momentum"] = 1.0
        return self.rule.state_names(values)

    # -- lr tensors ------------------------------------------------------------------------------

    def lr_tensors(self) -> LrTensors:
        """(group, lr) of the groups whose user keeps lr in a tensor."""
        return lr_tensors_of(self.optimizer.param_groups)

    def read_lr_tensors(self) -> None:
        """The user's lr tensors, into the record."""
        read_lr_tensors(self.lr_tensors(), self.with_buffer())

    def write_lr_tensors(self) -> None:
        """What a schedule on the device made of them, into the user's tensors."""
        write_lr_tensors(self.lr_tensors(), next(iter(self.with_buffer()), None))
