"""One function per schedule opcode: torch's recurrence, in float64, one lane per group.

Arguments: ``v`` the value now; ``e`` torch's last_epoch after its increment (float64 scalar);
``row`` the row's lanes [LANE_WORDS, groups]; ``lane``, ``live`` the lane numbers and their mask;
``G`` the number of groups. Every function returns the next value. The equations are those of
torch 2.13's ``lr_scheduler.py``, with its order of operations.
"""

import triton
import triton.language as tl

from .constants import (
    ANNEAL_COS,
    AUX_LENGTH,
    AUX_START,
    BASE,
    MAX_REL,
    MIN_ABS,
    MIN_REL,
    OVERRUN,
    P0,
    P1,
    P2,
    P3,
    P4,
    P5,
    P6,
    P7,
    P8,
    P9,
    S0,
    S1,
    S2,
    TRIANGULAR,
    TRIANGULAR2,
)
from .cosine import cosine

PI = tl.constexpr(3.141592653589793)


@triton.jit
def lanes(row, word, lane, live, G):
    """Word ``word`` of a row, a vector of one float64 per group."""
    return tl.load(row + word * G + lane, mask=live, other=1.0)


@triton.jit
def power(x, y):
    """x ** y for x >= 0; exact for y == 1 and y == 0."""
    raised = tl.exp(y * tl.log(tl.where(x > 0.0, x, 1.0)))
    raised = tl.where(x > 0.0, raised, 0.0)
    return tl.where(y == 1.0, x, tl.where(y == 0.0, 1.0, raised))


@triton.jit
def step(v, e, row, lane, live, G):
    """StepLR: v * gamma where e is a positive multiple of step_size."""
    size = lanes(row, P1, lane, live, G)
    remainder = e - size * tl.floor(e / size)
    moved = tl.where(remainder == 0.0, v * lanes(row, P0, lane, live, G), v)
    return tl.where(e == 0.0, v, moved)


@triton.jit
def multi_step(v, e, op, aux_ptr):
    """MultiStepLR, ConstantLR: v * factor[i] where e == milestone[i]; sorted, without repeats."""
    count = tl.load(op + AUX_LENGTH)
    keys = aux_ptr + tl.load(op + AUX_START)
    low = count * 0
    high = count
    while low < high:
        middle = (low + high) // 2
        before = tl.load(keys + middle) < e
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    inside = low < count
    hit = inside & (tl.load(keys + low, mask=inside, other=-1.0) == e)
    return tl.where(hit, v * tl.load(keys + count + low, mask=inside, other=1.0), v)


@triton.jit
def linear(v, e, row, lane, live, G):
    """LinearLR: v * (1 + (end - start) / (T * start + (e - 1) * (end - start)))."""
    start = lanes(row, P0, lane, live, G)
    rise = lanes(row, P1, lane, live, G) - start
    total = lanes(row, P2, lane, live, G)
    moved = v * (1.0 + rise / (total * start + (e - 1.0) * rise))
    return tl.where(e == 0.0, v * start, tl.where(e > total, v, moved))


@triton.jit
def polynomial(v, e, row, lane, live, G):
    """PolynomialLR: v * ((1 - e / T) / (1 - (e - 1) / T)) ** power."""
    total = lanes(row, P0, lane, live, G)
    ratio = (1.0 - e / total) / (1.0 - (e - 1.0) / total)
    past = e > total
    moved = v * power(tl.where(past, 1.0, ratio), lanes(row, P1, lane, live, G))
    return tl.where(past, v, moved)


@triton.jit
def cosine_annealing(v, e, row, lane, live, G):
    """CosineAnnealingLR: (1 + cos(pi e / T)) / (1 + cos(pi (e - 1) / T)) * (v - m) + m."""
    base = lanes(row, BASE, lane, live, G)
    low = lanes(row, P0, lane, live, G)
    T = lanes(row, P1, lane, live, G)
    ratio = (1.0 + cosine(e * PI / T)) / (1.0 + cosine((e - 1.0) * PI / T))
    moved = ratio * (v - low) + low
    lifted = v + (base - low) * (1.0 - cosine((T * 0.0 + PI) / T)) / 2.0
    phase = e - 1.0 - T
    turning = phase - 2.0 * T * tl.floor(phase / (2.0 * T)) == 0.0
    return tl.where(turning, lifted, moved)


@triton.jit
def warm_restarts(restart, row, lane, live, G):
    """CosineAnnealingWarmRestarts: m + (b - m) * (1 + cos(pi T_cur / T_i)) / 2."""
    base = lanes(row, BASE, lane, live, G)
    low = lanes(row, P0, lane, live, G)
    now = lanes(row, S0, lane, live, G)
    length = lanes(row, S1, lane, live, G)
    stepped = tl.where(restart == 1, now, now + 1.0)
    over = (stepped >= length) & (restart == 0)
    now = tl.where(over, stepped - length * tl.floor(stepped / length), stepped)
    length = tl.where(over, length * lanes(row, P1, lane, live, G), length)
    tl.store(row + S0 * G + lane, now, mask=live)
    tl.store(row + S1 * G + lane, length, mask=live)
    return low + (base - low) * (1.0 + cosine(now * PI / length)) / 2.0


