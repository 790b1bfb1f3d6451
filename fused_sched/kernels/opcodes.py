"""One function per schedule opcode: torch's recurrence, in float64, one lane per group.

Arguments: ``v`` the value now; ``e`` torch's last_epoch after its increment (float64 scalar);
``row`` = (lanes_ptr, the row's first word, lane numbers, their mask, the number of groups G).
The equations are those of torch 2.13's ``lr_scheduler.py``, with its order of operations.

Note [One cosine]
~~~~~~~~~~~~~~~~~
An opcode that takes cosines is two functions: ``*_angles`` gives up to two angles, and the
function of the opcode's name takes their cosines, c0 and c1. ``evaluate`` has the one copy of
cosine() between them: five inlined copies cost the update kernel 40 registers a thread.

All are in this one file, their choice by opcode too: a new one touches no other file of kernels.
"""

import triton
import triton.language as tl

from .constants import (
    ANNEAL_COS,
    AUX_EPOCH,
    AUX_LENGTH,
    AUX_START,
    BASE,
    COSINE,
    CYCLIC,
    EXPONENTIAL,
    LINEAR,
    MAX_REL,
    MIN_ABS,
    MIN_REL,
    MODE,
    MULTI_STEP,
    ONE_CYCLE,
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
    PIECE_A,
    PIECE_B,
    PIECE_END,
    PIECE_KIND,
    PIECE_LENGTH,
    PIECE_P,
    PIECE_SHIFT,
    PIECE_WORDS,
    PIECEWISE,
    PLATEAU,
    POLYNOMIAL,
    POWER_PIECE,
    RESTARTING_PIECE,
    S0,
    S1,
    S2,
    STEP,
    SWA,
    TABLE_FACTOR,
    TABLE_VALUE,
    TRIANGULAR,
    TRIANGULAR2,
    WARM_RESTARTS,
)
from .cosine import cosines

PI = tl.constexpr(3.141592653589793)


@triton.jit
def load_word(row, word):
    """Word ``word`` of a row, a vector of one float64 per group."""
    lanes_ptr, first, lane, live, G = row
    return tl.load(lanes_ptr + (first + word) * G + lane, mask=live, other=1.0)


@triton.jit
def store_word(row, word, value):
    lanes_ptr, first, lane, live, G = row
    tl.store(lanes_ptr + (first + word) * G + lane, value, mask=live)


@triton.jit
def power(x, y):
    """x ** y for x >= 0; exact for y == 1 and y == 0."""
    raised = tl.exp(y * tl.log(tl.where(x > 0.0, x, 1.0)))
    raised = tl.where(x > 0.0, raised, 0.0)
    return tl.where(y == 1.0, x, tl.where(y == 0.0, 1.0, raised))


@triton.jit
def step(v, e, row):
    """StepLR: v * gamma where e is a positive multiple of step_size."""
    size = load_word(row, P1)
    remainder = e - size * tl.floor(e / size)
    moved = tl.where(remainder == 0.0, v * load_word(row, P0), v)
    return tl.where(e == 0.0, v, moved)


@triton.jit
def multi_step(v, e, op, aux_ptr):
    """MultiStepLR, ConstantLR: v * factor[i] where e == milestone[i]; sorted, without repeats."""
    count = tl.load(op + AUX_LENGTH).to(tl.int32)
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
def linear(v, e, row):
    """LinearLR: v * (1 + (end - start) / (T * start + (e - 1) * (end - start)))."""
    start = load_word(row, P0)
    rise = load_word(row, P1) - start
    total = load_word(row, P2)
    moved = v * (1.0 + rise / (total * start + (e - 1.0) * rise))
    return tl.where(e == 0.0, v * start, tl.where(e > total, v, moved))


@triton.jit
def polynomial(v, e, row):
    """PolynomialLR: v * ((1 - e / T) / (1 - (e - 1) / T)) ** power."""
    total = load_word(row, P0)
    ratio = (1.0 - e / total) / (1.0 - (e - 1.0) / total)
    past = e > total
    moved = v * power(tl.where(past, 1.0, ratio), load_word(row, P1))
    return tl.where(past, v, moved)


