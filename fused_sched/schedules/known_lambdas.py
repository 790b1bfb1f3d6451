"""The closures of ``transformers.optimization`` as data: exact at every epoch, with no horizon.

Each of them multiplies the base lr by a function of the epoch in pieces: warm-up, plateau, decay.
A piece is ``max(0, a + b g(x))`` with ``x = (epoch + shift) / length`` and g a power of x or a
cosine. They are recognised by module and name, whether transformers is installed or not.

Source: transformers 5.23, ``optimization.py``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from fused_sched.tables.layout import COSINE_PIECE, POWER_PIECE, RESTARTING_PIECE

_MODULE = "transformers.optimization"


class Piece(NamedTuple):
    """One piece, in the order of its words in the row's table.

    Attributes:
        end: the first epoch of the next piece.
        kind: POWER_PIECE: g = x ** p; COSINE_PIECE: g = cos(pi p x); RESTARTING_PIECE: the same of
            the fraction of p x.
    """

    end: float
    kind: float = POWER_PIECE
    shift: float = 0.0
    length: float = 1.0
    p: float = 1.0
    a: float = 0.0
    b: float = 1.0


def _constant(value: float, end: float = math.inf) -> Piece:
    return Piece(end, a=value, b=0.0)


def _warm_up(steps: float) -> Piece:
    return Piece(steps, length=max(1, steps))


def _scaled(piece: Piece, low: float) -> Piece:
    """The piece from [0, 1] into [low, 1]."""
    return piece._replace(a=piece.a * (1 - low) + low, b=piece.b * (1 - low))


def _constant_with_warmup(num_warmup_steps: int) -> list[Piece]:
    return [_warm_up(num_warmup_steps), _constant(1.0)]


def _linear(num_warmup_steps: int, num_training_steps: int) -> list[Piece]:
    left = max(1, num_training_steps - num_warmup_steps)
    decay = Piece(math.inf, shift=-num_training_steps, length=-left)
    return [_warm_up(num_warmup_steps), decay]


def _cosine(
    num_warmup_steps: int, num_training_steps: int, num_cycles: float, min_lr_rate: float = 0.0
) -> list[Piece]:
    left = max(1, num_training_steps - num_warmup_steps)
    wave = Piece(math.inf, COSINE_PIECE, -num_warmup_steps, left, 2.0 * num_cycles, 0.5, 0.5)
    return [_warm_up(num_warmup_steps), _scaled(wave, min_lr_rate)]


def _cosine_with_restarts(
    num_warmup_steps: int, num_training_steps: int, num_cycles: int
) -> list[Piece]:
    left = max(1, num_training_steps - num_warmup_steps)
    end = num_warmup_steps + left
    wave = Piece(end, RESTARTING_PIECE, -num_warmup_steps, left, num_cycles, 0.5, 0.5)
    return [_warm_up(num_warmup_steps), wave, _constant(0.0)]


def _polynomial(
    num_warmup_steps: int, num_training_steps: int, lr_end: float, power: float, lr_init: float
) -> list[Piece] | None:
    left = num_training_steps - num_warmup_steps
    if left <= 0 or lr_end < 0.0:
        return None  # transformers divides by zero, or lets lr become negative
    low = lr_end / lr_init
    decay = Piece(
        num_training_steps + 1, POWER_PIECE, -num_training_steps, -left, power, low, 1.0 - low
    )
    return [_warm_up(num_warmup_steps), decay, _constant(low)]


def _inverse_sqrt(num_warmup_steps: int, timescale: int) -> list[Piece]:
    decay = Piece(math.inf, POWER_PIECE, timescale - num_warmup_steps, timescale, -0.5)
    return [_warm_up(num_warmup_steps), decay]


def _cosine_warmup_with_min_lr(
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float,
    min_lr_rate: float = 0.0,
    warmup_lr_rate: float | None = None,
) -> list[Piece]:
    if warmup_lr_rate is None:
        warm_up = Piece(num_warmup_steps, shift=1.0, length=max(1, num_warmup_steps))
    else:
        climb = Piece(num_warmup_steps, length=max(1, num_warmup_steps - 1))
        warm_up = _scaled(climb, warmup_lr_rate)
    left = max(1, num_training_steps - num_warmup_steps)
    wave = Piece(math.inf, COSINE_PIECE, 1.0 - num_warmup_steps, left, 2.0 * num_cycles, 0.5, 0.5)
    return [warm_up, _scaled(wave, min_lr_rate)]


def _warmup_stable_decay(
    num_warmup_steps: int,
    num_stable_steps: int,
    num_decay_steps: int,
    warmup_type: str,
    decay_type: str,
    min_lr_ratio: float,
    num_cycles: float,
) -> list[Piece] | None:
    rise, fall = max(1, num_warmup_steps), max(1, num_decay_steps)
    stable = num_warmup_steps + num_stable_steps
    end = stable + num_decay_steps
    up = {
        "linear": _warm_up(num_warmup_steps),
        "cosine": Piece(num_warmup_steps, COSINE_PIECE, 0.0, rise, 1.0, 0.5, -0.5),
        "1-sqrt": Piece(num_warmup_steps, POWER_PIECE, -rise, -rise, 0.5, 1.0, -1.0),
    }
    down = {
        "linear": Piece(end, POWER_PIECE, -stable, fall, 1.0, 1.0, -1.0),
        "cosine": Piece(end, COSINE_PIECE, -stable, fall, 2.0 * num_cycles, 0.5, 0.5),
        "1-sqrt": Piece(end, POWER_PIECE, -stable, fall, 0.5, 1.0, -1.0),
    }
    if warmup_type not in up or decay_type not in down:
        return None
    return [
        _scaled(up[warmup_type], min_lr_ratio),
        _constant(1.0, stable),
        _scaled(down[decay_type], min_lr_ratio),
        _constant(min_lr_ratio),
    ]


_KNOWN: dict[str, Callable[..., list[Piece] | None]] = {
    "_get_constant_lambda": lambda: [_constant(1.0)],
    "_get_constant_schedule_with_warmup_lr_lambda": _constant_with_warmup,
    "_get_linear_schedule_with_warmup_lr_lambda": _linear,
    "_get_cosine_schedule_with_warmup_lr_lambda": _cosine,
    "_get_cosine_with_hard_restarts_schedule_with_warmup_lr_lambda": _cosine_with_restarts,
    "_get_polynomial_decay_schedule_with_warmup_lr_lambda": _polynomial,
    "_get_inverse_sqrt_schedule_lr_lambda": _inverse_sqrt,
    "_get_cosine_with_min_lr_schedule_with_warmup_lr_rate_lambda": _cosine_warmup_with_min_lr,
    "_get_wsd_scheduler_lambda": _warmup_stable_decay,
}


def pieces_of(call: Any) -> tuple[Piece, ...] | None:
    """The pieces of a closure of transformers; None for any other callable."""
    function, keywords = call, {}
    if isinstance(call, functools.partial):
        if call.args:
            return None
        function, keywords = call.func, call.keywords
    if getattr(function, "__module__", None) != _MODULE:
        return None
    make = _KNOWN.get(getattr(function, "__name__", ""))
    try:
        pieces = None if make is None else make(**keywords)
    except (TypeError, ValueError, ZeroDivisionError):
        return None  # other arguments than those known: tabulated
    return None if pieces is None else tuple(pieces)
