"""Rprop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fused_sched import stock
from fused_sched.rules.arithmetic import maximum, minimum, where
from fused_sched.rules.tuning import Tuning
from fused_sched.runtime.base import FusedOptimizer


class Rprop(FusedOptimizer, stock.Rprop):
    r"""torch.optim.Rprop in one launch per step.

    .. math::
        s_t &= \min(\max(s_{t-1} f_t, \Gamma_{min}), \Gamma_{max}), \quad s_0 = \gamma, \quad
        f_t = \begin{cases}
            \eta_+ & g_t \tilde{g}_{t-1} > 0 \\
            \eta_- & g_t \tilde{g}_{t-1} < 0 \\
            1 & \text{else} \end{cases} \\
        \tilde{g}_t &= 0 \text{ where } f_t = \eta_-, \text{ else } g_t \\
        \theta_t &= \theta_{t-1} - s_t \operatorname{sign}(\tilde{g}_t)

    Arguments, errors, ``param_groups`` and ``state_dict`` are torch's.

    State: ``step``, ``prev`` (the gradient, or 0) and ``step_size`` (s), the latter two in the
    param's dtype; arithmetic in float32 (float64 for float64), rounded once at the store.

    Raises:
        ValueError: torch's own errors.

    ``differentiable=True``, and dtypes and devices that no engine serves: torch's own step, for the
    params concerned; ``fused_sched.explain`` says which.

    Differs from torch: ``etas`` and ``step_sizes`` may change between replays of a captured graph;
    ``capturable`` is not needed for a capture. As in torch the lr counts only at a param's first
    step.

    Source: Riedmiller and Braun, "A Direct Adaptive Method for Faster Backpropagation Learning: The
    RPROP Algorithm" (1993), in torch 2.13's form.
    """

    states = {"prev": True, "step_size": True}
    tunings = {32: Tuning(vectors=1, registers=64)}

    def initial_state(self, name: str, group: Mapping[str, Any]) -> float:
        """The lr as step size: what ``state`` shows where an overflow skipped the first step."""
        return float(group["lr"]) if name == "step_size" else 0.0

    @staticmethod
    def coefficients(lr, eta1, eta2, step_size1, step_size2, maximize, step):
        """The lr, and whether it is the first step, once per group."""
        return lr, step == 1, eta1, eta2, step_size1, step_size2, 1.0 - 2.0 * maximize

    @staticmethod
    def rule(p, g, prev, size, c):
        """s = s f, within the bounds; p -= s sign(g); where the sign has changed g counts as 0."""
        lr, first, shrink, grow, smallest, largest, sign = c
        g = g * sign
        # The lr of a param's first step, which may come long after the state was made.
        size = where(first != 0.0, lr, size)
        agree = g * prev
        factor = where(agree > 0.0, grow, where(agree < 0.0, shrink, 1.0))
        size = minimum(maximum(size * factor, smallest), largest)
        g = where(agree < 0.0, 0.0, g)
        p = p - size * where(g > 0.0, 1.0, where(g < 0.0, -1.0, 0.0))
        return p, g, size
