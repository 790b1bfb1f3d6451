"""ADOPT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fused_sched.rules.arithmetic import exp, log, maximum, minimum, sqrt, where
from fused_sched.rules.tuning import Tuning
from fused_sched.runtime.arguments import check_arguments, check_caution
from fused_sched.runtime.base import FusedOptimizer


class ADOPT(FusedOptimizer):
    r"""ADOPT in one launch per step: Adam that converges with any :math:`\beta_2`.

    .. math::
        n_t &= \operatorname{clip}\left( \frac{g_t}{\max(\sqrt{v_{t-1}}, \epsilon)},
            \pm (t - 1)^c \right) \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) n_t \\
        \theta_t &= \theta_{t-1} - \gamma_t m_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2

    The first step only sets :math:`v_1 = g_1^2`; params stay as they are.

    Args:
        params: as every optimizer's.
        lr: at least 0.
        betas: of m and v, each in [0, 1).
        eps: the least divisor of the gradient, at least 0.
        clip_exp: c, at least 0; None: no clip.
        weight_decay: :math:`\lambda`, at least 0: :math:`g_t + \lambda \theta_{t-1}` in place of
            :math:`g_t`,
        decoupled: or :math:`(1 - \gamma_t \lambda) \theta_{t-1}` in place of
            :math:`\theta_{t-1}`, from the second step on.
        foreach: of timm; changes nothing here.
        maximize: follow the gradient upwards.
        capturable: keep ``step`` on the param's device; not needed for a capture.
        cautious_weight_decay: of decoupled decay: only the elements with
            :math:`m_t \theta_{t-1} \ge 0`.

    State: ``step``, ``exp_avg`` (m) and ``exp_avg_sq`` (v), the latter two in the param's dtype;
    arithmetic in float32 (float64 for float64), rounded once at the store. ``param_groups`` and
    ``state_dict`` are those of timm's ``Adopt``, less the options that are left out;
    ``cautious_weight_decay`` is in them where asked for.

    Raises:
        ValueError: an argument is out of its range, or caution is asked of coupled decay.

    Differs from timm 1.0.31: no ``corrected_weight_decay``, ``caution``, ``differentiable``. Sparse
    gradients raise.

    Source: Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal
    Rate" (2024), algorithm 2, in timm's form; the cautious decay is that of :class:`AdamW`.
    """

    states = {"exp_avg": True, "exp_avg_sq": True}
    optional = {"clip_exp": -1.0, "cautious_weight_decay": False}
    # Chosen from machine code so that the loads in flight on a multiprocessor are 48 KB and more,
    # and nothing is spilled. Triton 3.7.1; no GPU has measured them yet.
    tunings = {32: Tuning(vectors=1, registers=64)}

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        clip_exp: float | None = 0.333,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        cautious_weight_decay: bool = False,
    ) -> None:
        check_arguments(lr, betas, eps, weight_decay)
        if clip_exp is not None and not clip_exp >= 0.0:
            raise ValueError(f"Invalid clip_exp value: {clip_exp}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "clip_exp": clip_exp,
            "decoupled": decoupled,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
        }
        super().__init__(params, defaults, cautious_weight_decay=cautious_weight_decay)

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse caution of coupled decay."""
        check_caution(group, "decoupled")

    @staticmethod
    def coefficients(
        lr, beta1, beta2, eps, weight_decay, clip_exp, decoupled, maximize, cautious_weight_decay,
        step,
    ):  # fmt: skip
        """The bound of n, 1e38 for none; the first step moves nothing and keeps none of v."""
        first = step == 1
        bound = exp(clip_exp * log(maximum(step - 1.0, 1.0)))
        decay = where(first, 1.0, 1.0 - lr * weight_decay * decoupled)
        return (
            where(first, 0.0, lr),
            first,
            where(beta1 > 0.5, 1.0 - beta1, -beta1),
            where(first, 1.0, beta2),
            where(first, 1.0, 1.0 - beta2),
            eps,
            where(clip_exp < 0.0, 1e38, bound),
            decay,
            where(cautious_weight_decay != 0.0, 1.0, decay),
            weight_decay * (1.0 - decoupled),
            1.0 - 2.0 * maximize,
        )

    @staticmethod
    def rule(p, g, m, v, c):
        """n = clip(g / max(sqrt(v), eps)); m += (1 - b1)(n - m); p -= lr m; then v as Adam's."""
        lr, first, weight, beta2, one_minus_beta2, eps, bound, decay, opposed, l2, sign = c
        g = g * sign
        g = where(l2 != 0.0, g + l2 * p, g)
        n = minimum(maximum(g / maximum(sqrt(v), eps), -bound), bound)
        # torch.lerp, from the nearer end.
        average = where(weight > 0.0, m, n) + weight * (n - m)
        m = where(first != 0.0, m, average)
        p = p * where(m * p < 0.0, opposed, decay) - lr * m
        return p, m, beta2 * v + one_minus_beta2 * g * g
