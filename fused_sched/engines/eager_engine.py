"""The eager engine: stock torch's step, unhooked. The last resort.

A rule that torch has no class for is evaluated on tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _get_scalar_dtype
from torch.utils.weak import WeakTensorKeyDictionary

from fused_sched import stock
from fused_sched.rules import evaluate
from fused_sched.rules.rule import Rule
from fused_sched.tables.local import is_dense, local, new_state

NAME = "eager"

_BASES = (stock.Optimizer,)
_COUNTS = "_evaluated_steps"


def unavailable(device: torch.device) -> str | None:
    """It is available everywhere."""
    return None


def lacks(rule: Rule, device: torch.device) -> str | None:
    """It runs every rule."""
    return None


def has_stock(cls: type[Any]) -> bool:
    """Whether torch has a class with the optimizer's rule, whose step this engine runs."""
    theirs = [c for c in cls.__mro__ if c.__module__.startswith("torch.optim")]
    return cls._rule.is_built_in and any(c not in _BASES for c in theirs)


def _asks_more(optimizer: Any) -> bool:
    """Whether a group has an option that torch's step does not know.

    Raises:
        RuntimeError: and autograd is to record the step.
    """
    groups = (dict(dict.items(group)) for group in optimizer.param_groups)
    asked = {key for group in groups for key in optimizer._rule.asked(group)}
    if asked and optimizer.defaults.get("differentiable"):
        raise RuntimeError(
            f"differentiable=True runs torch's own step, which knows no {min(asked)}; leave out "
            "one of the two"
        )
    return bool(asked)


def stock_step(optimizer: stock.Optimizer) -> Callable[..., Any]:
    """torch's ``step`` of the optimizer's stock class, without the hooks around it.

    ``super().step()`` would fire every hook twice as soon as a stock instance exists.
    """
    classes: tuple[Any, ...] = type(optimizer).__mro__
    step = next(c for c in classes if c.__module__.startswith("torch.optim")).step
    while getattr(step, "hooked", False):
        step = step.__wrapped__
    return step


def update(optimizer: stock.Optimizer, params: Iterable[Tensor] | None) -> bool:
    """Run stock torch's step on the given params (None: all of them).

    Returns:
        False if ``found_inf`` made it stand still.
    """
    scale = getattr(optimizer, "grad_scale", None)
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is not None and found_inf.item() != 0.0:
        return False
    chosen = None if params is None else {id(param) for param in params}
    if not has_stock(type(optimizer)) or _asks_more(optimizer):
        _unscale(optimizer, scale, chosen)
        _evaluate(optimizer, chosen)
        return True
    with _Groups(optimizer, chosen, unscaled=_unscale(optimizer, scale, chosen)):
        stock_step(optimizer)(optimizer)
    return True


def _evaluate(optimizer: Any, chosen: set[int] | None) -> None:
    rule: Rule = optimizer._rule
    for group in optimizer.param_groups:
        names = rule.state_names(group)
        carried_on = _group_numbers(rule, group, chosen)
        for param in dict.__getitem__(group, "params"):
            if param.grad is None or not (chosen is None or id(param) in chosen):
                continue
            if param.grad.layout != torch.strided:
                raise RuntimeError(
                    f"{type(optimizer).__name__} has no form for sparse gradients; make them dense "
                    "with param.grad = param.grad.to_dense()"
                )
            entry = optimizer.state[param]
            had_state = any(entry.get(name) is not None for name in names)
            step = _next_step(optimizer, param, entry, had_state)
            carried = _recurrences(optimizer, group, entry, step)
            carried += [float(group[name]) for name in rule.group_recurrences]
            for name in names:
                if name not in entry:
                    entry[name] = new_state(param, optimizer.initial_state(name, group)).detach()
            states = [entry[name] if name in names else None for name in rule.states]
            carried = evaluate.update(rule, group, param, param.grad, states, step, carried)
            for name, number in zip(rule.recurrences, carried, strict=False):
                entry[name].fill_(number)
        for name, number in carried_on.items():
            group[name] = int(number) if type(group[name]) is int else number


def _group_numbers(rule: Rule, group: Any, chosen: set[int] | None) -> dict[str, float]:
    """What a step makes of a group's recurrences.

    Raises:
        RuntimeError: other params of the optimizer are launched, which would carry them on too.
    """
    names = rule.group_recurrences
    if not names:
        return {}
    if chosen is not None:
        raise RuntimeError(
            f"{rule.name} carries {', '.join(names)} from step to step in its param groups, so all "
            "its params must be on one engine; give the params that no kernel takes (see "
            "fused_sched.explain) an optimizer of their own"
        )
    carried = [0.0] * len(rule.recurrences) + [float(group[name]) for name in names]
    exact = evaluate.coefficients(rule, group, 1, carried)
    return {name: x.item() for name, x in zip(names, exact[-len(names) :], strict=True)}


def _recurrences(optimizer: Any, group: Any, entry: dict[str, Any], step: int) -> list[float]:
    """Those of one param; a first step begins with the rule's own.

    Raises:
        KeyError: a param that has made steps lacks one.
    """
    names = optimizer._rule.recurrences
    for name in names if step == 1 else ():
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


def _params(optimizer: stock.Optimizer, chosen: set[int] | None) -> list[Tensor]:
    return [
        param
        for group in optimizer.param_groups
        for param in dict.__getitem__(group, "params")
        if chosen is None or id(param) in chosen
    ]


def _unscale(optimizer: stock.Optimizer, scale: Tensor | None, chosen: set[int] | None) -> bool:
    """Divide the gradients by the scaler's factor; True if a scaler is at work."""
    if scale is not None:
        for param in _params(optimizer, chosen):
            if param.grad is not None:
                param.grad.div_(scale.to(param.grad.device))
    return scale is not None or getattr(optimizer, "found_inf", None) is not None


class _Groups:
    """For the time of a stock step: only the chosen params, and no fused where it would be wrong.

    Stock ``fused=True`` on CPU silently miscalculates params that are not contiguous (torch 2.13),
    and the for-loop asserts that no scaler is at work.
    """

    def __init__(self, optimizer: stock.Optimizer, chosen: set[int] | None, unscaled: bool) -> None:
        self.optimizer = optimizer
        self.chosen = chosen
        self.unscaled = unscaled

    def __enter__(self) -> None:
        self.groups = self.optimizer.param_groups
        self.scaler: dict[str, Any] = {
            name: self.optimizer.__dict__.pop(name)
            for name in ("grad_scale", "found_inf")
            if self.unscaled and name in self.optimizer.__dict__
        }
        odd = any(_odd_for_fused(param) for param in _params(self.optimizer, self.chosen))
        if odd or self.chosen is not None:
            self.optimizer.param_groups = [self._substitute(group, odd) for group in self.groups]

    def _substitute(self, group: dict[str, Any], odd: bool) -> dict[str, Any]:
        params = [p for p in group["params"] if self.chosen is None or id(p) in self.chosen]
        substitute = {**group, "params": params}
        if odd and group.get("fused"):
            substitute["fused"] = False
        return substitute

    def __exit__(self, *_: object) -> None:
        self.optimizer.param_groups = self.groups
        self.optimizer.__dict__.update(self.scaler)


def _odd_for_fused(param: Tensor) -> bool:
    if param.grad is None:
        return False
    mine, grad = local(param), param.grad
    if grad.layout != torch.strided:
        return False
    if mine.device.type == "cpu":
        return not (mine.is_contiguous() and local(grad).is_contiguous())
    return not is_dense(mine) or mine.stride() != local(grad).stride()
