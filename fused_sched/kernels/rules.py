"""The update rules: what happens to one element, in the compute type, whatever the storage.

Each optimizer is two functions with torch's symbols, and a row of RULES: ``*_coefficients`` turns a
group's values of this step into scalars, once per program; ``*_rule`` is the elementwise update of
the param and of a tuple of states. ``h`` points at the current half of the hyper record at the
tensor's group; column c lies at ``h + c * G``.
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from triton import JITFunction

from fused_sched.tables import layout

INVERSE_FACTORIALS = tl.constexpr(tuple(1.0 / math.factorial(k) for k in range(16)))


def _column(columns, name):
    return tl.constexpr(columns.index(name))


SGD_LR = _column(layout.SGD_COLUMNS, "lr")
SGD_MOMENTUM = _column(layout.SGD_COLUMNS, "momentum")
SGD_DAMPENING = _column(layout.SGD_COLUMNS, "dampening")
SGD_WEIGHT_DECAY = _column(layout.SGD_COLUMNS, "weight_decay")
SGD_NESTEROV = _column(layout.SGD_COLUMNS, "nesterov")
SGD_MAXIMIZE = _column(layout.SGD_COLUMNS, "maximize")

ADAM_LR = _column(layout.ADAM_COLUMNS, "lr")
ADAM_BETA1 = _column(layout.ADAM_COLUMNS, "beta1")
ADAM_BETA2 = _column(layout.ADAM_COLUMNS, "beta2")
ADAM_EPS = _column(layout.ADAM_COLUMNS, "eps")
ADAM_WEIGHT_DECAY = _column(layout.ADAM_COLUMNS, "weight_decay")
ADAM_DECOUPLED = _column(layout.ADAM_COLUMNS, "decoupled_weight_decay")
ADAM_MAXIMIZE = _column(layout.ADAM_COLUMNS, "maximize")
ADAM_AMSGRAD = _column(layout.ADAM_COLUMNS, "amsgrad")
ADAM_LOG_BETA1 = _column(layout.ADAM_COLUMNS, "log_beta1")
ADAM_LOG_BETA2 = _column(layout.ADAM_COLUMNS, "log_beta2")


@triton.jit
def bias_correction(log_beta, step, C: tl.constexpr):
    """1 - beta ** step = -expm1(step * log(beta)) in float64, accurate to the compute type C.

    Near 0, where 1 - exp(x) cancels, the Taylor polynomial to x**15: 4e-9 for x > -2, which
    float32 needs because its exp is approximate on a GPU; 1e-17 for x > -0.5. Its even and its odd
    powers apart are two chains of 7 dependent operations, where one chain would have 28.
    """
    # beta = 0, whose log is -inf, gives 1: exp(-100) is below half an ulp of it.
    x = tl.maximum(step.to(tl.float64) * log_beta, -100.0)
    square = x * x
    even = square * INVERSE_FACTORIALS[15] + INVERSE_FACTORIALS[13]
    odd = square * INVERSE_FACTORIALS[14] + INVERSE_FACTORIALS[12]
    for k in tl.static_range(11, 0, -2):
        even = square * even + INVERSE_FACTORIALS[k]
        if k > 1:
            odd = square * odd + INVERSE_FACTORIALS[k - 1]
    series = even + x * odd
    cut: tl.constexpr = -0.5 if C == tl.float64 else -2.0
    return tl.where(x > cut, -x * series, (1.0 - tl.exp(x.to(C))).to(tl.float64))


@triton.jit
def sgd_coefficients(h, G, step, C: tl.constexpr):
    """(lr, weight_decay, momentum, 1 - dampening, nesterov, sign, first step, unused)."""
    momentum = tl.load(h + SGD_MOMENTUM * G)
    first = (step == 1).to(C)
    return (
        tl.load(h + SGD_LR * G).to(C),
        tl.load(h + SGD_WEIGHT_DECAY * G).to(C),
        momentum.to(C),
        (1.0 - tl.load(h + SGD_DAMPENING * G)).to(C),
        tl.load(h + SGD_NESTEROV * G).to(C),
        (1.0 - 2.0 * tl.load(h + SGD_MAXIMIZE * G)).to(C),
        first,
        first,
    )


@triton.jit
def sgd_rule(p, g, states, c):
    """b = mu b + (1 - tau) g, or g at the first step; p -= lr b (nesterov: g + mu b)."""
    lr, weight_decay, momentum, undamped, nesterov, sign, first, _ = c
    buf = g
    if len(states) > 0:
        buf = states[0]
    g = g * sign
    g = tl.where(weight_decay != 0.0, g + weight_decay * p, g)
    b = tl.where(first != 0.0, g, momentum * buf + undamped * g)
    moving = tl.where(nesterov != 0.0, g + momentum * b, b)
    p = p - lr * tl.where(momentum != 0.0, moving, g)
    return p, (tl.where(momentum != 0.0, b, buf),)


@triton.jit
def adam_coefficients(h, G, step, C: tl.constexpr):
    """(lr root / bc1, eps root, lerp weight, beta2, 1 - beta2, decay, L2, sign, amsgrad).

    root = sqrt(bc2), here and not at each element: m / (sqrt(v) / root + eps) is
    m root / (sqrt(v) + eps root).
    """
    lr = tl.load(h + ADAM_LR * G)
    weight_decay = tl.load(h + ADAM_WEIGHT_DECAY * G)
    decoupled = tl.load(h + ADAM_DECOUPLED * G)
    beta1 = tl.load(h + ADAM_BETA1 * G)
    beta2 = tl.load(h + ADAM_BETA2 * G)
    bc1 = bias_correction(tl.load(h + ADAM_LOG_BETA1 * G), step, C)
    bc2 = bias_correction(tl.load(h + ADAM_LOG_BETA2 * G), step, C).to(C)
    root = (tl.sqrt_rn(bc2) if C == tl.float32 else tl.sqrt(bc2)).to(tl.float64)
    return (
        (lr * root / bc1).to(C),
        (tl.load(h + ADAM_EPS * G) * root).to(C),
        tl.where(beta1 > 0.5, 1.0 - beta1, -beta1).to(C),
        beta2.to(C),
        (1.0 - beta2).to(C),
        (1.0 - lr * weight_decay * decoupled).to(C),
        (weight_decay * (1.0 - decoupled)).to(C),
        (1.0 - 2.0 * tl.load(h + ADAM_MAXIMIZE * G)).to(C),
        tl.load(h + ADAM_AMSGRAD * G).to(C),
    )


@triton.jit
def _quotient(a, square, eps, IEEE: tl.constexpr):
    """a / (sqrt(square) + eps). In float32 to 2 ulp, under IEEE to 1.

    tl.sqrt and / are approximate in float32, 1 and 2 ulp. The exact square root too, or the exact
    division with amsgrad's fifth array, would not fit into 64 registers.
    """
    denominator = tl.sqrt(square) + eps
    if IEEE and a.dtype == tl.float32:
        quotient = tl.div_rn(a, denominator)
    else:
        quotient = a / denominator
    return quotient


@triton.jit
def adam_rule(p, g, states, c):
    """m += (1 - b1)(g - m); v = b2 v + (1 - b2) g^2; p -= lr / bc1 * m / (sqrt(v / bc2) + eps)."""
    step_size, eps, weight, beta2, one_minus_beta2, decay, l2, sign, amsgrad = c
    m = states[0]
    v = states[1]
    largest = v
    g = g * sign
    g = tl.where(l2 != 0.0, g + l2 * p, g)
    p = p * decay
    # torch.lerp: from the nearer end, m + (1 - b1)(g - m) or g - b1 (g - m), so that b1 = 0 is g.
    m = tl.where(weight > 0.0, m, g) + weight * (g - m)
    v = beta2 * v + one_minus_beta2 * g * g
    second = v
    if len(states) > 2:
        largest = states[2]
        largest = tl.where((v > largest) | (v != v), v, largest)
        second = tl.where(amsgrad != 0.0, largest, v)
    p = p - _quotient(step_size * m, second, eps, len(states) == 2)
    return p, (m, v, largest)


class Rule(NamedTuple):
    """What the update kernel is compiled with for one optimizer.

    Attributes:
        coefficients: ``(h, G, step, C)`` to a tuple of scalars.
        rule: ``(p, g, states, coefficients)`` to ``(p, states)``; it may return more states than
            it got, of which the kernel stores as many as there are.
        required: states that every group keeps; a later one may be missing in some groups.
    """

    coefficients: JITFunction
    rule: JITFunction
    required: int


RULES = {
    "sgd": Rule(sgd_coefficients, sgd_rule, required=0),
    "adam": Rule(adam_coefficients, adam_rule, required=2),
}