@triton.jit
def _leaves_minimum(e, T):
    """e - 1 - T is a multiple of 2 T: the cosine of the last epoch was -1."""
    phase = e - 1.0 - T
    return phase - 2.0 * T * tl.floor(phase / (2.0 * T)) == 0.0


@triton.jit
def cosine_annealing_angles(e, row):
    """(pi e / T, or pi / T where the value leaves its minimum; pi (e - 1) / T)."""
    T = load_word(row, P1)
    return tl.where(_leaves_minimum(e, T), 1.0, e) * PI / T, (e - 1.0) * PI / T


@triton.jit
def cosine_annealing(v, e, c0, c1, row):
    """CosineAnnealingLR: (1 + cos(pi e / T)) / (1 + cos(pi (e - 1) / T)) * (v - m) + m."""
    low = load_word(row, P0)
    moved = (1.0 + c0) / (1.0 + c1) * (v - low) + low
    lifted = v + (load_word(row, BASE) - low) * (1.0 - c0) / 2.0
    return tl.where(_leaves_minimum(e, load_word(row, P1)), lifted, moved)


@triton.jit
def warm_restarts_angle(restart, row):
    """pi T_cur / T_i, after the advance of T_cur and T_i in S0 and S1."""
    now = load_word(row, S0)
    length = load_word(row, S1)
    now = tl.where(restart == 1, now, now + 1.0)
    over = (now >= length) & (restart == 0)
    next_length = tl.where(over, length * load_word(row, P1), length)
    now = tl.where(over, now - length * tl.floor(now / length), now)
    store_word(row, S0, now)
    store_word(row, S1, next_length)
    return now * PI / next_length


@triton.jit
def warm_restarts(c0, row):
    """CosineAnnealingWarmRestarts: m + (b - m) * (1 + cos(pi T_cur / T_i)) / 2."""
    low = load_word(row, P0)
    return low + (load_word(row, BASE) - low) * (1.0 + c0) / 2.0


@triton.jit
def cyclic(e, row, mode):
    """CyclicLR: b + (max - b) * s * scale, s the triangle wave of e / total_size."""
    turns = e / load_word(row, P1)
    ratio = load_word(row, P2)
    cycle = tl.floor(1.0 + turns)
    x = 1.0 + turns - cycle
    s = tl.where(x <= ratio, x / ratio, (x - 1.0) / (ratio - 1.0))
    base = load_word(row, BASE)
    height = (load_word(row, P0) - base) * s
    if mode == TRIANGULAR2:
        # 2 ** (1 - cycle) by its exponent bits, down to the least normal number.
        exponent = 1024 - tl.minimum(cycle, 1023.0).to(tl.int64)
        height *= (exponent << 52).to(tl.float64, bitcast=True)
    elif mode != TRIANGULAR:
        height *= power(load_word(row, P3), e)
    return base + height


@triton.jit
def _one_cycle_phase(e, row, op):
    """(in the first phase, in the second) of OneCycleLR's two or three."""
    in1 = e <= load_word(row, P6)
    two = tl.load(op + AUX_LENGTH) == 2
    return in1, (in1 == 0) & ((e <= load_word(row, P7)) | two)


@triton.jit
def one_cycle_fraction(e, row, op, clock_ptr):
    """The part of its phase that e has reached; e > total_steps sets the overrun flag."""
    in1, in2 = _one_cycle_phase(e, row, op)
    end1 = load_word(row, P6)
    end2 = load_word(row, P7)
    start = tl.where(in1, 0.0, tl.where(in2, end1, end2))
    end = tl.where(in1, end1, tl.where(in2, end2, load_word(row, P8)))
    _, _, _, live, _ = row
    over = tl.max(tl.where(live & (e > load_word(row, P9)), 1, 0), axis=0)
    if over > 0:
        tl.store(clock_ptr + OVERRUN, over.to(tl.int64))
    return (e - start) / (end - start)


