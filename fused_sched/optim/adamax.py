"""Adamax."""

from __future__ import annotations

from fused_sched import stock
from fused_sched.rules.arithmetic import bias_correction, maximum, where
from fused_sched.runtime.base import FusedOptimizer


class Adamax(FusedOptimizer, stock.Adamax):
    r"""torch.optim.Adamax in one launch per step.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        u_t &= \max(\beta_2 u_{t-1}, |g_t| + \epsilon) \\
        \theta_t &= \theta_{t-1} - \frac{\gamma_t}{1 - \beta_1^t} \frac{m_t}{u_t}

    Arguments, errors, ``param_groups`` and ``state_dict`` are torch's.

    State: ``step``, ``exp_avg`` and ``exp_inf`` (u), the latter two in the param's dtype;
    arithmetic in float32 (float64 for float64), rounded once at the store.

    Raises:
        ValueError: torch's own errors.

    ``differentiable=True``, and dtypes and devices that no engine serves: torch's own step, for the
    params concerned; ``fused_sched.explain`` says which.

    Differs from torch: every hyperparameter may change between replays of a captured graph;
    ``capturable`` is not needed for a capture.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2014), section 7.1, in
    torch 2.13's form.
    """

    states = {"exp_avg": True, "exp_inf": True}

    @staticmethod
    def coefficients(lr, beta1, beta2, eps, weight_decay, maximize, log_beta1, step):
        """lr / (1 - b1^t), once per group."""
        return (
            lr / bias_correction(log_beta1, step),
            where(beta1 > 0.5, 1.0 - beta1, -beta1),
            beta2,
            eps,
            weight_decay,
            1.0 - 2.0 * maximize,
        )

    @staticmethod
    def rule(p, g, m, u, c):
        """m += (1 - b1)(g - m); u = max(b2 u, |g| + eps); p -= lr/bc1 * m / u."""
        step_size, weight, beta2, eps, l2, sign = c
        g = g * sign
        g = where(l2 != 0.0, g + l2 * p, g)
        # torch.lerp, from the nearer end.
        m = where(weight > 0.0, m, g) + weight * (g - m)
        u = maximum(beta2 * u, abs(g) + eps)
        return p - step_size * m / u, m, u
