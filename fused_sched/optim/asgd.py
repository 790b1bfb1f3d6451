"""ASGD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fused_sched import stock
from fused_sched.rules.arithmetic import exp, log, maximum, where
from fused_sched.rules.tuning import Tuning
from fused_sched.runtime.base import FusedOptimizer


class ASGD(FusedOptimizer, stock.ASGD):
    r"""torch.optim.ASGD in one launch per step: SGD, and the average of its iterates.

    .. math::
        \theta_t &= (1 - \lambda \eta_t) \theta_{t-1} - \eta_t g_t \\
        a_t &= a_{t-1} + \mu_t (\theta_t - a_{t-1}) \\
        \eta_{t+1} &= \frac{\gamma_t}{(1 + \lambda \gamma_t t)^\alpha}, \quad \eta_1 = \gamma_1,
            \qquad \mu_{t+1} = \frac{1}{\max(1, t - t_0)}, \quad \mu_1 = 1

    Arguments, errors, ``param_groups`` and ``state_dict`` are torch's.

    State: ``step``, ``eta``, ``mu`` and ``ax`` (a), the latter in the param's dtype; arithmetic in
    float32 (float64 for float64), rounded once at the store.

    Raises:
        ValueError: torch's own errors.

    ``differentiable=True``, and dtypes and devices that no engine serves: torch's own step, for the
    params concerned; ``fused_sched.explain`` says which.

    Differs from torch: every hyperparameter may change between replays of a captured graph;
    ``capturable`` is not needed for a capture. ``eta`` and ``mu`` are float64 inside, where torch
    rounds them to float32. As in torch, the lr of a step counts from the next step on.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992), in
    torch 2.13's form.
    """

    states = {"ax": True}
    recurrences = ("eta", "mu")
    # Chosen as Adam's are.
    tunings = {16: Tuning(vectors=2, registers=80), 32: Tuning(vectors=2, registers=72)}

    def initial_state(self, name: str, group: Mapping[str, Any]) -> float:
        """torch's: the lr as eta, 1 as mu."""
        return {"eta": float(group["lr"]), "mu": 1.0}.get(name, 0.0)

    @staticmethod
    def coefficients(lr, lambd, alpha, t0, weight_decay, maximize, eta, mu, step):
        """The step size that the last step has left, and the one for the next step."""
        # The lr of a param's first step, which may come long after the state was made.
        size = where(step == 1, lr, eta)
        return (
            size,
            1.0 - lambd * size,
            mu,
            weight_decay,
            1.0 - 2.0 * maximize,
            lr * exp(-alpha * log(1.0 + lambd * lr * step)),
            1.0 / maximum(step - t0, 1.0),
        )

    @staticmethod
    def rule(p, g, average, c):
        """p = (1 - lambda eta) p - eta g; a += mu (p - a)."""
        eta, decay, mu, l2, sign = c
        g = g * sign
        g = where(l2 != 0.0, g + l2 * p, g)
        p = p * decay - eta * g
        return p, where(mu != 1.0, average + mu * (p - average), p)