@triton.jit
def one_cycle(v, e, c0, row, op, mode):
    """OneCycleLR: from phase to phase by c0, the cosine of pi * fraction or the fraction itself.

    Past total_steps the value is held.
    """
    in1, in2 = _one_cycle_phase(e, row, op)
    start = tl.where(in2, load_word(row, P2), load_word(row, P4))
    start = tl.where(in1, load_word(row, P0), start)
    end = tl.where(in2, load_word(row, P3), load_word(row, P5))
    end = tl.where(in1, load_word(row, P1), end)
    cosine_value = end + (start - end) / 2.0 * (c0 + 1.0)
    value = tl.where(mode == ANNEAL_COS, cosine_value, (end - start) * c0 + start)
    return tl.where(e > load_word(row, P9), v, value)


@triton.jit
def table(v, epoch, op, opcode, aux_ptr, clock_ptr, row):
    """The table's entry for an epoch, or v times it; past its end v, with the overrun flag set."""
    _, _, lane, _, G = row
    length = tl.load(op + AUX_LENGTH)
    index = epoch - tl.load(op + AUX_EPOCH)
    if index >= length:
        tl.store(clock_ptr + OVERRUN, length * 0 + 1)
    inside = (index >= 0) & (index < length)
    at = aux_ptr + tl.load(op + AUX_START) + index * G + lane
    entry = tl.load(at, mask=lane < tl.where(inside, G, 0), other=1.0)
    return tl.where(inside, tl.where(opcode == TABLE_FACTOR, v * entry, entry), v)


@triton.jit
def _swa_fraction(number, epochs):
    t = number / tl.where(epochs > 1.0, epochs, 1.0)
    return tl.where(t < 0.0, 0.0, tl.where(t > 1.0, 1.0, t))


@triton.jit
def swa_fractions(count, row):
    """The parts of the annealing done after this step and before it; counts with _step_count."""
    epochs = load_word(row, P1)
    number = count - 1.0 + epochs * 0.0  # a vector: the interpreter cannot widen a scalar bool
    number = tl.where((epochs == 0.0) & (number < 1.0), 1.0, number)
    return _swa_fraction(number, epochs), _swa_fraction(number - 1.0, epochs)


@triton.jit
def swa(v, c0, c1, row, mode):
    """SWALR: undo the last blend with swa_lr, apply the next, by cosines or the fractions."""
    goal = load_word(row, P0)
    alpha = tl.where(mode == ANNEAL_COS, (1.0 - c0) / 2.0, c0)
    before = tl.where(mode == ANNEAL_COS, (1.0 - c1) / 2.0, c1)
    undone = (v - before * goal) / tl.where(before == 1.0, 1.0, 1.0 - before)
    undone = tl.where(before == 1.0, goal, undone)
    return goal * alpha + undone * (1.0 - alpha)


@triton.jit
def plateau(v, metric, row, mode):
    """ReduceLROnPlateau: best, bad epochs and cooldown in S0, S1, S2, the same in each lane."""
    best = load_word(row, S0)
    threshold = load_word(row, P3)
    if mode == MIN_REL:
        better = metric < best * (1.0 - threshold)
    elif mode == MIN_ABS:
        better = metric < best - threshold
    elif mode == MAX_REL:
        better = metric > best * (threshold + 1.0)
    else:
        better = metric > best + threshold
    store_word(row, S0, tl.where(better, metric, best))
    cooldown = load_word(row, S2)
    cooling = cooldown > 0.0
    bad = tl.where(better | cooling, 0.0, load_word(row, S1) + 1.0)
    reduce = bad > load_word(row, P4)
    store_word(row, S1, tl.where(reduce, 0.0, bad))
    cooldown = tl.where(cooling, cooldown - 1.0, cooldown)
    cooldown = tl.where(reduce, load_word(row, P5), cooldown)
    store_word(row, S2, cooldown)
    floor = load_word(row, P1)
    lower = v * load_word(row, P0)
    lower = tl.where(floor > lower, floor, lower)
    return tl.where(reduce & (v - lower > load_word(row, P2)), lower, v)


@triton.jit
def piece(e, op, aux_ptr):
    """Address of the piece that e lies in."""
    at = tl.load(op + AUX_START)
    while e >= tl.load(aux_ptr + at + PIECE_END):
        at += PIECE_WORDS
    return aux_ptr + at


