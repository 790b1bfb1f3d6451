"""SGD."""

from __future__ import annotations

from fused_sched import stock
from fused_sched.rules.arithmetic import where
from fused_sched.rules.tuning import Tuning
from fused_sched.runtime.base import FusedOptimizer


class SGD(FusedOptimizer, stock.SGD):
    r"""torch.optim.SGD in one launch per step.

    .. math::
        g_t &= \pm \nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
        b_t &= \mu b_{t-1} + (1 - \tau) g_t, \quad b_1 = g_1 \\
        \theta_t &= \theta_{t-1} - \gamma_t (g_t + \mu b_t \text{ if nesterov, else } b_t)

    Arguments, errors, ``param_groups`` and ``state_dict`` are torch's.

    State: ``momentum_buffer``, the param's dtype, only where ``momentum != 0``.

    Raises:
        ValueError: torch's own errors.

    ``differentiable=True``, sparse gradients, and dtypes and devices that no engine serves: torch's
    own step, for the params concerned; ``fused_sched.explain`` says which.

    Differs from torch: the first step is counted on the device, so an overflow at the first step
    under GradScaler leaves the buffer untouched; momentum, dampening and weight decay may change
    between replays of a captured graph.

    Source: Sutskever et al., "On the importance of initialization and momentum in deep learning"
    (2013), in torch 2.13's form.
    """

    states = {"momentum_buffer": "momentum"}
    native_cuda = True
    counts_steps = False
    # Chosen from machine code so that the loads in flight on a multiprocessor are 48 KB and more,
    # and nothing is spilled. Triton 3.6.0 to 3.9.0; no GPU has measured them yet.
    tunings = {
        16: Tuning(vectors=2, registers=64),
        32: Tuning(vectors=2, registers=64),
        64: Tuning(vectors=2, registers=128),
    }

    @staticmethod
    def coefficients(lr, momentum, dampening, weight_decay, nesterov, maximize, step):
        """1 - tau, and whether it is the first step, once per group."""
        return (
            lr,
            weight_decay,
            momentum,
            1.0 - dampening,
            nesterov,
            1.0 - 2.0 * maximize,
            step == 1,
        )

    @staticmethod
    def rule(p, g, buf, c):
        """b = mu b + (1 - tau) g, or g at the first step; p -= lr b (nesterov: g + mu b)."""
        lr, weight_decay, momentum, undamped, nesterov, sign, first = c
        g = g * sign
        g = where(weight_decay != 0.0, g + weight_decay * p, g)
        b = where(first != 0.0, g, momentum * buf + undamped * g)
        moving = where(nesterov != 0.0, g + momentum * b, b)
        p = p - lr * where(momentum != 0.0, moving, g)
        return p, where(momentum != 0.0, b, buf)
