"""The launch: every tensor, group and dtype of a device, and the schedule, in one kernel.

Note [One launch]
~~~~~~~~~~~~~~~~~
The grid is chunks + 1 programs. The parity of the clock names the current half of the hyper
record. Program 0 advances the schedule from the current half into the other one; every other
program updates one chunk of one tensor with the values of the current half. Each program ends
with a barrier and an atomic add to the ticket (acquire, release). The program that draws the last
ticket clears it and adds one to the clock: all programs of a launch read the same step and the
same values, and the next launch reads the next ones. With found_inf set nothing moves. The host
takes no part: a captured launch replays with a live schedule.
"""

import triton
import triton.language as tl

from .constants import (
    BLOCK,
    CLOCK,
    GRAD,
    GROUP,
    KIND,
    NUMEL,
    PARAM,
    PARAM_INDEX,
    STATE0,
    STATE1,
    STATE2,
    TICKET,
)
from .rules import (
    ADAM_AMSGRAD,
    ADAM_BETA2,
    adam_coefficients,
    adam_rule,
    sgd_coefficients,
    sgd_rule,
)
from .schedule import run_program


LAUNCH_OPTIONS = {"num_warps": 4}


@triton.jit
def _pointer(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _update_chunk(
    p_addr, g_addr, s0_addr, s1_addr, s2_addr, start, numel, h, G, step, scale_ptr,
    RULE: tl.constexpr, P: tl.constexpr, GRAD_DTYPE: tl.constexpr, S: tl.constexpr,
    STATES: tl.constexpr, UNSCALE: tl.constexpr, ITERATIONS: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Apply RULE to elements start ... start + BLOCK * ITERATIONS of one tensor.

    FULL: the chunk is whole and every address a multiple of 16, so that accesses go unmasked.
    """
    C: tl.constexpr = tl.float64 if P == tl.float64 else tl.float32
    p_ptr = _pointer(p_addr, P, FULL) + start
    g_ptr = _pointer(g_addr, GRAD_DTYPE, FULL) + start
    s0_ptr = _pointer(s0_addr, S, FULL) + start
    s1_ptr = _pointer(s1_addr, S, FULL) + start
    s2_ptr = _pointer(s2_addr, S, FULL) + start
    if RULE == "sgd":
        c = sgd_coefficients(h, G, step, C)
    else:
        c = adam_coefficients(h, G, step, C)
        weight2 = (1.0 - tl.load(h + ADAM_BETA2 * G)).to(C)
        amsgrad = tl.load(h + ADAM_AMSGRAD * G).to(C)
    if UNSCALE:
        scale = tl.load(scale_ptr).to(C)
    left = numel - start
    for i in range(ITERATIONS):
        at = i * BLOCK + tl.arange(0, BLOCK)
        mask = None if FULL else at < left
        p = tl.load(p_ptr + at, mask=mask).to(C)
        g = tl.load(g_ptr + at, mask=mask).to(C)
        if UNSCALE:
            g = (tl.div_rn(g, scale) if C == tl.float32 else g / scale)
            g_stored = g.to(GRAD_DTYPE)
            tl.store(g_ptr + at, g_stored, mask=mask)
        if RULE == "sgd":
            buf = tl.zeros((BLOCK,), C)
            if STATES > 0:
                kept = (at < left) & (s0_addr != 0) if not FULL else (at >= 0) & (s0_addr != 0)
                buf = tl.load(s0_ptr + at, mask=kept, other=0.0).to(C)
            p, buf = sgd_rule(p, g, buf, c)
            if STATES > 0:
                tl.store(s0_ptr + at, buf.to(S), mask=kept)
        else:
            m = tl.load(s0_ptr + at, mask=mask).to(C)
            v = tl.load(s1_ptr + at, mask=mask).to(C)
            largest = v
            if STATES > 2:
                kept = (at < left) & (s2_addr != 0) if not FULL else (at >= 0) & (s2_addr != 0)
                largest = tl.load(s2_ptr + at, mask=kept, other=0.0).to(C)
            p, m, v, largest = adam_rule(p, g, m, v, largest, amsgrad, weight2, c, STATES > 2)
            tl.store(s0_ptr + at, m.to(S), mask=mask)
            tl.store(s1_ptr + at, v.to(S), mask=mask)
            if STATES > 2:
                tl.store(s2_ptr + at, largest.to(S), mask=kept)
        tl.store(p_ptr + at, p.to(P), mask=mask)


@triton.jit
def _update_tensor(
    t, chunk, addresses_ptr, info_ptr, offsets_ptr, record_ptr, clock, scale_ptr,
    num_tensors, num_columns, G,
    RULE: tl.constexpr, KINDS: tl.constexpr, STATES: tl.constexpr, UNSCALE: tl.constexpr,
    ITERATIONS: tl.constexpr,
):  # fmt: skip
    """One chunk of tensor t; a tensor without a gradient only notes that its step stood still."""
    slot = addresses_ptr + t
    g_addr = tl.load(slot + GRAD * num_tensors)
    fact = info_ptr + t
    offset_ptr = offsets_ptr + tl.load(fact + PARAM_INDEX * num_tensors)
    offset = tl.load(offset_ptr)
    if g_addr == 0:
        if chunk == 0:
            tl.store(offset_ptr, offset + 1)
    else:
        p_addr = tl.load(slot + PARAM * num_tensors)
        s0_addr = tl.load(slot + STATE0 * num_tensors)
        s1_addr = tl.load(slot + STATE1 * num_tensors)
        s2_addr = tl.load(slot + STATE2 * num_tensors)
        numel = tl.load(fact + NUMEL * num_tensors)
        kind = tl.load(fact + KIND * num_tensors)
        h = record_ptr + (clock & 1) * num_columns * G + tl.load(fact + GROUP * num_tensors)
        step = clock - offset + 1
        start = chunk.to(tl.int64) * (BLOCK * ITERATIONS)
        aligned = ((p_addr | g_addr | s0_addr | s1_addr | s2_addr) & 15) == 0
        full = aligned & (start + BLOCK * ITERATIONS <= numel)
        for k in tl.static_range(len(KINDS)):
            if kind == k:
                if full:
                    _update_chunk(
                        p_addr, g_addr, s0_addr, s1_addr, s2_addr, start, numel, h, G, step,
                        scale_ptr, RULE, KINDS[k][0], KINDS[k][1], KINDS[k][2], STATES, UNSCALE,
                        ITERATIONS, True,
                    )  # fmt: skip
                else:
                    _update_chunk(
                        p_addr, g_addr, s0_addr, s1_addr, s2_addr, start, numel, h, G, step,
                        scale_ptr, RULE, KINDS[k][0], KINDS[k][1], KINDS[k][2], STATES, UNSCALE,
                        ITERATIONS, False,
                    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "num_tensors", "num_columns", "G"])
def update_kernel(
    addresses_ptr,
    info_ptr,
    chunks_ptr,
    offsets_ptr,
    record_ptr,
    clock_ptr,
    ops_ptr,
    lanes_ptr,
    aux_ptr,
    scale_ptr,
    found_inf_ptr,
    num_rows,
    num_tensors,
    num_columns,
    G,
    RULE: tl.constexpr,
    KINDS: tl.constexpr,
    STATES: tl.constexpr,
    SCALER: tl.constexpr,
    UNSCALE: tl.constexpr,
    ITERATIONS: tl.constexpr,
):
    """One optimizer step and one schedule step. See Note [One launch].

    Grid:   (chunks + 1,). Program 0 runs the schedule; program i owns chunk i - 1.
    Reads:  addresses [SLOTS, num_tensors], info [INFO, num_tensors] int64; chunks [2, chunks]
            int32 (tensor, chunk of it); offsets [params] int64, the launches each param missed;
            the current half of record [2, num_columns, G] float64; found_inf, scale [1] float32.
    Writes: param, state (and the unscaled grad under UNSCALE), each element by one program; the
            other half of the record; the last program to finish publishes it by the clock.
    KINDS:  the (param, grad, state) dtypes present; STATES: state slots in use.
    Host:   never waited for; may be captured.
    """
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    clock = tl.load(clock_ptr + CLOCK)
    skipped = programs * 0
    if SCALER:
        skipped = (tl.load(found_inf_ptr) != 0.0).to(tl.int32)
    if pid == 0:
        half = num_columns * G
        current_ptr = record_ptr + (clock & 1) * half
        next_ptr = record_ptr + (1 - (clock & 1)) * half
        # A skipped step reads no half: an on-skip schedule may write both.
        also_ptr = tl.where(skipped != 0, current_ptr, next_ptr)
        run_program(
            ops_ptr, lanes_ptr, aux_ptr, num_rows, current_ptr, next_ptr, also_ptr, clock_ptr,
            tl.zeros((), tl.float64), skipped, G,
        )  # fmt: skip
    elif skipped == 0:
        t = tl.load(chunks_ptr + pid - 1)
        chunk = tl.load(chunks_ptr + programs - 1 + pid - 1)
        _update_tensor(
            t, chunk, addresses_ptr, info_ptr, offsets_ptr, record_ptr, clock, scale_ptr,
            num_tensors, num_columns, G, RULE, KINDS, STATES, UNSCALE, ITERATIONS,
        )  # fmt: skip
    tl.debug_barrier()
    drawn = tl.atomic_add(clock_ptr + TICKET, 1, sem="acq_rel")
    if drawn == programs - 1:
        tl.store(clock_ptr + TICKET, drawn * 0)
        if skipped == 0:
            tl.store(clock_ptr + CLOCK, clock + 1)