@triton.jit
def piecewise_argument(v, e, piece_ptr):
    """(what g takes: x, or pi p x, or pi times the fraction of p x; cosines to take of it)."""
    kind = tl.load(piece_ptr + PIECE_KIND)
    x = (e + tl.load(piece_ptr + PIECE_SHIFT)) / tl.load(piece_ptr + PIECE_LENGTH)
    turns = tl.load(piece_ptr + PIECE_P) * x
    turns = tl.where(kind == RESTARTING_PIECE, turns - tl.floor(turns), turns)
    argument = tl.where(kind == POWER_PIECE, x, turns * PI)
    return v * 0.0 + argument, tl.where(kind == POWER_PIECE, 0, 1)


@triton.jit
def piecewise(c0, row, piece_ptr):
    """Schedules in pieces: base * max(0, a + b g), g = x ** p or the cosine c0."""
    raised = power(c0, tl.load(piece_ptr + PIECE_P))
    g = tl.where(tl.load(piece_ptr + PIECE_KIND) == POWER_PIECE, raised, c0)
    factor = tl.load(piece_ptr + PIECE_A) + tl.load(piece_ptr + PIECE_B) * g
    return load_word(row, BASE) * tl.where(factor > 0.0, factor, 0.0)


@triton.jit
def _angles(v, op, row, opcode, mode, epoch, count, restart, aux_ptr, clock_ptr):
    """(x0, x1, how many of them are angles). See Note [One cosine]."""
    e = epoch.to(tl.float64)
    x0 = v
    x1 = v
    angles = opcode * 0
    if opcode == COSINE:
        x0, x1 = cosine_annealing_angles(e, row)
        angles += 2
    elif opcode == WARM_RESTARTS:
        x0 = warm_restarts_angle(restart, row)
        angles += 1
    elif opcode == ONE_CYCLE:
        x0 = one_cycle_fraction(e, row, op, clock_ptr)
        if mode == ANNEAL_COS:
            x0 *= PI
            angles += 1
    elif opcode == SWA:
        x0, x1 = swa_fractions(count.to(tl.float64), row)
        if mode == ANNEAL_COS:
            x0 *= PI
            x1 *= PI
            angles += 2
    elif opcode == PIECEWISE:
        x0, taken = piecewise_argument(v, e, piece(e, op, aux_ptr))
        angles += taken
    return x0, x1, angles


@triton.jit
def evaluate(v, op, row, opcode, epoch, count, restart, metric, aux_ptr, clock_ptr):
    """The value of one row after its advance."""
    mode = tl.load(op + MODE).to(tl.int32)
    c0, c1, angles = _angles(
        v, op, row, opcode, mode, epoch, count, restart, aux_ptr, clock_ptr
    )  # fmt: skip
    c0, c1 = cosines(c0, c1, angles)
    e = epoch.to(tl.float64)
    value = v
    if opcode == EXPONENTIAL:
        value = v * load_word(row, P0)
    elif opcode == STEP:
        value = step(v, e, row)
    elif opcode == MULTI_STEP:
        value = multi_step(v, e, op, aux_ptr)
    elif opcode == LINEAR:
        value = linear(v, e, row)
    elif opcode == POLYNOMIAL:
        value = polynomial(v, e, row)
    elif opcode == COSINE:
        value = cosine_annealing(v, e, c0, c1, row)
    elif opcode == WARM_RESTARTS:
        value = warm_restarts(c0, row)
    elif opcode == CYCLIC:
        value = cyclic(e, row, mode)
    elif opcode == ONE_CYCLE:
        value = one_cycle(v, e, c0, row, op, mode)
    elif (opcode == TABLE_VALUE) | (opcode == TABLE_FACTOR):
        value = table(v, epoch, op, opcode, aux_ptr, clock_ptr, row)
    elif opcode == SWA:
        value = swa(v, c0, c1, row, mode)
    elif opcode == PLATEAU:
        value = plateau(v, metric, row, mode)
    elif opcode == PIECEWISE:
        value = piecewise(c0, row, piece(e, op, aux_ptr))
    return value
