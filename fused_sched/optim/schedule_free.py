"""AdamWScheduleFree and SGDScheduleFree."""

from __future__ import annotations

from typing import Any

import torch

from fused_sched.rules.arithmetic import bias_correction, exp, log, maximum, minimum, sqrt, where
from fused_sched.rules.tuning import Tuning
from fused_sched.runtime.arguments import check_arguments
from fused_sched.runtime.base import FusedOptimizer

_NUMBERS = {"k": 0, "train_mode": False, "weight_sum": 0.0, "lr_max": -1.0, "scheduled_lr": 0.0}


class _ScheduleFree(FusedOptimizer):
    """What both have: the averaging, and the two places where the params can be."""

    counts_steps = False

    @staticmethod
    def _momentum(group: dict[str, Any]) -> float:
        raise NotImplementedError

    def train(self) -> None:
        """Move the params to where gradients are taken; call it before training.

        In place, like the steps: captured graphs stay valid.
        """
        self._move(True)

    def eval(self) -> None:
        """Move the params to the average; call it before evaluation and before saving."""
        self._move(False)

    @torch.no_grad()
    def _move(self, train_mode: bool) -> None:
        state = self.state
        for group in self.param_groups:
            if bool(group["train_mode"]) == train_mode:
                continue
            momentum = self._momentum(group)
            weight = 1.0 - (momentum if train_mode else 1.0 / momentum)
            for param in group["params"]:
                z = state[param].get("z") if param in state else None
                if z is not None:
                    param.lerp_(z, weight)
            group["train_mode"] = train_mode

    def check_step(self) -> None:
        """Refuse a step away from where gradients are taken.

        Raises:
            RuntimeError: ``train()`` was not called, or ``eval()`` since.
        """
        if not dict.__getitem__(self.param_groups[0], "train_mode"):
            raise RuntimeError(
                f"{type(self).__name__}.step() moves params that are in evaluation mode: call "
                "optimizer.train() before training, and optimizer.eval() before evaluation"
            )


class AdamWScheduleFree(_ScheduleFree):
    r"""Schedule-Free AdamW in one launch per step: no schedule, an average of the iterates instead.

    .. math::
        \gamma_t &= \gamma \min(1, t / T_{warmup}), \quad
            w_t = t^r \max_{s \le t} \gamma_s^p, \quad c_t = w_t \Big/ \sum_{s \le t} w_s \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \quad
            n_t = \frac{g_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda y_{t-1} \\
        y_t &= (1 - c_t) y_{t-1} + c_t z_{t-1} + \gamma_t (\beta_1 (1 - c_t) - 1) n_t \\
        z_t &= z_{t-1} - \gamma_t n_t

    The params are :math:`y` in training (``train()``) and the average :math:`x` in evaluation
    (``eval()``): :math:`y = (1 - \beta_1) z + \beta_1 x`.

    Args:
        params: params, or dicts of param groups.
        lr: :math:`\gamma`; a schedule may move it.
        betas: :math:`\beta_1` in (0, 1), of the interpolation, and :math:`\beta_2` in [0, 1).
        eps: added to the root, at least 0.
        weight_decay: :math:`\lambda`, at least 0, taken at :math:`y`.
        warmup_steps: steps of linear warm-up, at least 0.
        r: power of the step in the weights.
        weight_lr_power: :math:`p`, the power of the lr in the weights.
        foreach: kept for the package's checkpoints; there is one implementation.

    State: ``z`` and ``exp_avg_sq`` in the param's dtype; arithmetic in float32 (float64 for
    float64), rounded once at the store. The launches carry ``k``, ``lr_max``, ``weight_sum`` and
    ``scheduled_lr``, which are keys of the param groups. Checkpoints go to the ``schedulefree``
    package and come from it.

    Raises:
        ValueError: an argument is out of its range.
        RuntimeError: ``step()`` without ``train()``.

    Differs from the package: gradients are left as they are; every argument may change between
    replays of a captured graph.

    Source: Defazio et al., "The Road Less Scheduled" (2024), as in schedulefree 1.4.
    """

    states = {"z": True, "exp_avg_sq": True}
    group_recurrences = ("k", "lr_max", "weight_sum", "scheduled_lr")

    def __init__(
        self,
        params: Any,
        lr: float = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = True,
    ) -> None:
        _check(lr, betas, eps, weight_decay, warmup_steps)
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        weights = {"warmup_steps": warmup_steps, "r": r, "weight_lr_power": weight_lr_power}
        super().__init__(params, options | weights | _NUMBERS | {"foreach": foreach})

    @staticmethod
    def _momentum(group: dict[str, Any]) -> float:
        return group["betas"][0]

    @staticmethod
    def coefficients(
        lr, beta1, beta2, eps, weight_decay, warmup_steps, r, weight_lr_power, log_beta2,
        k, lr_max, weight_sum, scheduled_lr,
        step,
    ):  # fmt: skip
        """The numbers of the average are the group's: k counts its steps."""
        k = k + 1.0
        scheduled_lr = lr * minimum(k / maximum(warmup_steps, 1.0), 1.0)
        lr_max = maximum(scheduled_lr, lr_max)
        # lr_max ** weight_lr_power, where 0 ** 0 = 1.
        power = exp(weight_lr_power * log(maximum(lr_max, 1e-300)))
        power = where((lr_max > 0.0) | (weight_lr_power == 0.0), power, 0.0)
        weight = exp(r * log(k)) * power
        weight_sum = weight_sum + weight
        share = weight / maximum(weight_sum, 1e-300)
        root = sqrt(bias_correction(log_beta2, k))
        return (
            scheduled_lr,
            scheduled_lr * (beta1 * (1.0 - share) - 1.0),
            where(share < 0.5, share, share - 1.0),
            root,
            beta2,
            1.0 - beta2,
            eps * root,
            weight_decay,
            where(step == 1, 1.0, 0.0),
            k,
            lr_max,
            weight_sum,
            scheduled_lr,
        )

    @staticmethod
    def rule(p, g, z, v, c):
        """n = g / (sqrt(v/bc2) + eps) + wd p; p = lerp(p, z, share) + step n; z -= lr n."""
        lr, step, share, root, beta2, one_minus_beta2, eps, decay, first = c
        z = where(first != 0.0, p, z)
        v = beta2 * v + one_minus_beta2 * g * g
        n = g * root / (sqrt(v) + eps)
        n = where(decay != 0.0, n + decay * p, n)
        # torch.lerp, from the nearer end.
        p = where(share >= 0.0, p, z) + share * (z - p) + step * n
        return p, z - lr * n, v


