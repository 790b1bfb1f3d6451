"""SGD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fused_sched import stock
from fused_sched.tables.layout import SGD_COLUMNS

from .base import FusedOptimizer
from .numbers import numbers


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

    _RULE = "sgd"
    _COLUMNS = SGD_COLUMNS
    _KEYS = {name: (name,) for name in SGD_COLUMNS}
    _STATES = ("momentum_buffer",)
    _HAS_STEP = False

    @staticmethod
    def _encode(group: Mapping[str, Any]) -> list[float]:
        return numbers([(name, group[name]) for name in SGD_COLUMNS])

    @classmethod
    def _state_names(cls, group: Mapping[str, Any]) -> tuple[str, ...]:
        return cls._STATES if group["momentum"] != 0 else ()
