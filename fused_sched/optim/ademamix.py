"""AdEMAMix."""

from __future__ import annotations

from typing import Any

from fused_sched.rules.arithmetic import bias_correction, exp, maximum, minimum, sqrt, where
from fused_sched.runtime.arguments import check_arguments
from fused_sched.runtime.base import FusedOptimizer


class AdEMAMix(FusedOptimizer):
    r"""AdEMAMix in one launch per step: AdamW with a second, slow average of the gradients.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        s_t = \beta_{3,t} s_{t-1} + (1 - \beta_{3,t}) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \theta_t &= (1 - \gamma_t \lambda) \theta_{t-1} - \gamma_t
            \frac{m_t / (1 - \beta_1^t) + \alpha_t s_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} \\
        \alpha_t &= \alpha \min(t / T_\alpha, 1) \\
        \frac{1}{\ln \beta_{3,t}} &= \frac{1 - x}{\ln \beta_1} + \frac{x}{\ln \beta_3}, \quad
            x = \min(t / T_{\beta_3}, 1)

    Args:
        params: as every optimizer's.
        lr: at least 0.
        betas: of m, v and s, each in [0, 1).
        alpha: weight of the slow average, at least 0.
        t_alpha: steps until ``alpha`` is reached; None: from the first step on.
        t_beta3: steps in which the half-life of s grows from that of m to its own; None: it has its
            own from the first step on.
        eps: at least 0.
        weight_decay: :math:`\lambda`, at least 0.
        maximize: follow the gradient upwards.
        cautious_weight_decay: decay only the elements whose update and value have one sign, or one
            of which is 0.

    State: ``step``, ``exp_avg_fast`` (m), ``exp_avg_slow`` (s) and ``exp_avg_sq`` (v), the latter
    three in the param's dtype; arithmetic in float32 (float64 for float64), rounded once at the
    store. The names are those of the paper's own code. ``maximize`` and ``cautious_weight_decay``
    are in the param groups where asked for.

    Raises:
        ValueError: an argument is out of its range.

    Differs from bitsandbytes 0.45: its ``state1`` holds m and s in one tensor, so that its
    checkpoints do not load; no ``optim_bits``, ``min_8bit_size`` and ``is_paged``. Its Python
    reference warms up anew for every further param of a group. Each param counts its own steps.
    Sparse gradients raise.

    Source: Pagliardini et al., "The AdEMAMix Optimizer: Better, Faster, Older" (2024), algorithm 1;
    the cautious decay is that of :class:`AdamW`.
    """

    states = {"exp_avg_fast": True, "exp_avg_slow": True, "exp_avg_sq": True}
    optional = {"t_alpha": 0, "t_beta3": 0, "maximize": False, "cautious_weight_decay": False}

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        cautious_weight_decay: bool = False,
    ) -> None:
        check_arguments(lr, betas, eps, weight_decay)
        for name, value in (("alpha", alpha), ("t_alpha", t_alpha), ("t_beta3", t_beta3)):
            if value is not None and not value >= 0.0:
                raise ValueError(f"Invalid {name} value: {value}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "t_alpha": t_alpha,
            "t_beta3": t_beta3,
        }
        options = {"maximize": maximize, "cautious_weight_decay": cautious_weight_decay}
        super().__init__(params, defaults, **options)

    @staticmethod
    def coefficients(
        lr, beta1, beta2, beta3, alpha, t_alpha, t_beta3, eps, weight_decay, maximize,
        cautious_weight_decay, log_beta1, log_beta2, log_beta3, step,
    ):  # fmt: skip
        """The weights of m and s, with root = sqrt(1 - b2^t) here and not at each element."""
        root = sqrt(bias_correction(log_beta2, step))
        share = minimum(step / maximum(t_beta3, 1.0), 1.0)
        warming = exp(1.0 / ((1.0 - share) / log_beta1 + share / log_beta3))
        slow = where(share < 1.0, minimum(warming, beta3), beta3)
        decay = 1.0 - lr * weight_decay
        return (
            lr * root / bias_correction(log_beta1, step),
            lr * root * alpha * minimum(step / maximum(t_alpha, 1.0), 1.0),
            eps * root,
            beta1,
            1.0 - beta1,
            slow,
            1.0 - slow,
            beta2,
            1.0 - beta2,
            decay,
            where(cautious_weight_decay != 0.0, 1.0, decay),
            1.0 - 2.0 * maximize,
        )

    @staticmethod
    def rule(p, g, m, s, v, c):
        """m, s and v are averages; p -= lr (m/bc1 + alpha s) / (sqrt(v/bc2) + eps)."""
        (of_fast, of_slow, eps, beta1, one_minus_beta1, beta3, one_minus_beta3,
         beta2, one_minus_beta2, decay, opposed, sign) = c  # fmt: skip
        g = g * sign
        m = beta1 * m + one_minus_beta1 * g
        s = beta3 * s + one_minus_beta3 * g
        v = beta2 * v + one_minus_beta2 * g * g
        u = (of_fast * m + of_slow * s) / (sqrt(v) + eps)
        return p * where(u * p < 0.0, opposed, decay) - u, m, s, v
