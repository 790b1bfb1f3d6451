"""The lr tensors of users who keep torch's convention: read each step, written by schedules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from fused_sched.tables import layout

from .device_state import DeviceState, capturing

LrTensors = list[tuple[int, Tensor]]
"""(group, lr) of the groups whose lr is a tensor."""


def lr_tensors_of(groups: Iterable[dict[str, Any]]) -> LrTensors:
    """The groups whose user keeps lr in a tensor; reads nothing from the device."""
    return [
        (number, lr)
        for number, group in enumerate(groups)
        if isinstance(lr := dict.__getitem__(group, "lr"), Tensor)
    ]


def read_lr_tensors(lr_tensors: LrTensors, device_states: Iterable[DeviceState]) -> None:
    """Before a launch: what the tensors hold now, into both halves of the record."""
    for device_state in device_states:
        if device_state.buffer is not None:
            for number, lr in lr_tensors:
                if lr.device.type == "cpu" != device_state.device.type and capturing():
                    raise RuntimeError(
                        f"lr of param group {number} is a tensor on the CPU, which a CUDA graph "
                        f"cannot read; move it to {device_state.device} or make it a float, "
                        "before the capture"
                    )
                value = lr.detach().reshape(())
                device_state.buffer.record[:, layout.LR_COLUMN, number].copy_(
                    value, non_blocking=True
                )


def write_lr_tensors(lr_tensors: LrTensors, device_state: DeviceState | None) -> None:
    """After a launch with a schedule: what it made of them, into the user's own tensors."""
    if device_state is None or device_state.buffer is None or not lr_tensors:
        return
    current = device_state.buffer.record.index_select(0, device_state.buffer.clock[:1] & 1)
    for number, lr in lr_tensors:
        lr.copy_(current[0, layout.LR_COLUMN, number].reshape(lr.shape))
