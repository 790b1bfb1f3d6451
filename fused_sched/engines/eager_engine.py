"""The eager engine: stock torch's step, unhooked. The last resort.

A rule that torch has no class for is evaluated on tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fused_sched import stock
from fused_sched.rules.rule import Rule
from fused_sched.tables.local import is_dense, local

from . import evaluated_step

NAME = "eager"

_BASES = (stock.Optimizer,)


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
        evaluated_step.step(optimizer, chosen)
        return True
    with _Groups(optimizer, chosen, unscaled=_unscale(optimizer, scale, chosen)):
        stock_step(optimizer)(optimizer)
    return True


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
