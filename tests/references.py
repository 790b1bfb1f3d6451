"""Optimizers that torch lacks, from their formulas, in plain torch.

Written for these tests, on whole tensors and without a thought of speed. As in the launches, what
is stored is in the param's dtype and the arithmetic in float32, of a float64 param in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Closure = Callable[[], Any]


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


class Reference(Optimizer):
    """Steps each param by ``advance``; ``names`` are its states, which start at 0."""

    names: Sequence[str] = ()
    counts = True
    """Whether the state has a ``step``, which counts from 1."""

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._step(param, group)
        return loss

    def _step(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if self.counts:
            state["step"] = state.get("step", torch.zeros(())) + 1.0
        for name in self.names:
            state.setdefault(name, torch.zeros_like(param, memory_format=torch.preserve_format))
        kept = [_real(param), *(_real(state[name]) for name in self.names)]
        wide = torch.float64 if kept[0].dtype == torch.float64 else torch.float32
        g = _real(param.grad).to(wide)
        if group.get("maximize"):
            g = -g
        t = int(state["step"]) if self.counts else 0
        now = self.advance(group, t, g, *(tensor.to(wide) for tensor in kept))
        for tensor, value in zip(kept, now, strict=True):
            tensor.copy_(value)

    def advance(
        self, group: dict[str, Any], t: int, g: Tensor, p: Tensor, *states: Tensor
    ) -> tuple[Tensor, ...]:
        """The new param and states."""
        raise NotImplementedError


def decayed(p: Tensor, u: Tensor, amount: Any, group: dict[str, Any]) -> Tensor:
    """p (1 - amount); with caution only where the update u and p have one sign, or one is 0."""
    shrunk = p * (1 - float(amount))
    return torch.where(u * p >= 0, shrunk, p) if group.get("cautious_weight_decay") else shrunk


def asked(arguments: dict[str, Any]) -> dict[str, bool]:
    """Options that are part of the groups only where they are wanted."""
    return {key: True for key in ("maximize", "cautious_weight_decay") if arguments[key]}


class Lion(Reference):
    names = ("exp_avg",)
    counts = False

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-4,
        betas: Any = (0.9, 0.99),
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        cautious_weight_decay: bool = False,
    ) -> None:
        self.divisor = float(lr) if decoupled_weight_decay else 1.0
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, defaults | asked(locals()))

    def advance(self, group, t, g, p, m):
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        u = (beta1 * m + (1 - beta1) * g).sign()
        p = decayed(p, u, lr * group["weight_decay"] / self.divisor, group) - lr * u
        return p, beta2 * m + (1 - beta2) * g


class ADOPT(Reference):
    names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: Any = (0.9, 0.9999),
        eps: float = 1e-6,
        clip_exp: float | None = 0.333,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        maximize: bool = False,
        cautious_weight_decay: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "clip_exp": clip_exp}
        defaults |= {"weight_decay": weight_decay, "decoupled": decoupled, "maximize": maximize}
        super().__init__(params, defaults | asked(locals()))

    def advance(self, group, t, g, p, m, v):
        lr, (beta1, beta2), decay = float(group["lr"]), group["betas"], group["weight_decay"]
        if not group["decoupled"]:
            g = g + decay * p
        if t == 1:
            return p, m, g * g
        n = g / v.sqrt().clamp(min=group["eps"])
        if group["clip_exp"] is not None:
            bound = (t - 1) ** group["clip_exp"]
            n = n.clamp(-bound, bound)
        m = beta1 * m + (1 - beta1) * n
        p = decayed(p, m, lr * decay if group["decoupled"] else 0.0, group) - lr * m
        return p, m, beta2 * v + (1 - beta2) * g * g


class AdEMAMix(Reference):
    names = ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: Any = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        maximize: bool = False,
        cautious_weight_decay: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "alpha": alpha, "eps": eps}
        defaults |= {"t_alpha": t_alpha, "t_beta3": t_beta3, "weight_decay": weight_decay}
        super().__init__(params, defaults | asked(locals()))

    def advance(self, group, t, g, p, fast, slow, v):
        lr, (beta1, beta2, beta3), alpha = float(group["lr"]), group["betas"], group["alpha"]
        if group["t_alpha"] is not None:
            alpha = min(t * alpha / group["t_alpha"], alpha)
        if group["t_beta3"] is not None and t < group["t_beta3"]:
            first, last, x = math.log(beta1), math.log(beta3), t / group["t_beta3"]
            beta3 = math.exp(first * last / ((1 - x) * last + x * first))
        fast = beta1 * fast + (1 - beta1) * g
        slow = beta3 * slow + (1 - beta3) * g
        v = beta2 * v + (1 - beta2) * g * g
        denominator = (v / (1 - beta2**t)).sqrt() + group["eps"]
        u = (fast / (1 - beta1**t) + alpha * slow) / denominator
        return decayed(p, u, lr * group["weight_decay"], group) - lr * u, fast, slow, v


class Adan(Reference):
    names = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad")

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: Any = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_prox: bool = False,
        maximize: bool = False,
        cautious_weight_decay: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps}
        defaults |= {"weight_decay": weight_decay, "no_prox": no_prox}
        super().__init__(params, defaults | asked(locals()))

    def advance(self, group, t, g, p, m, d, n, before):
        lr, (beta1, beta2, beta3) = float(group["lr"]), group["betas"]
        change = torch.zeros_like(g) if t == 1 else g + before
        m = beta1 * m + (1 - beta1) * g
        d = beta2 * d + (1 - beta2) * change
        n = beta3 * n + (1 - beta3) * (g + beta2 * change) ** 2
        direction = m / (1 - beta1**t) + beta2 * d / (1 - beta2**t)
        u = lr * direction / ((n / (1 - beta3**t)).sqrt() + group["eps"])
        amount = lr * group["weight_decay"]
        if group["no_prox"]:
            p = decayed(p, u, amount, group) - u
        else:
            moved = p - u
            kept = (u * p < 0) if group.get("cautious_weight_decay") else torch.zeros_like(p).bool()
            p = torch.where(kept, moved, moved / (1 + amount))
        return p, m, d, n, -g


class AdamW(Reference):
    """Of Adam, too, with ``decoupled_weight_decay``."""

    names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: Any = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        cautious_weight_decay: bool = False,
    ) -> None:
        assert decoupled_weight_decay
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        defaults |= {"amsgrad": False, "maximize": maximize, "decoupled_weight_decay": True}
        super().__init__(params, defaults | asked(locals()))

    def advance(self, group, t, g, p, m, v):
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        u = self.direction(group, t, g, m, v)
        return decayed(p, u, lr * group["weight_decay"], group) - lr * u, m, v

    def direction(self, group: dict[str, Any], t: int, g: Tensor, m: Tensor, v: Tensor) -> Tensor:
        """The update over the lr."""
        beta1, beta2 = group["betas"]
        return m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + group["eps"])


class NAdam(AdamW):
    def __init__(self, params: Any, lr: Any = 2e-3, momentum_decay: float = 4e-3, **kwargs: Any):
        super().__init__(params, lr, **kwargs)
        for group in self.param_groups:
            group.setdefault("momentum_decay", momentum_decay)

    def _step(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        t = int(state.setdefault("step", torch.zeros(()))) + 1
        state["mu_product"] = torch.tensor(self.product(group, t))
        super()._step(param, group)

    @staticmethod
    def mu(group: dict[str, Any], t: int) -> float:
        return group["betas"][0] * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"]))

    def product(self, group: dict[str, Any], t: int) -> float:
        return math.prod(self.mu(group, step) for step in range(1, t + 1))

    def direction(self, group, t, g, m, v):
        mu, ahead, product = self.mu(group, t), self.mu(group, t + 1), self.product(group, t)
        denominator = (v / (1 - group["betas"][1] ** t)).sqrt() + group["eps"]
        return ((1 - mu) / (1 - product) * g + ahead / (1 - product * ahead) * m) / denominator


class RAdam(AdamW):
    def direction(self, group, t, g, m, v):
        beta1, beta2 = group["betas"]
        m = m / (1 - beta1**t)
        limit = 2 / (1 - beta2) - 1
        rho = limit - 2 * t * beta2**t / (1 - beta2**t)
        if rho <= 5:
            return m
        part = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
        return m * math.sqrt(part) * math.sqrt(1 - beta2**t) / (v.sqrt() + group["eps"])
