"""The state of a checkpoint, as ``load_state_dict`` is given it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from fused_sched.rules.rule import Rule

from .state import Entry, check_shape

_CPU = torch.device("cpu")


def state_of(
    given: Mapping[str, Any], groups: Iterable[Mapping[str, Any]], rule: Rule
) -> defaultdict[Any, Entry]:
    """The state of a checkpoint, every tensor in its own dtype, on its param's device.

    Raises:
        ValueError: a state tensor has another shape than its param, or is not there.
    """
    state: defaultdict[Any, Entry] = defaultdict(dict)
    params = [(p, group) for group in groups for p in group["params"]]
    numbers = [number for group in given["param_groups"] for number in group["params"]]
    of_number = dict(zip(numbers, params, strict=True))
    for key, entry in given["state"].items():
        if key not in of_number:
            state[key] = entry
            continue
        param, group = of_number[key]
        for name in rule.states:
            if isinstance(entry.get(name), Tensor):
                check_shape(name, entry[name], param)
        if rule.counts_steps and int(entry.get("step", 0)) > 0:
            _check_complete(entry, (*rule.recurrences, *rule.state_names(group)), key)
        where = param.device if group.get("fused") or group.get("capturable") else _CPU
        scalars = "step", *rule.recurrences
        state[param] = {
            name: _scalar(value, where) if name in scalars else _copied(value, param)
            for name, value in entry.items()
        }
    return state


def _check_complete(entry: Mapping[str, Any], names: Iterable[str], number: int) -> None:
    for name in names:
        if entry.get(name) is None:
            raise ValueError(
                f"The checkpoint's state of param {number} has steps, but no {name!r}; nothing was "
                "loaded"
            )


def _scalar(value: Any, where: torch.device) -> Tensor:
    """A step count or a recurrence of a checkpoint."""
    given = torch.is_tensor(value)
    number = value if given else torch.tensor(value, dtype=torch.float32, device=_CPU)
    if where == _CPU:
        return number.clone()
    return number.to(where, torch.float32, copy=True)


def _copied(value: Any, param: Tensor) -> Any:
    """Any other value of a checkpoint, on the param's device."""
    if isinstance(value, Tensor):
        return value.detach().to(param.device, copy=True)
    return deepcopy(value)
