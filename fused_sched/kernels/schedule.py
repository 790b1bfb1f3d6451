"""The schedule program: rows of data, executed by one Triton program."""

import triton
import triton.language as tl

from . import opcodes
from .constants import (
    AUX_EPOCH,
    AUX_LENGTH,
    AUX_START,
    CLOCK,
    COLUMN,
    COSINE,
    COUNT,
    COUNT_INCREMENT,
    CYCLIC,
    DERIVED,
    EPOCH,
    EXPONENTIAL,
    HAS_RESTART,
    INTERVAL,
    LANES,
    LANE_WORDS,
    LAST,
    LINEAR,
    LOAD,
    MODE,
    MULTI_STEP,
    NEXT,
    ON_SKIP,
    ONE_CYCLE,
    OP_WORDS,
    OPCODE,
    P0,
    PLATEAU,
    POLYNOMIAL,
    RESTART,
    SEQUENTIAL,
    STEP,
    STORE,
    SWA,
    TABLE_FACTOR,
    TABLE_VALUE,
    TICK,
    WARM_RESTARTS,
)


@triton.jit
def _store_column(op, value, first_ptr, second_ptr, lane, live, G):
    """Write a column, and log(value) where the record keeps it, into both given halves."""
    column = tl.load(op + COLUMN)
    tl.store(first_ptr + column * G + lane, value, mask=live)
    tl.store(second_ptr + column * G + lane, value, mask=live)
    derived = tl.load(op + DERIVED)
    if derived >= 0:
        logarithm = tl.log(value)
        tl.store(first_ptr + derived * G + lane, logarithm, mask=live)
        tl.store(second_ptr + derived * G + lane, logarithm, mask=live)


@triton.jit
def _child(op, r, epoch, aux_ptr):
    """SequentialLR: (row of the child, 1 if it restarts), by bisect_right over the milestones."""
    count = tl.load(op + AUX_LENGTH)
    milestones = aux_ptr + tl.load(op + AUX_START)
    e = epoch.to(tl.float64)
    low = count * 0
    high = count
    while low < high:
        middle = (low + high) // 2
        below = e < tl.load(milestones + middle)
        high = tl.where(below, middle, high)
        low = tl.where(below, low, middle + 1)
    last = tl.load(milestones + low - 1, mask=low > 0, other=-1.0)
    return r + 1 + low, ((low > 0) & (last == e)).to(tl.int64)


@triton.jit
def _evaluate(op, row, opcode, v, epoch, count, restart, metric, aux_ptr, clock_ptr, lane, live, G):
    """The value of one row after its advance."""
    e = epoch.to(tl.float64)
    mode = tl.load(op + MODE)
    value = v
    if (restart == 1) & (tl.load(op + HAS_RESTART) == 1):
        value = opcodes.lanes(row, RESTART, lane, live, G)
    elif opcode == EXPONENTIAL:
        value = v * opcodes.lanes(row, P0, lane, live, G)
    elif opcode == STEP:
        value = opcodes.step(v, e, row, lane, live, G)
    elif opcode == MULTI_STEP:
        value = opcodes.multi_step(v, e, op, aux_ptr)
    elif opcode == LINEAR:
        value = opcodes.linear(v, e, row, lane, live, G)
    elif opcode == POLYNOMIAL:
        value = opcodes.polynomial(v, e, row, lane, live, G)
    elif opcode == COSINE:
        value = opcodes.cosine_annealing(v, e, row, lane, live, G)
    elif opcode == WARM_RESTARTS:
        value = opcodes.warm_restarts(restart, row, lane, live, G)
    elif opcode == CYCLIC:
        value = opcodes.cyclic(e, row, mode, lane, live, G)
    elif opcode == ONE_CYCLE:
        value = opcodes.one_cycle(v, e, row, op, mode, clock_ptr, lane, live, G)
    elif (opcode == TABLE_VALUE) | (opcode == TABLE_FACTOR):
        first = tl.load(op + AUX_EPOCH)
        entry = opcodes.table(epoch, op, first, aux_ptr, clock_ptr, lane, live, G)
        value = tl.where(opcode == TABLE_VALUE, entry, v * entry)
    elif opcode == SWA:
        value = opcodes.swa(v, count.to(tl.float64), row, mode, lane, live, G)
    elif opcode == PLATEAU:
        value = opcodes.plateau(v, metric, row, mode, lane, live, G)
    return value


