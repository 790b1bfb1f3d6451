"""Schedule-Free AdamW and SGD in plain torch: the paper's formulas, one line each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

NUMBERS = {"k": 0, "train_mode": False, "weight_sum": 0.0, "lr_max": -1.0, "scheduled_lr": 0.0}


class _Reference(Optimizer):
    def train(self) -> None:
        self._move(True, lambda momentum: 1.0 - momentum)

    def eval(self) -> None:
        self._move(False, lambda momentum: 1.0 - 1.0 / momentum)

    @torch.no_grad()
    def _move(self, train_mode: bool, weight_of: Any) -> None:
        for group in self.param_groups:
            weight = weight_of(self.momentum(group))
            for param in group["params"] if group["train_mode"] != train_mode else []:
                if param in self.state:
                    param += weight * (self.state[param]["z"] - param)
            group["train_mode"] = train_mode

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        assert self.param_groups[0]["train_mode"]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            share = self.advance(group)
            for param in group["params"]:
                if param.grad is not None:
                    self.move(group, param, share)
        return loss

    def advance(self, group: dict[str, Any]) -> float:
        """The group's numbers; returns the weight of z in the average."""
        group["k"] += 1
        lr = float(group["lr"]) * min(1.0, group["k"] / max(1, group["warmup_steps"]))
        group["scheduled_lr"] = lr
        group["lr_max"] = max(group["lr_max"], lr)
        weight = group["k"] ** group["r"] * group["lr_max"] ** group["weight_lr_power"]
        group["weight_sum"] += weight
        return weight / group["weight_sum"] if group["weight_sum"] else 0.0

    def move(self, group: dict[str, Any], y: Tensor, share: float) -> None:
        state, lr = self.state[y], group["scheduled_lr"]
        z = state.setdefault("z", y.clone())
        direction = self.direction(group, y, state) + group["weight_decay"] * y
        y += share * (z - y) + lr * (self.momentum(group) * (1 - share) - 1) * direction
        z -= lr * direction

    def momentum(self, group: dict[str, Any]) -> float:
        raise NotImplementedError

    def direction(self, group: dict[str, Any], y: Tensor, state: dict[str, Any]) -> Tensor:
        raise NotImplementedError


class AdamWScheduleFree(_Reference):
    def __init__(
        self, params: Any, lr: Any = 0.0025, betas: Any = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, warmup_steps: int = 0, r: float = 0.0,
        weight_lr_power: float = 2.0, foreach: bool = True,
    ):  # fmt: skip
        given = {"lr": lr, "betas": betas, "eps": eps}
        given |= {"weight_decay": weight_decay, "warmup_steps": warmup_steps, "r": r}
        given |= {"weight_lr_power": weight_lr_power}
        super().__init__(params, given | NUMBERS | {"foreach": foreach})

    def momentum(self, group: dict[str, Any]) -> float:
        return group["betas"][0]

    def direction(self, group: dict[str, Any], y: Tensor, state: dict[str, Any]) -> Tensor:
        beta2, g = group["betas"][1], y.grad
        assert g is not None
        if g.is_complex():  # real and imaginary parts, each by itself
            parts = [torch.view_as_real(t) for t in (g, state.setdefault("exp_avg_sq", 0 * y))]
        else:
            parts = [g, state.setdefault("exp_avg_sq", torch.zeros_like(y))]
        g, v = parts
        v.mul_(beta2).add_((1 - beta2) * g * g)
        n = g / ((v / (1 - beta2 ** group["k"])).sqrt() + group["eps"])
        return torch.view_as_complex(n) if y.is_complex() else n


class SGDScheduleFree(_Reference):
    def __init__(
        self, params: Any, lr: Any = 1.0, momentum: float = 0.9, weight_decay: float = 0,
        warmup_steps: int = 0, r: float = 0.0, weight_lr_power: float = 2.0, foreach: bool = True,
    ):  # fmt: skip
        given = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        given |= {"warmup_steps": warmup_steps, "r": r, "weight_lr_power": weight_lr_power}
        super().__init__(params, given | NUMBERS | {"foreach": foreach})

    def momentum(self, group: dict[str, Any]) -> float:
        return group["momentum"]

    def direction(self, group: dict[str, Any], y: Tensor, state: dict[str, Any]) -> Tensor:
        assert y.grad is not None
        return y.grad
