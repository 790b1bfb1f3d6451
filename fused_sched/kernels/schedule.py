"""The schedule program: rows of data, executed by one Triton program."""

import triton
import triton.language as tl

from . import opcodes
from .constants import (
    ADDRESS,
    AUX_LENGTH,
    AUX_START,
    CALLED,
    CLOCK,
    COLUMN,
    COUNT,
    COUNT_INCREMENT,
    COUNTED,
    DERIVED,
    EPOCH,
    HAS_RESTART,
    HISTORY,
    INTERVAL,
    LANE_WORDS,
    LANES,
    LAST,
    LOAD,
    NEXT,
    ON_SKIP,
    OP_WORDS,
    OPCODE,
    RESTART,
    SEQUENTIAL,
    STORE,
    TICK,
)

# Stated, since Triton's default is to change. The update kernel takes the same: a schedule has the
# same bits in either.
LAUNCH_OPTIONS = {"enable_fp_fusion": True}


@triton.jit
def _store_column(op, value, record_ptr, current, other, both, lane, live, G):
    """Write a column, and log(value) where the record keeps it: into the other half, or both."""
    column = tl.load(op + COLUMN).to(tl.int32)
    also = tl.where(both, current, other)
    tl.store(record_ptr + (other + column) * G + lane, value, mask=live)
    tl.store(record_ptr + (also + column) * G + lane, value, mask=live)
    derived = tl.load(op + DERIVED).to(tl.int32)
    if derived >= 0:
        logarithm = tl.log(tl.where(value > 0.0, value, 0.0))  # 0 may be rounded to below
        tl.store(record_ptr + (other + derived) * G + lane, logarithm, mask=live)
        tl.store(record_ptr + (also + derived) * G + lane, logarithm, mask=live)


@triton.jit
def _keep(op, record_ptr, current, clock, skipped, lane, live, G):
    """What a step that is made uses, into the ring of a HISTORY row."""
    capacity = tl.load(op + AUX_LENGTH)
    if (skipped == 0) & (capacity > 0):
        column = tl.load(op + COLUMN).to(tl.int32)
        value = tl.load(record_ptr + (current + column) * G + lane, mask=live, other=0.0)
        ring = tl.load(op + ADDRESS).to(tl.pointer_type(tl.float64))
        tl.store(ring + (clock % capacity) * G + lane, value, mask=live)


@triton.jit
def _child(op, r, epoch, aux_ptr):
    """SequentialLR: (row of the child, 1 if it restarts), by bisect_right over the milestones."""
    count = tl.load(op + AUX_LENGTH).to(tl.int32)
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
    return r + 1 + low, ((low > 0) & (last == e)).to(tl.int32)


@triton.jit
def _opcode(ops_ptr, r, num_rows):
    """Of row r; 0 past the end. Its load brings the row's other words, one line, into the cache."""
    return tl.load(ops_ptr + r * OP_WORDS + OPCODE, mask=r < num_rows, other=0).to(tl.int32)


