"""Adan."""

from __future__ import annotations

from typing import Any

from fused_sched.rules.arithmetic import bias_correction, sqrt, where
from fused_sched.rules.tuning import Tuning
from fused_sched.runtime.arguments import check_arguments
from fused_sched.runtime.base import FusedOptimizer


class Adan(FusedOptimizer):
    r"""Adan in one launch per step: Adam with an average of the gradients' differences.

    .. math::
        y_t &= g_t - g_{t-1}, \quad y_1 = 0 \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        d_t = \beta_2 d_{t-1} + (1 - \beta_2) y_t \\
        n_t &= \beta_3 n_{t-1} + (1 - \beta_3) (g_t + \beta_2 y_t)^2 \\
        u_t &= \gamma_t \left( \frac{m_t}{1 - \beta_1^t} + \beta_2 \frac{d_t}{1 - \beta_2^t} \right)
            \Big/ \left( \sqrt{n_t / (1 - \beta_3^t)} + \epsilon \right) \\
        \theta_t &= (\theta_{t-1} - u_t) / (1 + \gamma_t \lambda)

    Args:
        params: as every optimizer's.
        lr: at least 0.
        betas: of m, d and n, each in [0, 1).
        eps: at least 0.
        weight_decay: :math:`\lambda`, at least 0.
        no_prox: :math:`\theta_t = (1 - \gamma_t \lambda) \theta_{t-1} - u_t` instead.
        foreach: of timm; changes nothing here.
        maximize: follow the gradient upwards.
        cautious_weight_decay: decay only the elements with :math:`u_t \theta_{t-1} \ge 0`.

    State: ``step``, ``exp_avg`` (m), ``exp_avg_diff`` (d), ``exp_avg_sq`` (n) and ``neg_pre_grad``
    (:math:`-g_{t-1}`), the latter four in the param's dtype; arithmetic in float32 (float64 for
    float64), rounded once at the store. ``maximize`` and ``cautious_weight_decay`` are in the param
    groups where asked for.

    Raises:
        ValueError: an argument is out of its range.

    Differs from timm 1.0.31: each param counts its own steps, where timm counts those of a group.
    Checkpoints go both ways: a group's ``step`` becomes that of its params, and ``state_dict()``
    has the largest of them in the group. No ``caution``, no ``restart_opt()``. Sparse gradients
    raise.

    Source: Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep
    Models" (2022), in timm's form, whose betas are 1 minus the paper's; the cautious decay is that
    of :class:`AdamW`.
    """

    states = {"exp_avg": True, "exp_avg_diff": True, "exp_avg_sq": True, "neg_pre_grad": True}
    optional = {"maximize": False, "cautious_weight_decay": False}
    # Chosen from machine code so that the loads in flight on a multiprocessor are 48 KB and more,
    # and nothing is spilled. Triton 3.7.1; no GPU has measured them yet.
    tunings = {64: Tuning(vectors=1, registers=128)}

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_prox: bool = False,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        cautious_weight_decay: bool = False,
    ) -> None:
        check_arguments(lr, betas, eps, weight_decay)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "no_prox": no_prox,
            "foreach": foreach,
        }
        options = {"maximize": maximize, "cautious_weight_decay": cautious_weight_decay}
        super().__init__(params, defaults, **options)

    def state_dict(self) -> dict[str, Any]:
        """As every optimizer's; each group has ``step`` for timm, the largest of its params'."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            entries = [saved["state"].get(number, {}) for number in group["params"]]
            group["step"] = max((int(entry.get("step", 0)) for entry in entries), default=0)
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer's; a group's ``step``, timm's, is that of its params without one."""
        groups = [{**group} for group in state_dict["param_groups"]]
        state = {number: {**entry} for number, entry in state_dict["state"].items()}
        for group in groups:
            steps = group.pop("step", 0)
            for entry in (state[number] for number in group["params"] if number in state):
                entry.setdefault("step", float(steps))
        super().load_state_dict({**state_dict, "state": state, "param_groups": groups})

    @staticmethod
    def coefficients(
        lr, beta1, beta2, beta3, eps, weight_decay, no_prox, maximize, cautious_weight_decay,
        log_beta1, log_beta2, log_beta3, step,
    ):  # fmt: skip
        """The weights of m and d, with root = sqrt(1 - b3^t) here and not at each element."""
        root = sqrt(bias_correction(log_beta3, step))
        decay = 1.0 - lr * weight_decay * no_prox
        shrink = 1.0 / (1.0 + lr * weight_decay * (1.0 - no_prox))
        cautious = cautious_weight_decay != 0.0
        return (
            lr * root / bias_correction(log_beta1, step),
            lr * root * beta2 / bias_correction(log_beta2, step),
            eps * root,
            where(beta1 > 0.5, 1.0 - beta1, -beta1),
            beta2,
            1.0 - beta2,
            beta3,
            1.0 - beta3,
            step == 1,
            decay,
            where(cautious, 1.0, decay),
            shrink,
            where(cautious, 1.0, shrink),
            1.0 - 2.0 * maximize,
        )

    @staticmethod
    def rule(p, g, m, d, n, before, c):
        """y = g - g'; m, d and n are averages; p -= lr (m/bc1 + b2 d/bc2) / (sqrt(n/bc3) + eps)."""
        (of_average, of_change, eps, weight, beta2, one_minus_beta2, beta3, one_minus_beta3, first,
         decay, opposed_decay, shrink, opposed_shrink, sign) = c  # fmt: skip
        g = g * sign
        y = where(first != 0.0, 0.0, g + before)
        # torch.lerp, from the nearer end.
        m = where(weight > 0.0, m, g) + weight * (g - m)
        d = beta2 * d + one_minus_beta2 * y
        ahead = g + beta2 * y
        n = beta3 * n + one_minus_beta3 * ahead * ahead
        u = (of_average * m + of_change * d) / (sqrt(n) + eps)
        opposed = u * p < 0.0
        p = p * where(opposed, opposed_decay, decay) - u
        return p * where(opposed, opposed_shrink, shrink), m, d, n, -g
