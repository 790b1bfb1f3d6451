"""RAdam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fused_sched import stock
from fused_sched.rules.arithmetic import bias_correction, maximum, sqrt, where
from fused_sched.runtime.arguments import check_caution
from fused_sched.runtime.base import FusedOptimizer


class RAdam(FusedOptimizer, stock.RAdam):
    r"""torch.optim.RAdam in one launch per step: Adam whose step waits for a trusted variance.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \rho_\infty &= \frac{2}{1 - \beta_2} - 1, \quad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t} \\
        r_t &= \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}
                          {(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}} \\
        \theta_t &= \theta_{t-1} - \gamma_t \frac{m_t}{1 - \beta_1^t} \cdot \begin{cases}
            r_t \sqrt{1 - \beta_2^t} / (\sqrt{v_t} + \epsilon) & \rho_t > 5 \\
            1 & \text{else} \end{cases}

    Arguments, errors, ``param_groups`` and ``state_dict`` are torch's.

    State: ``step``, ``exp_avg`` and ``exp_avg_sq``, the latter two in the param's dtype; arithmetic
    in float32 (float64 for float64), rounded once at the store.

    Raises:
        ValueError: torch's own errors.

    ``differentiable=True``, and dtypes and devices that no engine serves: torch's own step, for the
    params concerned; ``fused_sched.explain`` says which.

    Differs from torch: every hyperparameter may change between replays of a captured graph;
    ``capturable`` is not needed for a capture; ``cautious_weight_decay=True`` of decoupled decay,
    see :class:`AdamW`, is in ``param_groups`` where it is asked for.

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond" (2019), in torch
    2.13's form.
    """

    states = {"exp_avg": True, "exp_avg_sq": True}
    optional = {"cautious_weight_decay": False}

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse caution of coupled decay."""
        check_caution(group, "decoupled_weight_decay")

    @staticmethod
    def coefficients(
        lr, beta1, beta2, eps, weight_decay,
        maximize, decoupled_weight_decay, cautious_weight_decay, log_beta1, log_beta2,
        step,
    ):  # fmt: skip
        """r_t sqrt(1 - b2^t), or 0 where the variance is not trusted yet, once per group."""
        correction = bias_correction(log_beta2, step)
        limit = 2.0 / (1.0 - beta2) - 1.0
        rho = limit - 2.0 * step * (1.0 - correction) / correction
        square = (rho - 4.0) * (rho - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * rho)
        rectified = sqrt(maximum(square, 0.0)) * sqrt(correction)
        decay = 1.0 - lr * weight_decay * decoupled_weight_decay
        return (
            lr / bias_correction(log_beta1, step),
            where(rho > 5.0, rectified, 0.0),
            eps,
            where(beta1 > 0.5, 1.0 - beta1, -beta1),
            beta2,
            1.0 - beta2,
            decay,
            where(cautious_weight_decay != 0.0, 1.0, decay),
            weight_decay * (1.0 - decoupled_weight_decay),
            1.0 - 2.0 * maximize,
        )

    @staticmethod
    def rule(p, g, m, v, c):
        """m and v as Adam's; p -= lr/bc1 * m * rectified / (sqrt(v) + eps), or lr/bc1 * m."""
        step_size, rectified, eps, weight, beta2, one_minus_beta2, decay, opposed, l2, sign = c
        g = g * sign
        g = where(l2 != 0.0, g + l2 * p, g)
        # torch.lerp, from the nearer end.
        m = where(weight > 0.0, m, g) + weight * (g - m)
        v = beta2 * v + one_minus_beta2 * g * g
        u = where(rectified > 0.0, rectified * m / (sqrt(v) + eps), m)
        return p * where(u * p < 0.0, opposed, decay) - step_size * u, m, v
