"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fused_sched import stock
from fused_sched.rules.arithmetic import bias_correction, maximum, sqrt, where
from fused_sched.rules.tuning import Tuning
from fused_sched.runtime.arguments import check_caution
from fused_sched.runtime.base import FusedOptimizer


class Adam(FusedOptimizer, stock.Adam):
    r"""torch.optim.Adam in one launch per step.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \theta_t &= \theta_{t-1} - \gamma_t \frac{m_t / (1 - \beta_1^t)}
                    {\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    Arguments, errors, ``param_groups`` and ``state_dict`` are torch's.

    State: ``step``, ``exp_avg``, ``exp_avg_sq`` and with amsgrad ``max_exp_avg_sq``, the latter
    in the param's dtype; arithmetic in float32 (float64 for float64), rounded once at the store.

    Raises:
        ValueError: torch's own errors.

    ``differentiable=True``, sparse gradients, and dtypes and devices that no engine serves: torch's
    own step, for the params concerned; ``fused_sched.explain`` says which.

    Differs from torch: ``betas``, ``eps`` and ``weight_decay`` may change between replays of a
    captured graph; ``capturable`` is not needed for a capture; ``cautious_weight_decay=True``, see
    :class:`AdamW`, is in ``param_groups`` where it is asked for.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2014), in torch 2.13's
    form.
    """

    states = {"exp_avg": True, "exp_avg_sq": True, "max_exp_avg_sq": "amsgrad"}
    native_cuda = True
    optional = {"cautious_weight_decay": False}
    # Chosen from machine code so that the loads in flight on a multiprocessor are 48 KB and more,
    # and nothing is spilled. Triton 3.6.0 to 3.9.0; no GPU has measured them yet.
    tunings = {
        16: Tuning(vectors=1, registers=72),
        32: Tuning(vectors=1, registers=64),
        64: Tuning(vectors=2, registers=128),
    }

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse caution of coupled decay."""
        check_caution(group, "decoupled_weight_decay")

    @staticmethod
    def coefficients(
        lr, beta1, beta2, eps, weight_decay,
        decoupled_weight_decay, cautious_weight_decay, maximize, amsgrad, log_beta1, log_beta2,
        step,
    ):  # fmt: skip
        """With root = sqrt(1 - b2^t) here and not at each element.

        m / (sqrt(v) / root + eps) is m root / (sqrt(v) + eps root).
        """
        root = sqrt(bias_correction(log_beta2, step))
        decay = 1.0 - lr * weight_decay * decoupled_weight_decay
        return (
            lr * root / bias_correction(log_beta1, step),
            eps * root,
            where(beta1 > 0.5, 1.0 - beta1, -beta1),
            beta2,
            1.0 - beta2,
            decay,
            cautious_weight_decay,
            weight_decay * (1.0 - decoupled_weight_decay),
            1.0 - 2.0 * maximize,
            amsgrad,
        )

    @staticmethod
    def rule(p, g, m, v, largest, c):
        """m += (1 - b1)(g - m); v = b2 v + (1 - b2) g^2; p -= lr/bc1 * m / (sqrt(v/bc2) + eps)."""
        step_size, eps, weight, beta2, one_minus_beta2, decay, cautious, l2, sign, amsgrad = c
        g = g * sign
        g = where(l2 != 0.0, g + l2 * p, g)
        decayed = p * decay
        # torch.lerp, from the nearer end: m + (1 - b1)(g - m) or g - b1 (g - m); b1 = 0 gives g.
        m = where(weight > 0.0, m, g) + weight * (g - m)
        v = beta2 * v + one_minus_beta2 * g * g
        largest = maximum(largest, v)
        second = where(amsgrad != 0.0, largest, v)
        u = step_size * m / (sqrt(second) + eps)
        # Where it is not cautious, a CPU compares nothing.
        decayed = where(cautious != 0.0, where(u * p < 0.0, p, decayed), decayed)
        return decayed - u, m, v, largest


class AdamW(Adam, stock.AdamW):
    r"""torch.optim.AdamW in one launch per step: Adam with decoupled weight decay.

    .. math::
        \theta_t = (1 - \gamma_t \lambda) \theta_{t-1} - \gamma_t \frac{m_t / (1 - \beta_1^t)}
                   {\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    With ``cautious_weight_decay=True``, which torch lacks, an element decays only where its update
    and its value have one sign, or one is 0: where the update alone would shrink it.

    Arguments, errors, ``param_groups``, ``state_dict`` and state: as for :class:`Adam`.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2017), in torch 2.13's
    form; Chen et al., "Cautious Weight Decay" (2025).
    """
