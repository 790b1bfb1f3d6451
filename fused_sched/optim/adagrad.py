"""Adagrad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fused_sched import stock
from fused_sched.rules.arithmetic import sqrt, where
from fused_sched.rules.tuning import Tuning
from fused_sched.runtime.base import FusedOptimizer


class Adagrad(FusedOptimizer, stock.Adagrad):
    r"""torch.optim.Adagrad in one launch per step.

    .. math::
        s_t &= s_{t-1} + g_t^2 \\
        \theta_t &= \theta_{t-1} - \frac{\gamma_t}{1 + (t - 1) \eta}
                    \frac{g_t}{\sqrt{s_t} + \epsilon}

    Arguments, errors, ``param_groups`` and ``state_dict`` are torch's.

    State: ``step`` and ``sum`` (s), made by the constructor; ``sum`` starts at
    ``initial_accumulator_value`` and has the param's dtype; arithmetic in float32 (float64 for
    float64), rounded once at the store.

    Raises:
        ValueError: torch's own errors.

    ``differentiable=True``, sparse gradients, and dtypes and devices that no engine serves: torch's
    own step, for the params concerned; ``fused_sched.explain`` says which.

    Differs from torch: a capture is possible, and every hyperparameter may change between replays.

    Source: Duchi et al., "Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization" (2011), in torch 2.13's form.
    """

    states = {"sum": True}
    tunings = {
        16: Tuning(vectors=1, registers=64),
        32: Tuning(vectors=1, registers=64),
        64: Tuning(vectors=2, registers=128),
    }

    def initial_state(self, name: str, group: Mapping[str, Any]) -> float:
        """torch's: the constructor's argument, also of a group that has another."""
        return self.defaults["initial_accumulator_value"]

    @staticmethod
    def coefficients(lr, lr_decay, eps, weight_decay, maximize, step):
        """lr / (1 + (t - 1) lr_decay), once per group."""
        return (
            lr / (1.0 + (step - 1.0) * lr_decay),
            eps,
            weight_decay,
            1.0 - 2.0 * maximize,
        )

    @staticmethod
    def rule(p, g, s, c):
        """s += g^2; p -= clr g / (sqrt(s) + eps)."""
        clr, eps, l2, sign = c
        g = g * sign
        g = where(l2 != 0.0, g + l2 * p, g)
        s = s + g * g
        return p - clr * g / (sqrt(s) + eps), s