@triton.jit
def _run_rows(
    ops_ptr, lanes_ptr, aux_ptr, num_rows, current_ptr, first_ptr, second_ptr, clock_ptr,
    metric, skipped, last, lane, G,
):  # fmt: skip
    """run_program for the given lanes; the last ones also move the rows' scalars."""
    live = lane < G
    value = tl.zeros((LANES,), tl.float64)
    r = num_rows * 0
    restart = tl.load(ops_ptr + OPCODE) * 0
    while r < num_rows:
        op = ops_ptr + r * OP_WORDS
        row = lanes_ptr + r * LANE_WORDS * G
        opcode = tl.load(op + OPCODE)
        following = tl.load(op + NEXT)
        if opcode == LOAD:
            column = tl.load(op + COLUMN)
            value = tl.load(current_ptr + column * G + lane, mask=live, other=1.0)
        elif opcode == STORE:
            _store_column(op, value, first_ptr, second_ptr, lane, live, G)
        else:
            tick = tl.load(op + TICK)
            counts = (skipped == 0) | (tl.load(op + ON_SKIP) == 1)
            due = counts & (tick + 1 >= tl.load(op + INTERVAL))
            if counts & last:
                tl.store(op + TICK, tl.where(due, 0, tick + 1))
            if due:
                epoch = tl.where(restart == 1, 0, tl.load(op + EPOCH) + 1)
                count = tl.load(op + COUNT)
                count = tl.where(restart == 1, count, count + tl.load(op + COUNT_INCREMENT))
                if last:
                    tl.store(op + EPOCH, epoch)
                    tl.store(op + COUNT, count)
                if opcode == SEQUENTIAL:
                    following, restart = _child(op, r, epoch, aux_ptr)
                else:
                    value = _evaluate(
                        op, row, opcode, value, epoch, count, restart, metric,
                        aux_ptr, clock_ptr, lane, live, G,
                    )  # fmt: skip
                    tl.store(row + LAST * G + lane, value, mask=live)
                    restart = restart * 0
        r = following.to(r.dtype)


@triton.jit
def run_program(
    ops_ptr,
    lanes_ptr,
    aux_ptr,
    num_rows,
    current_ptr,
    first_ptr,
    second_ptr,
    clock_ptr,
    metric,
    skipped,
    G,
):
    """Advance every row that is due, from ``current_ptr`` to the halves first and second.

    Grid:   any one program of a launch; LANES groups at a time, the rows' scalars with the last.
    Reads:  ops [num_rows, OP_WORDS] int64, lanes [num_rows, LANE_WORDS, G] float64, aux float64.
    Writes: the rows' state, the scheduled columns; the overrun flag of the clock.
    Values between rows travel in registers: no address is read after it was written.
    """
    first_group = G * 0
    while first_group < G:
        # Every warp has read the rows' scalars before the last turn moves them.
        tl.debug_barrier()
        lane = first_group + tl.arange(0, LANES)
        _run_rows(
            ops_ptr, lanes_ptr, aux_ptr, num_rows, current_ptr, first_ptr, second_ptr, clock_ptr,
            metric, skipped, first_group + LANES >= G, lane, G,
        )  # fmt: skip
        first_group += LANES


@triton.jit(do_not_specialize=["num_rows", "num_columns", "num_steps", "has_trace", "G"])
def schedule_kernel(
    ops_ptr,
    lanes_ptr,
    aux_ptr,
    record_ptr,
    clock_ptr,
    metric_ptr,
    trace_ptr,
    num_rows,
    num_columns,
    num_steps,
    has_trace,
    G,
):
    """Advance a schedule num_steps times, without an optimizer step: explicit mode.

    Grid:   (1,).
    Reads:  the current half of record_ptr [2, num_columns, G]; metric_ptr [1] float64 (plateau).
    Writes: both halves, the rows' state; trace_ptr [num_steps, num_columns, G] if has_trace.
    Host:   never waited for; may be captured.
    """
    half = num_columns * G
    current_ptr = record_ptr + (tl.load(clock_ptr + CLOCK) & 1) * half
    metric = tl.load(metric_ptr)
    n = num_steps * 0
    while n < num_steps:
        # The barrier makes the record and the state that the last turn wrote readable.
        tl.debug_barrier()
        run_program(
            ops_ptr, lanes_ptr, aux_ptr, num_rows, current_ptr, record_ptr, record_ptr + half,
            clock_ptr, metric, num_rows * 0, G,
        )  # fmt: skip
        if has_trace != 0:
            tl.debug_barrier()
            first = half * 0
            while first < half:
                at = first + tl.arange(0, LANES)
                now = tl.load(current_ptr + at, mask=at < half, other=0.0)
                tl.store(trace_ptr + n.to(tl.int64) * half + at, now, mask=at < half)
                first += LANES
        n += 1
