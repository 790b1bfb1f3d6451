"""What an assignment to a param group sets off."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .device_state import RELEASE, capturing
from .mirror import Mirror
from .probe import is_zero


def before_write(mirror: Mirror, group: dict[str, Any], key: str, value: Any) -> None:
    """Raise if a write cannot take effect; catch up if it must build on the device's values.

    Raises:
        RuntimeError: a stream captures, or a captured graph cannot follow the write.
        TypeError, ValueError: the value is not what the device's record holds.
    """
    if mirror.host.suspend_sync.is_entered or mirror.host.reference() is None:
        return
    mirror.end_captures()
    mirror.take_back()  # the next values are computed from this one
    if isinstance(value, Tensor):
        mirror.refresh()
        mirror.account.drop_cached_schedule()
    if key != "lr" or isinstance(value, Tensor) or is_zero(value):
        mirror.account.drop_cached()
    columns = key in mirror.host.rule.keys
    if columns or key in mirror.numbers.names:
        _refuse_under_capture(key)
    if key in mirror.numbers.names:
        mirror.refresh_group()  # all are sent after the write
    if columns:
        _refuse_unusable(mirror, group, key, value)
    if key == "lr":
        mirror.probe.note_lr(group, value)
    if not columns or mirror.sender.recursive() or not mirror.asks_device():
        mirror.refresh()


def _refuse_under_capture(key: str) -> None:
    if capturing():
        raise RuntimeError(
            f"param_group[{key!r}] was assigned while a CUDA graph is being captured; the graph "
            "would not replay the assignment. Assign it before the capture or between replays, or "
            "let a fused_sched scheduler move it inside the graph."
        )


def _refuse_unusable(mirror: Mirror, group: dict[str, Any], key: str, value: Any) -> None:
    if not mirror.host.device_states:
        return
    before = dict(dict.items(group))
    after = before | {key: value}
    mirror.host.encode(after)
    if not mirror.account.captured:
        return
    if len(mirror.host.rule.state_names(after)) > len(mirror.host.rule.state_names(before)):
        raise RuntimeError(f"param_group[{key!r}] = {value!r} needs more state, but {RELEASE}.")
    if isinstance(before.get(key), Tensor) and before[key] is not value:
        raise RuntimeError(
            f"A captured graph reads {key} from the tensor in this group; write into it with "
            f"param_group[{key!r}].fill_({value!r}), or {RELEASE}."
        )


def after_write(mirror: Mirror, group: dict[str, Any], key: str) -> None:
    """Send one group's new value to the device."""
    optimizer = mirror.host.reference()
    if mirror.host.suspend_sync.is_entered:
        mirror.sender.note_written(key)
    if mirror.host.suspend_sync.is_entered or optimizer is None or not mirror.host.with_buffer():
        return
    number = next((i for i, g in enumerate(optimizer.param_groups) if g is group), None)
    if number is None:
        return
    if key in mirror.numbers.names:
        mirror.numbers.send()
        return
    columns = mirror.host.rule.keys.get(key, ())
    if not columns or mirror.sender.recursive():
        mirror.sender.upload()
        return
    names = mirror.host.schedules.columns
    values = dict(zip(names, mirror.host.encode(dict(dict.items(group))), strict=True))
    mirror.sender.write(number, {names.index(name): values[name] for name in columns})
