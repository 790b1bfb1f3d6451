"""cos in float64 without a stack frame.

``tl.cos`` in float64 brings 48 bytes of local memory on NVIDIA (its slow path for huge
arguments). A schedule's argument is pi * epoch / T, below 2**20 * pi / 2 for any real run, so
pi / 2 in three parts and a Taylor polynomial are enough, to less than one unit in the last place.
"""

import triton
import triton.language as tl

TWO_OVER_PI = tl.constexpr(0.6366197723675814)
# pi / 2 = HIGH + MIDDLE + LOW; HIGH and MIDDLE have 33 bits, so their product with a quadrant
# number below 2**20 is exact.
HALF_PI_HIGH = tl.constexpr(1.5707963267341256)
HALF_PI_MIDDLE = tl.constexpr(6.077100506303966e-11)
HALF_PI_LOW = tl.constexpr(2.0222662487959506e-21)


@triton.jit
def _cos_reduced(high, low):
    """cos(high + low) for abs(high) <= pi / 4, float64: Taylor to x**16, next term 2e-18."""
    z = high * high
    tail = 1.0 / 20922789888000.0
    tail = tail * z - 1.0 / 87178291200.0
    tail = tail * z + 1.0 / 479001600.0
    tail = tail * z - 1.0 / 3628800.0
    tail = tail * z + 1.0 / 40320.0
    tail = tail * z - 1.0 / 720.0
    tail = tail * z + 1.0 / 24.0
    half = 0.5 * z
    lead = 1.0 - half
    return lead + (((1.0 - lead) - half) + (z * z * tail - high * low))


@triton.jit
def _sin_reduced(high, low):
    """sin(high + low) for abs(high) <= pi / 4, float64: Taylor to x**17, next term 8e-20."""
    z = high * high
    tail = 1.0 / 355687428096000.0
    tail = tail * z - 1.0 / 1307674368000.0
    tail = tail * z + 1.0 / 6227020800.0
    tail = tail * z - 1.0 / 39916800.0
    tail = tail * z + 1.0 / 362880.0
    tail = tail * z - 1.0 / 5040.0
    tail = tail * z + 1.0 / 120.0
    tail = tail * z - 1.0 / 6.0
    return high + (high * z * tail + low * (1.0 - 0.5 * z))


@triton.jit
def cosine(x):
    """cos(x), float64, for abs(x) < 2**20 * pi / 2."""
    quadrant = tl.floor(x * TWO_OVER_PI + 0.5)
    rest = x - quadrant * HALF_PI_HIGH
    step = quadrant * HALF_PI_MIDDLE
    high = rest - step
    low = ((rest - high) - step) - quadrant * HALF_PI_LOW
    value = high + low
    low = (high - value) + low
    turn = quadrant - 4.0 * tl.floor(quadrant * 0.25)
    c = _cos_reduced(value, low)
    s = _sin_reduced(value, low)
    even = tl.where(turn == 0.0, c, -c)
    odd = tl.where(turn == 1.0, -s, s)
    return tl.where((turn == 0.0) | (turn == 2.0), even, odd)


@triton.jit
def cosines(x0, x1, count):
    """(x0, x1), the first ``count`` of them replaced by their cosines; one copy of the code."""
    while count > 0:
        count -= 1
        c = cosine(tl.where(count == 0, x0, x1))
        x0 = tl.where(count == 0, c, x0)
        x1 = tl.where(count == 0, x1, c)
    return x0, x1
