"""The update rules: what happens to one element, in the compute type, whatever the storage.

Each optimizer is two functions with torch's symbols: ``*_coefficients`` turns a group's values of
this step into scalars, once per program; ``*_rule`` is the elementwise update. ``h`` points at the
current half of the hyper record at the tensor's group; column c lies at ``h + c * G``.
"""

import triton
import triton.language as tl

from fused_sched.tables import layout


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
    """1 - beta ** step, to the accuracy of the compute type C.

    With u = exp(step * log(beta)), the error of u cancels in (u - 1) / log(u) (the expm1 of
    Kahan). Where u rounds to 1 the limit is -x; below half an ulp of 1 the result is 1, which
    also serves beta = 0, whose log is -inf.
    """
    x = (step.to(tl.float64) * log_beta).to(C)
    u = tl.exp(x)
    tiny = (u < 5.6e-17) if C == tl.float64 else (u < 2.9802322e-08)
    logarithm = tl.log(tl.where(tiny, 0.5, u))
    safe = tl.where((u == 1.0) | tiny, 1.0, logarithm)
    ratio = -(u - 1.0) * x / safe
    return tl.where(u == 1.0, -x, tl.where(tiny, 1.0, ratio))


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
def sgd_rule(p, g, buf, c):
    """b = mu b + (1 - tau) g, or g at the first step; p -= lr b (nesterov: g + mu b)."""
    lr, weight_decay, momentum, undamped, nesterov, sign, first, _ = c
    g = g * sign
    g = tl.where(weight_decay != 0.0, g + weight_decay * p, g)
    b = tl.where(first != 0.0, g, momentum * buf + undamped * g)
    moving = tl.where(nesterov != 0.0, g + momentum * b, b)
    p = p - lr * tl.where(momentum != 0.0, moving, g)
    return p, tl.where(momentum != 0.0, b, buf)


@triton.jit
def adam_coefficients(h, G, step, C: tl.constexpr):
    """(lr / bc1, sqrt(bc2), 1 - beta1, beta2, eps, decay, L2, sign)."""
    lr = tl.load(h + ADAM_LR * G)
    weight_decay = tl.load(h + ADAM_WEIGHT_DECAY * G)
    decoupled = tl.load(h + ADAM_DECOUPLED * G)
    bc1 = bias_correction(tl.load(h + ADAM_LOG_BETA1 * G), step, C)
    bc2 = bias_correction(tl.load(h + ADAM_LOG_BETA2 * G), step, C)
    return (
        (lr / bc1.to(tl.float64)).to(C),
        tl.sqrt_rn(bc2) if C == tl.float32 else tl.sqrt(bc2),
        (1.0 - tl.load(h + ADAM_BETA1 * G)).to(C),
        tl.load(h + ADAM_BETA2 * G).to(C),
        tl.load(h + ADAM_EPS * G).to(C),
        (1.0 - lr * weight_decay * decoupled).to(C),
        (weight_decay * (1.0 - decoupled)).to(C),
        (1.0 - 2.0 * tl.load(h + ADAM_MAXIMIZE * G)).to(C),
    )


@triton.jit
def adam_rule(p, g, m, v, largest, amsgrad, one_minus_beta2, c, AMSGRAD: tl.constexpr):
    """m += (1 - b1)(g - m); v = b2 v + (1 - b2) g^2; p -= lr / bc1 * m / (sqrt(v / bc2) + eps)."""
    step_size, root_bc2, weight1, beta2, eps, decay, l2, sign = c
    g = g * sign
    g = tl.where(l2 != 0.0, g + l2 * p, g)
    p = p * decay
    # torch.lerp: two forms, so that weight 1 gives g exactly.
    m = tl.where(weight1 < 0.5, m + weight1 * (g - m), g - (g - m) * (1.0 - weight1))
    v = beta2 * v + one_minus_beta2 * g * g
    second = v
    if AMSGRAD:
        largest = tl.where((v > largest) | (v != v), v, largest)
        second = tl.where(amsgrad != 0.0, largest, v)
    if second.dtype == tl.float32:
        denominator = tl.div_rn(tl.sqrt_rn(second), root_bc2) + eps
        p = p - tl.div_rn(step_size * m, denominator)
    else:
        denominator = tl.sqrt(second) / root_bc2 + eps
        p = p - step_size * m / denominator
    return p, m, v, largest