class SGDScheduleFree(_ScheduleFree):
    r"""Schedule-Free SGD in one launch per step: no schedule, an average of the iterates instead.

    .. math::
        y_t &= (1 - c_t) y_{t-1} + c_t z_{t-1} + \gamma_t (\mu (1 - c_t) - 1)
            (g_t + \lambda y_{t-1}) \\
        z_t &= z_{t-1} - \gamma_t (g_t + \lambda y_{t-1})

    with :math:`\gamma_t` and :math:`c_t` as for :class:`AdamWScheduleFree`, :math:`\mu` in place of
    :math:`\beta_1`.

    Args:
        params, lr, weight_decay, warmup_steps, r, weight_lr_power, foreach: as there.
        momentum: :math:`\mu`, in (0, 1).

    State: ``z``; the rest, errors and differences: as there.

    Source: Defazio et al., "The Road Less Scheduled" (2024), as in schedulefree 1.4.
    """

    states = {"z": True}
    group_recurrences = ("k", "lr_max", "weight_sum", "scheduled_lr")
    # Chosen as Adam's are.
    tunings = {16: Tuning(vectors=2, registers=80), 32: Tuning(vectors=2, registers=72)}

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = True,
    ) -> None:
        _check(lr, (momentum,), 0.0, weight_decay, warmup_steps)
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        weights = {"warmup_steps": warmup_steps, "r": r, "weight_lr_power": weight_lr_power}
        super().__init__(params, options | weights | _NUMBERS | {"foreach": foreach})

    @staticmethod
    def _momentum(group: dict[str, Any]) -> float:
        return group["momentum"]

    @staticmethod
    def coefficients(
        lr, momentum, weight_decay, warmup_steps, r, weight_lr_power,
        k, lr_max, weight_sum, scheduled_lr,
        step,
    ):  # fmt: skip
        """The numbers of the average are the group's: k counts its steps."""
        k = k + 1.0
        scheduled_lr = lr * minimum(k / maximum(warmup_steps, 1.0), 1.0)
        lr_max = maximum(scheduled_lr, lr_max)
        # lr_max ** weight_lr_power, where 0 ** 0 = 1.
        power = exp(weight_lr_power * log(maximum(lr_max, 1e-300)))
        power = where((lr_max > 0.0) | (weight_lr_power == 0.0), power, 0.0)
        weight = exp(r * log(k)) * power
        weight_sum = weight_sum + weight
        share = weight / maximum(weight_sum, 1e-300)
        return (
            scheduled_lr,
            scheduled_lr * (momentum * (1.0 - share) - 1.0),
            where(share < 0.5, share, share - 1.0),
            weight_decay,
            where(step == 1, 1.0, 0.0),
            k,
            lr_max,
            weight_sum,
            scheduled_lr,
        )

    @staticmethod
    def rule(p, g, z, c):
        """n = g + wd p; p = lerp(p, z, share) + step n; z -= lr n."""
        lr, step, share, decay, first = c
        z = where(first != 0.0, p, z)
        n = where(decay != 0.0, g + decay * p, g)
        # torch.lerp, from the nearer end.
        p = where(share >= 0.0, p, z) + share * (z - p) + step * n
        return p, z - lr * n


def _check(lr: Any, betas: Any, eps: float, weight_decay: float, warmup_steps: int) -> None:
    check_arguments(lr, betas, eps, weight_decay)
    if not betas[0] > 0.0:
        raise ValueError(f"Invalid momentum or first beta: {betas[0]}; it must be above 0")
    if not warmup_steps >= 0:
        raise ValueError(f"Invalid warmup_steps value: {warmup_steps}")
