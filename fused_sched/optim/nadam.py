"""NAdam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fused_sched import stock
from fused_sched.rules.arithmetic import bias_correction, exp, sqrt, where
from fused_sched.runtime.arguments import check_caution
from fused_sched.runtime.base import FusedOptimizer


class NAdam(FusedOptimizer, stock.NAdam):
    r"""torch.optim.NAdam in one launch per step: Adam with Nesterov's momentum.

    .. math::
        \mu_t &= \beta_1 (1 - \tfrac12 \, 0.96^{t \psi}), \quad P_t = P_{t-1} \mu_t, \; P_0 = 1 \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \theta_t &= \theta_{t-1} - \gamma_t \left(
            \frac{1 - \mu_t}{1 - P_t} g_t + \frac{\mu_{t+1}}{1 - P_t \mu_{t+1}} m_t \right)
            \Big/ \left( \sqrt{v_t / (1 - \beta_2^t)} + \epsilon \right)

    Arguments, errors, ``param_groups`` and ``state_dict`` are torch's.

    State: ``step``, ``mu_product`` (P), ``exp_avg`` and ``exp_avg_sq``, the latter two in the
    param's dtype; arithmetic in float32 (float64 for float64), rounded once at the store.

    Raises:
        ValueError: torch's own errors.

    ``differentiable=True``, and dtypes and devices that no engine serves: torch's own step, for the
    params concerned; ``fused_sched.explain`` says which.

    Differs from torch: every hyperparameter may change between replays of a captured graph;
    ``capturable`` is not needed for a capture. The product is float64 inside, where torch rounds it
    to float32 at each step: 1e-8 of a float64 step. ``cautious_weight_decay=True`` of decoupled
    decay, see :class:`AdamW`, is in ``param_groups`` where it is asked for.

    Source: Dozat, "Incorporating Nesterov Momentum into Adam" (2016), in torch 2.13's form.
    """

    states = {"exp_avg": True, "exp_avg_sq": True}
    optional = {"cautious_weight_decay": False}
    recurrences = ("mu_product",)

    def initial_state(self, name: str, group: Mapping[str, Any]) -> float:
        """The empty product is 1."""
        return 1.0 if name == "mu_product" else 0.0

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse caution of coupled decay."""
        check_caution(group, "decoupled_weight_decay")

    @staticmethod
    def coefficients(
        lr, beta1, beta2, eps, weight_decay,
        momentum_decay, decoupled_weight_decay, cautious_weight_decay, maximize, log_beta2,
        mu_product, step,
    ):  # fmt: skip
        """The factors of g and m, with root = sqrt(1 - b2^t) here and not at each element."""
        # log(0.96) = -0.0408...
        mu = beta1 * (1.0 - 0.5 * exp(-0.040821994520255166 * step * momentum_decay))
        mu_next = beta1 * (1.0 - 0.5 * exp(-0.040821994520255166 * (step + 1.0) * momentum_decay))
        product = mu_product * mu
        root = sqrt(bias_correction(log_beta2, step))
        decay = 1.0 - lr * weight_decay * decoupled_weight_decay
        return (
            lr * root * (1.0 - mu) / (1.0 - product),
            lr * root * mu_next / (1.0 - product * mu_next),
            eps * root,
            where(beta1 > 0.5, 1.0 - beta1, -beta1),
            beta2,
            1.0 - beta2,
            decay,
            where(cautious_weight_decay != 0.0, 1.0, decay),
            weight_decay * (1.0 - decoupled_weight_decay),
            1.0 - 2.0 * maximize,
            product,
        )

    @staticmethod
    def rule(p, g, m, v, c):
        """m and v as Adam's; p -= (lr(1-mu)/(1-P) g + lr mu'/(1-P mu') m) / (sqrt(v/bc2) + eps)."""
        of_gradient, of_average, eps, weight, beta2, one_minus_beta2, decay, opposed, l2, sign = c
        g = g * sign
        g = where(l2 != 0.0, g + l2 * p, g)
        # torch.lerp, from the nearer end.
        m = where(weight > 0.0, m, g) + weight * (g - m)
        v = beta2 * v + one_minus_beta2 * g * g
        u = (of_gradient * g + of_average * m) / (sqrt(v) + eps)
        return p * where(u * p < 0.0, opposed, decay) - u, m, v
