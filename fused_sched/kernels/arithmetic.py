"""The names of ``fused_sched.rules.arithmetic`` as Triton computes them."""

import math

import triton
import triton.language as tl

INVERSE_FACTORIALS = tl.constexpr(tuple(1.0 / math.factorial(k) for k in range(16)))


@triton.jit
def where(condition, a, b):
    return tl.where(condition, a, b)


@triton.jit
def sqrt(x):
    return tl.sqrt(x)


@triton.jit
def exp(x):
    return tl.exp(x)


@triton.jit
def log(x):
    return tl.log(x)


@triton.jit
def absolute(x):
    return tl.abs(x)


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


# -- of float64 numbers that are rounded to float32: what costs a GPU least and is exact enough ----


@triton.jit
def sqrt_for_float32(x):
    return tl.sqrt_rn(x.to(tl.float32)).to(tl.float64)


@triton.jit
def _correction(x, exponential, CUT: tl.constexpr):
    """-expm1(x), given exp(x): below CUT 1 - exp(x), above it the Taylor polynomial to x**15.

    Its even and its odd powers apart are two chains of 7 dependent operations, where one chain
    would have 28.
    """
    square = x * x
    even = square * INVERSE_FACTORIALS[15] + INVERSE_FACTORIALS[13]
    odd = square * INVERSE_FACTORIALS[14] + INVERSE_FACTORIALS[12]
    for k in tl.static_range(11, 0, -2):
        even = square * even + INVERSE_FACTORIALS[k]
        if k > 1:
            odd = square * odd + INVERSE_FACTORIALS[k - 1]
    return tl.where(x > CUT, -x * (even + x * odd), 1.0 - exponential)


@triton.jit
def bias_correction(log_beta, step):
    """1 - beta ** step to 1e-17, the polynomial's error for x > -0.5."""
    x = tl.maximum(step * log_beta, -100.0)  # beta = 0, whose log is -inf, gives 1
    return _correction(x, tl.exp(x), -0.5)


@triton.jit
def bias_correction_for_float32(log_beta, step):
    """1 - beta ** step to 4e-9, the polynomial's error for x > -2: a GPU's exp is approximate."""
    x = tl.maximum(step * log_beta, -100.0)
    return _correction(x, tl.exp(x.to(tl.float32)).to(tl.float64), -2.0)


ELEMENTS = {
    "where": where,
    "sqrt": sqrt,
    "exp": exp,
    "log": log,
    "abs": absolute,
    "maximum": maximum,
    "minimum": minimum,
}
"""What the names mean in a rule, of one element."""

COEFFICIENTS = {
    tl.float64: ELEMENTS | {"bias_correction": bias_correction},
    tl.float32: ELEMENTS
    | {"sqrt": sqrt_for_float32, "bias_correction": bias_correction_for_float32},
}
"""What they mean in coefficients, by the type that these are rounded to."""
