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
            _check_complete(entry, rule.state_names(group), key)
        on_device = group.get("fused") or group.get("capturable")
        state[param] = {k: _copied(k, v, param, bool(on_device)) for k, v in entry.items()}
    return state


def _check_complete(entry: Mapping[str, Any], names: Iterable[str], number: int) -> None:
    for name in names:
        if entry.get(name) is None:
            raise ValueError(
                f"The checkpoint's state of param {number} has steps, but no {name!r}; nothing was "
                "loaded"
            )


def _copied(key: str, value: Any, param: Tensor, on_device: bool) -> Any:
    """One value of a checkpoint: steps where torch puts them, the rest on the param's device."""
    if key == "step":
        given = torch.is_tensor(value)
        step = value if given else torch.tensor(value, dtype=torch.float32, device="cpu")
        if on_device:
            return step.to(param.device, torch.float32, copy=True)
        return step.clone()
    if isinstance(value, Tensor):
        return value.detach().to(param.device, copy=True)
    return deepcopy(value)
