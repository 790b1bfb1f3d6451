"""Lion."""

from __future__ import annotations

from typing import Any

from fused_sched.rules.arithmetic import where
from fused_sched.rules.tuning import Tuning
from fused_sched.runtime.arguments import check_arguments
from fused_sched.runtime.base import FusedOptimizer


class Lion(FusedOptimizer):
    r"""lion-pytorch's Lion in one launch per step: the sign of an interpolated momentum.

    .. math::
        u_t &= \operatorname{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t),
            \quad \operatorname{sign}(0) = 0 \\
        \theta_t &= (1 - \gamma_t \lambda) \theta_{t-1} - \gamma_t u_t \\
        m_t &= \beta_2 m_{t-1} + (1 - \beta_2) g_t

    Args:
        params: as every optimizer's.
        lr: above 0.
        betas: of the update, and of the momentum that is kept; each in [0, 1).
        weight_decay: :math:`\lambda`, at least 0.
        use_triton: of lion-pytorch; changes nothing here, where the device decides the engine.
        decoupled_weight_decay: divide ``weight_decay`` by this ``lr``, so that it does not depend
            on it; each group then has ``init_lr``.
        maximize: follow the gradient upwards.
        cautious_weight_decay: decay only the elements with :math:`u_t \theta_{t-1} \ge 0`.

    State: ``exp_avg`` (m), in the param's dtype; no ``step``. Arithmetic in float32 (float64 for
    float64), rounded once at the store. ``param_groups`` and ``state_dict`` are lion-pytorch's;
    ``init_lr``, ``maximize`` and ``cautious_weight_decay`` are in them where asked for.

    Raises:
        ValueError: an argument is out of its range.

    Differs from lion-pytorch 0.2.5: of a complex param the real and the imaginary part have a sign
    each, as torch's own optimizers take a complex param for two real ones. Sparse gradients raise.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms" (2023), algorithm 2; the
    cautious decay is that of :class:`AdamW`.
    """

    states = {"exp_avg": True}
    counts_steps = False
    optional = {"init_lr": 1.0, "maximize": False, "cautious_weight_decay": False}
    # Chosen from machine code so that the loads in flight on a multiprocessor are 48 KB and more,
    # and nothing is spilled. Triton 3.7.1; no GPU has measured them yet.
    tunings = {16: Tuning(vectors=2, registers=72), 32: Tuning(vectors=2, registers=72)}

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        use_triton: bool = False,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        cautious_weight_decay: bool = False,
    ) -> None:
        check_arguments(lr, betas, weight_decay=weight_decay)
        if not lr > 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "weight_decay": weight_decay},
            init_lr=float(lr) if decoupled_weight_decay else None,
            maximize=maximize,
            cautious_weight_decay=cautious_weight_decay,
        )

    @staticmethod
    def coefficients(
        lr, beta1, beta2, weight_decay, init_lr, maximize, cautious_weight_decay, step
    ):
        """The factor of p where it is decayed, and where the update opposes it."""
        decay = 1.0 - lr * weight_decay / init_lr
        return (
            lr,
            beta1,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            decay,
            where(cautious_weight_decay != 0.0, 1.0, decay),
            1.0 - 2.0 * maximize,
        )

    @staticmethod
    def rule(p, g, m, c):
        """p -= lr sign(b1 m + (1 - b1) g); m = b2 m + (1 - b2) g."""
        lr, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, opposed, sign = c
        g = g * sign
        u = beta1 * m + one_minus_beta1 * g
        u = where(u > 0.0, 1.0, where(u < 0.0, -1.0, 0.0))
        p = p * where(u * p < 0.0, opposed, decay) - lr * u
        return p, beta2 * m + one_minus_beta2 * g
