"""Adadelta."""

from __future__ import annotations

from fused_sched import stock
from fused_sched.rules.arithmetic import sqrt, where
from fused_sched.runtime.base import FusedOptimizer


class Adadelta(FusedOptimizer, stock.Adadelta):
    r"""torch.optim.Adadelta in one launch per step.

    .. math::
        v_t &= \rho v_{t-1} + (1 - \rho) g_t^2 \\
        \Delta_t &= \frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}} g_t \\
        u_t &= \rho u_{t-1} + (1 - \rho) \Delta_t^2 \\
        \theta_t &= \theta_{t-1} - \gamma_t \Delta_t

    Arguments, errors, ``param_groups`` and ``state_dict`` are torch's.

    State: ``step``, ``square_avg`` (v) and ``acc_delta`` (u), the latter two in the param's dtype;
    arithmetic in float32 (float64 for float64), rounded once at the store.

    Raises:
        ValueError: torch's own errors.

    ``differentiable=True``, and dtypes and devices that no engine serves: torch's own step, for the
    params concerned; ``fused_sched.explain`` says which.

    Differs from torch: every hyperparameter may change between replays of a captured graph;
    ``capturable`` is not needed for a capture.

    Source: Zeiler, "ADADELTA: An Adaptive Learning Rate Method" (2012), in torch 2.13's form.
    """

    states = {"square_avg": True, "acc_delta": True}

    @staticmethod
    def coefficients(lr, rho, eps, weight_decay, maximize, step):
        """1 - rho, and the gradient's sign, once per group."""
        return lr, rho, 1.0 - rho, eps, weight_decay, 1.0 - 2.0 * maximize

    @staticmethod
    def rule(p, g, v, u, c):
        """v = r v + (1 - r) g^2; d = sqrt(u + eps) / sqrt(v + eps) g; u as v, of d; p -= lr d."""
        lr, rho, one_minus_rho, eps, l2, sign = c
        g = g * sign
        g = where(l2 != 0.0, g + l2 * p, g)
        v = rho * v + one_minus_rho * g * g
        delta = sqrt(u + eps) / sqrt(v + eps) * g
        u = rho * u + one_minus_rho * delta * delta
        return p - lr * delta, v, u
