"""What an assignment to a param group sets off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .plan import RELEASE, capturing

if TYPE_CHECKING:
    from .group import Group
    from .ledger import Ledger


def before_write(ledger: Ledger, group: Group, key: str, value: Any) -> None:
    """Raise if a write cannot take effect; catch up if it must build on the device's values.

    Raises:
        RuntimeError: a stream captures, or a captured graph cannot follow the write.
        TypeError, ValueError: the value is not what the device's record holds.
    """
    if ledger.hosting or ledger.reference() is None:
        return
    if isinstance(value, Tensor):
        ledger.refresh()
        ledger.lean.drop_schedule(ledger)
    if key != "lr" or isinstance(value, Tensor) or _is_zero(value):
        ledger.drop_lean()
    columns = key in ledger.rules._KEYS
    if columns:
        _refuse_under_capture(key)
        _refuse_unusable(ledger, group, key, value)
    if key == "lr":
        (ledger.zeroed.add if _is_zero(value) else ledger.zeroed.discard)(id(group))
    if not columns or ledger.recursive() or not (ledger.values_ahead or ledger.captured):
        ledger.refresh()


def _refuse_under_capture(key: str) -> None:
    if capturing():
        raise RuntimeError(
            f"param_group[{key!r}] was assigned while a CUDA graph is being captured; the graph "
            "would not replay the assignment. Assign it before the capture or between replays, or "
            "let a fused_sched scheduler move it inside the graph."
        )


def _refuse_unusable(ledger: Ledger, group: Group, key: str, value: Any) -> None:
    if not ledger.plans:
        return
    before = group.raw()
    after = before | {key: value}
    ledger.encode(after)
    if not ledger.captured:
        return
    if len(ledger.rules._state_names(after)) > len(ledger.rules._state_names(before)):
        raise RuntimeError(f"param_group[{key!r}] = {value!r} needs more state, but {RELEASE}.")
    if isinstance(before.get(key), Tensor) and before[key] is not value:
        raise RuntimeError(
            f"A captured graph reads {key} from the tensor in this group; write into it with "
            f"param_group[{key!r}].fill_({value!r}), or {RELEASE}."
        )


def after_write(ledger: Ledger, group: Group, key: str) -> None:
    """Send one group's new value to the device."""
    optimizer = ledger.reference()
    if ledger.hosting or optimizer is None or not ledger.blocks():
        return
    number = next((i for i, g in enumerate(optimizer.param_groups) if g is group), None)
    if number is None:
        return
    columns = ledger.rules._KEYS.get(key, ())
    if not columns or ledger.recursive():
        ledger.upload()
        return
    names = ledger.schedules.columns
    values = dict(zip(names, ledger.encode(group.raw()), strict=True))
    for plan in ledger.blocks():
        plan.write(number, {names.index(name): values[name] for name in columns})


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.device.type == "cpu" and value.numel() == 1 and float(value) == 0.0
    return isinstance(value, int | float) and value == 0.0
