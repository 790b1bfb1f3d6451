"""Adam and AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fused_sched import stock
from fused_sched.tables.layout import ADAM_COLUMNS

from .base import FusedOptimizer
from .numbers import numbers

_BETA_COLUMNS = ("beta1", "beta2", "log_beta1", "log_beta2")


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0.0 else -math.inf


class _AdamColumns(FusedOptimizer):
    """What Adam and AdamW share: their columns and their state."""

    _RULE = "adam"
    _COLUMNS = ADAM_COLUMNS
    _KEYS = {
        "betas": _BETA_COLUMNS,
        **{name: (name,) for name in ADAM_COLUMNS if name not in _BETA_COLUMNS},
    }
    _STATES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    _HAS_STEP = True

    @staticmethod
    def _encode(group: Mapping[str, Any]) -> list[float]:
        beta1, beta2 = numbers([("betas", beta) for beta in group["betas"]])
        values = {
            "beta1": beta1,
            "beta2": beta2,
            "log_beta1": _log(beta1),
            "log_beta2": _log(beta2),
        }
        return numbers([(n, values[n] if n in values else group[n]) for n in ADAM_COLUMNS])

    @staticmethod
    def _decode(group: dict[str, Any], column: str, value: float) -> None:
        if column not in ("beta1", "beta2"):
            FusedOptimizer._decode(group, column, value)
            return
        betas = list(dict.__getitem__(group, "betas"))
        which = int(column == "beta2")
        if betas[which] != value:
            betas[which] = value
            dict.__setitem__(group, "betas", tuple(betas))

    @classmethod
    def _state_names(cls, group: Mapping[str, Any]) -> tuple[str, ...]:
        return cls._STATES if group["amsgrad"] else cls._STATES[:2]


class Adam(_AdamColumns, stock.Adam):
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
    captured graph; ``capturable`` is not needed for a capture.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2014), in torch 2.13's
    form.
    """


class AdamW(Adam, stock.AdamW):
    r"""torch.optim.AdamW in one launch per step: Adam with decoupled weight decay.

    .. math::
        \theta_t = (1 - \gamma_t \lambda) \theta_{t-1} - \gamma_t \frac{m_t / (1 - \beta_1^t)}
                   {\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    Arguments, errors, ``param_groups``, ``state_dict`` and state: as for :class:`Adam`.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2017), in torch 2.13's
    form.
    """