@triton.jit
def _run_rows(
    ops_ptr, lanes_ptr, aux_ptr, num_rows, record_ptr, current, other, both, clock_ptr,
    clock, metric, skipped, advance, last, lane, G,
):  # fmt: skip
    """run_program for the given lanes; the last ones also move the rows' scalars."""
    live = lane < G
    value = tl.zeros((LANES,), tl.float64)
    r = num_rows * 0
    restart = num_rows * 0
    opcode = _opcode(ops_ptr, r, num_rows)
    while r < num_rows:
        op = ops_ptr + r * OP_WORDS
        # The next row is on its way while this one is computed; it is rarely another one.
        ahead = _opcode(ops_ptr, r + 1, num_rows)
        following = num_rows * 0
        if opcode == LOAD:
            column = tl.load(op + COLUMN).to(tl.int32)
            value = tl.load(record_ptr + (current + column) * G + lane, mask=live, other=1.0)
        elif opcode == STORE:
            _store_column(op, value, record_ptr, current, other, both, lane, live, G)
        elif opcode == HISTORY:
            _keep(op, record_ptr, current, clock, skipped, lane, live, G)
        else:
            tick = tl.load(op + TICK).to(tl.int32)
            epoch = tl.load(op + EPOCH).to(tl.int32)
            count = tl.load(op + COUNT).to(tl.int32)
            # Every warp has read the row's scalars before one thread moves them.
            tl.debug_barrier()
            counted = (skipped == 0) | (tl.load(op + ON_SKIP) == 1)
            counts = (advance == CALLED) | ((advance == COUNTED) & counted)
            due = counts & (tick + 1 >= tl.load(op + INTERVAL))
            if counts & last:
                tl.store(op + TICK, tl.where(due, 0, tick + 1))
            if due:
                increment = tl.load(op + COUNT_INCREMENT).to(tl.int32)
                epoch = tl.where(restart == 1, 0, epoch + 1)
                count = tl.where(restart == 1, count, count + increment)
                if last:
                    tl.store(op + EPOCH, epoch)
                    tl.store(op + COUNT, count)
                if opcode == SEQUENTIAL:
                    following, restart = _child(op, r, epoch, aux_ptr)
                else:
                    row = (lanes_ptr, r * LANE_WORDS, lane, live, G)
                    if (restart == 1) & (tl.load(op + HAS_RESTART) == 1):
                        value = opcodes.load_word(row, RESTART)
                    else:
                        value = opcodes.evaluate(
                            value, op, row, opcode, epoch, count, restart, metric,
                            aux_ptr, clock_ptr,
                        )  # fmt: skip
                    opcodes.store_word(row, LAST, value)
                    restart = restart * 0
        if following == 0:
            following = tl.load(op + NEXT).to(tl.int32)
        if following != r + 1:
            ahead = _opcode(ops_ptr, following, num_rows)
        opcode = ahead
        r = following


@triton.jit
def run_program(
    ops_ptr,
    lanes_ptr,
    aux_ptr,
    num_rows,
    record_ptr,
    current,
    other,
    both,
    clock_ptr,
    clock,
    metric,
    skipped,
    advance,
    G,
):
    """Advance every row that is due, from the record's current half to the other, or to both.

    Grid:   any one program of a launch; LANES groups at a time, the rows' scalars with the last.
    Reads:  ops [num_rows, OP_WORDS] int64, lanes [num_rows, LANE_WORDS, G] float64, aux float64;
            record [2 * num_columns, G]: ``current`` and ``other`` are the halves' first columns.
    Writes: the rows' state, the scheduled columns; the overrun flag of the clock.
    advance: STAY, CALLED or COUNTED of ``tables/layout.py``.
    Values between rows travel in registers: no address is read after it was written.
    """
    first = G * 0
    while first < G:
        _run_rows(
            ops_ptr, lanes_ptr, aux_ptr, num_rows, record_ptr, current, other, both, clock_ptr,
            clock, metric, skipped, advance, first + LANES >= G, first + tl.arange(0, LANES), G,
        )  # fmt: skip
        first += LANES


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
    clock = tl.load(clock_ptr + CLOCK)
    current = (clock & 1).to(tl.int32) * num_columns
    metric = tl.load(metric_ptr)
    n = num_steps * 0
    while n < num_steps:
        # The barrier makes the record and the state that the last turn wrote readable.
        tl.debug_barrier()
        run_program(
            ops_ptr, lanes_ptr, aux_ptr, num_rows, record_ptr, current, num_columns - current,
            num_rows >= 0, clock_ptr, clock, metric, num_rows < 0, COUNTED, G,
        )  # fmt: skip
        if has_trace != 0:
            tl.debug_barrier()
            half = num_columns * G
            first = half * 0
            while first < half:
                at = first + tl.arange(0, LANES)
                now = tl.load(record_ptr + current * G + at, mask=at < half, other=0.0)
                tl.store(trace_ptr + n.to(tl.int64) * half + at, now, mask=at < half)
                first += LANES
        n += 1
