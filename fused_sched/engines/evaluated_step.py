"""A step of a rule evaluated on torch tensors, where torch has no class for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _get_scalar_dtype
from torch.utils.weak import WeakTensorKeyDictionary

from fused_sched.rules import evaluate
from fused_sched.rules.rule import Rule
from fused_sched.tables.local import new_state

_COUNTS = "_evaluated_steps"


def step(optimizer: Any, chosen: set[int] | None) -> None:
    """Update the params that have a gradient, with the states that the rule names.

    Args:
        chosen: ids of the params, None for all.

    Raises:
        RuntimeError: a gradient is sparse, or a group whose numbers each step carries on is divided
            between this engine and another.
    """
    rule: Rule = optimizer._rule
    for group in optimizer.param_groups:
        params = _with_gradient(optimizer, group, chosen)
        if chosen is not None and params:
            _refuse_division(rule)
        carried_on = _group_numbers(rule, group) if chosen is None else {}
        for param in params:
            _update(optimizer, group, param)
        for name, number in carried_on.items():
            group[name] = int(number) if type(group[name]) is int else number


def _update(optimizer: Any, group: Any, param: Tensor) -> None:
    rule: Rule = optimizer._rule
    names = rule.state_names(group)
    entry = optimizer.state[param]
    had_state = any(entry.get(name) is not None for name in names)
    count = _next_step(optimizer, param, entry, had_state)
    carried = _recurrences(optimizer, group, entry, count)
    carried += [float(group[name]) for name in rule.group_recurrences]
    for name in names:
        if name not in entry:
            entry[name] = new_state(param, optimizer.initial_state(name, group)).detach()
    states = [entry[name] if name in names else None for name in rule.states]
    assert param.grad is not None
    carried = evaluate.update(rule, group, param, param.grad, states, count, carried)
    for name, number in zip(rule.recurrences, carried, strict=False):
        entry[name].fill_(number)


def _refuse_division(rule: Rule) -> None:
    if rule.group_recurrences:
        raise RuntimeError(
            f"{rule.name} carries {', '.join(rule.group_recurrences)} from step to step in its "
            "param groups, so all its params must be on one engine; give the params that no kernel "
            "takes (see fused_sched.explain) an optimizer of their own"
        )


def _with_gradient(optimizer: Any, group: Any, chosen: set[int] | None) -> list[Tensor]:
    """The chosen params of a group that have a gradient.

    Raises:
        RuntimeError: one of the gradients is sparse.
    """
    params = [
        param
        for param in dict.__getitem__(group, "params")
        if param.grad is not None and (chosen is None or id(param) in chosen)
    ]
    if any(param.grad.layout != torch.strided for param in params):
        raise RuntimeError(
            f"{type(optimizer).__name__} has no form for sparse gradients; make them dense with "
            "param.grad = param.grad.to_dense()"
        )
    return params


def _group_numbers(rule: Rule, group: Any) -> dict[str, float]:
    """What a step makes of a group's recurrences."""
    names = rule.group_recurrences
    if not names:
        return {}
    carried = [0.0] * len(rule.recurrences) + [float(group[name]) for name in names]
    exact = evaluate.coefficients(rule, group, 1, carried)
    return {name: x.item() for name, x in zip(names, exact[-len(names) :], strict=True)}


def _recurrences(optimizer: Any, group: Any, entry: dict[str, Any], count: int) -> list[float]:
    """Those of one param; a first step begins with the rule's own.

    Raises:
        KeyError: a param that has made steps lacks one.
    """
    names = optimizer._rule.recurrences
    for name in names if count == 1 else ():
        if name not in entry:
            start = optimizer.initial_state(name, group)
            entry[name] = torch.full((), start, dtype=_get_scalar_dtype(), device="cpu")
    return [float(entry[name]) for name in names]


def _next_step(optimizer: Any, param: Tensor, entry: dict[str, Any], had_state: bool) -> int:
    """Counted in ``state`` where the rule says so, else beside it.

    Args:
        had_state: there was a state before this step; without a count of it, it is one step old.
    """
    if optimizer._rule.counts_steps:
        entry["step"] = entry.get("step", torch.zeros((), device="cpu")) + 1.0
        return int(entry["step"])
    counts = optimizer.__dict__.setdefault(_COUNTS, WeakTensorKeyDictionary())
    counts[param] = counts.get(param, int(had_state)) + 1
    return counts[param]


def forget_counts(optimizer: Any) -> None:
    """Count anew from what the state shows: it was loaded."""
    optimizer.__dict__.pop(_COUNTS, None)