@triton.jit
def cyclic(e, row, mode, lane, live, G):
    """CyclicLR: b + (max - b) * s * scale, s the triangle wave of e / total_size."""
    base = lanes(row, BASE, lane, live, G)
    height = lanes(row, P0, lane, live, G) - base
    turns = e / lanes(row, P1, lane, live, G)
    ratio = lanes(row, P2, lane, live, G)
    cycle = tl.floor(1.0 + turns)
    x = 1.0 + turns - cycle
    s = tl.where(x <= ratio, x / ratio, (x - 1.0) / (ratio - 1.0))
    scale = s * 0.0 + 1.0
    if mode == TRIANGULAR2:
        scale = 1.0 / tl.exp2(cycle - 1.0)
    elif mode != TRIANGULAR:
        scale = power(lanes(row, P3, lane, live, G), e)
    return base + height * s * scale


@triton.jit
def one_cycle(v, e, row, op, mode, clock_ptr, lane, live, G):
    """OneCycleLR: cosine or linear from phase to phase; past its end v, with the overrun flag."""
    two = tl.load(op + AUX_LENGTH) == 2
    end1 = lanes(row, P6, lane, live, G)
    end2 = lanes(row, P7, lane, live, G)
    in1 = e <= end1
    in2 = (in1 == 0) & ((e <= end2) | two)
    from_step = tl.where(in1, 0.0, tl.where(in2, end1, end2))
    to_step = tl.where(in1, end1, tl.where(in2, end2, lanes(row, P8, lane, live, G)))
    start = lanes(row, P4, lane, live, G)
    start = tl.where(in1, lanes(row, P0, lane, live, G), start)
    start = tl.where(in2, lanes(row, P2, lane, live, G), start)
    end = lanes(row, P5, lane, live, G)
    end = tl.where(in1, lanes(row, P1, lane, live, G), end)
    end = tl.where(in2, lanes(row, P3, lane, live, G), end)
    fraction = (e - from_step) / (to_step - from_step)
    past = e > lanes(row, P9, lane, live, G)
    over = tl.max(tl.where(live & past, 1, 0), axis=0)
    if over > 0:
        tl.store(clock_ptr + OVERRUN, over.to(tl.int64))
    if mode == ANNEAL_COS:
        value = end + (start - end) / 2.0 * (cosine(fraction * PI) + 1.0)
    else:
        value = (end - start) * fraction + start
    return tl.where(past, v, value)


@triton.jit
def table(e, op, first, aux_ptr, clock_ptr, lane, live, G):
    """The table's entry for epoch e; past its end the last one, with the overrun flag set."""
    length = tl.load(op + AUX_LENGTH)
    index = e - first
    if index >= length:
        tl.store(clock_ptr + OVERRUN, length * 0 + 1)
    index = tl.where(index >= length, length - 1, index)
    index = tl.where(index < 0, index * 0, index)
    return tl.load(aux_ptr + tl.load(op + AUX_START) + index * G + lane, mask=live, other=1.0)


@triton.jit
def _swa_alpha(step_number, epochs, mode):
    t = step_number / tl.where(epochs > 1.0, epochs, 1.0)
    t = tl.where(t < 0.0, 0.0, tl.where(t > 1.0, 1.0, t))
    alpha = t
    if mode == ANNEAL_COS:
        alpha = (1.0 - cosine(t * PI)) / 2.0
    return alpha


@triton.jit
def swa(v, count, row, mode, lane, live, G):
    """SWALR: undo the last blend with swa_lr, apply the next; counts with _step_count."""
    goal = lanes(row, P0, lane, live, G)
    epochs = lanes(row, P1, lane, live, G)
    number = count - 1.0
    number = number + epochs * 0.0
    number = tl.where((epochs == 0.0) & (number < 1.0), 1.0, number)
    before = _swa_alpha(number - 1.0, epochs, mode)
    undone = (v - before * goal) / tl.where(before == 1.0, 1.0, 1.0 - before)
    undone = tl.where(before == 1.0, goal, undone)
    alpha = _swa_alpha(number, epochs, mode)
    return goal * alpha + undone * (1.0 - alpha)


@triton.jit
def plateau(v, metric, row, mode, lane, live, G):
    """ReduceLROnPlateau: best, bad epochs and cooldown in S0, S1, S2, the same in each lane."""
    best = lanes(row, S0, lane, live, G)
    bad = lanes(row, S1, lane, live, G)
    cooldown = lanes(row, S2, lane, live, G)
    threshold = lanes(row, P3, lane, live, G)
    if mode == MIN_REL:
        better = metric < best * (1.0 - threshold)
    elif mode == MIN_ABS:
        better = metric < best - threshold
    elif mode == MAX_REL:
        better = metric > best * (threshold + 1.0)
    else:
        better = metric > best + threshold
    best = tl.where(better, metric, best)
    bad = tl.where(better, 0.0, bad + 1.0)
    cooling = cooldown > 0.0
    cooldown = tl.where(cooling, cooldown - 1.0, cooldown)
    bad = tl.where(cooling, 0.0, bad)
    reduce = bad > lanes(row, P4, lane, live, G)
    lower = v * lanes(row, P0, lane, live, G)
    floor = lanes(row, P1, lane, live, G)
    lower = tl.where(floor > lower, floor, lower)
    tl.store(row + S0 * G + lane, best, mask=live)
    tl.store(row + S1 * G + lane, tl.where(reduce, 0.0, bad), mask=live)
    cooldown = tl.where(reduce, lanes(row, P5, lane, live, G), cooldown)
    tl.store(row + S2 * G + lane, cooldown, mask=live)
    return tl.where(reduce & (v - lower > lanes(row, P2, lane, live, G)), lower, v)
