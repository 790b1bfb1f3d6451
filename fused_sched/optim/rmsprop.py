"""RMSprop."""

from __future__ import annotations

from fused_sched import stock
from fused_sched.rules.arithmetic import sqrt, where
from fused_sched.rules.tuning import Tuning
from fused_sched.runtime.base import FusedOptimizer


class RMSprop(FusedOptimizer, stock.RMSprop):
    r"""torch.optim.RMSprop in one launch per step.

    .. math::
        v_t &= \alpha v_{t-1} + (1 - \alpha) g_t^2 \\
        d_t &= \sqrt{v_t} + \epsilon, \quad \text{centered: } \sqrt{v_t - \bar{g}_t^2} + \epsilon,
               \; \bar{g}_t = \alpha \bar{g}_{t-1} + (1 - \alpha) g_t \\
        b_t &= \mu b_{t-1} + g_t / d_t \\
        \theta_t &= \theta_{t-1} - \gamma_t b_t

    Arguments, errors, ``param_groups`` and ``state_dict`` are torch's.

    State: ``step``, ``square_avg``, with momentum ``momentum_buffer`` and with centered
    ``grad_avg``, the latter three in the param's dtype; arithmetic in float32 (float64 for
    float64), rounded once at the store.

    Raises:
        ValueError: torch's own errors.

    ``differentiable=True``, and dtypes and devices that no engine serves: torch's own step, for the
    params concerned; ``fused_sched.explain`` says which.

    Differs from torch: every hyperparameter may change between replays of a captured graph;
    ``capturable`` is not needed for a capture.

    Source: Hinton, "Neural Networks for Machine Learning", lecture 6 (2012); centered as in Graves,
    "Generating Sequences With Recurrent Neural Networks" (2013); in torch 2.13's form.
    """

    states = {"square_avg": True, "momentum_buffer": "momentum", "grad_avg": "centered"}
    tunings = {
        16: Tuning(vectors=1, registers=64),
        32: Tuning(vectors=1, registers=64),
        64: Tuning(vectors=2, registers=128),
    }

    @staticmethod
    def coefficients(lr, momentum, alpha, eps, centered, weight_decay, maximize, step):
        """1 - alpha, and the gradient's sign, once per group."""
        return (
            lr,
            momentum,
            where(alpha > 0.5, 1.0 - alpha, -alpha),
            alpha,
            1.0 - alpha,
            eps,
            centered,
            weight_decay,
            1.0 - 2.0 * maximize,
        )

    @staticmethod
    def rule(p, g, v, buf, average, c):
        """v = a v + (1 - a) g^2; b = mu b + g / (sqrt(v) + eps); p -= lr b."""
        lr, momentum, weight, alpha, one_minus_alpha, eps, centered, l2, sign = c
        g = g * sign
        g = where(l2 != 0.0, g + l2 * p, g)
        v = alpha * v + one_minus_alpha * g * g
        # torch.lerp, from the nearer end.
        moved = where(weight > 0.0, average, g) + weight * (g - average)
        variance = where(centered != 0.0, v - moved * moved, v)
        u = g / (sqrt(variance) + eps)
        b = where(momentum != 0.0, momentum * buf + u, u)
        p = p - lr * b
        return p, v, where(momentum != 0.0, b, buf), where(centered != 0.0, moved, average)
