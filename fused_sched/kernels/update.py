"""The launch: every tensor, group and dtype of a device, and the schedule, in one kernel.

Note [One launch]
~~~~~~~~~~~~~~~~~
The grid is chunks + 1 programs. The parity of the clock names the current half of the hyper
record. Program 0 advances the schedule from the current half into the other one (or, told to hold
it, writes the same values there); every other
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
    TICKET,
)
from .schedule import LAUNCH_OPTIONS as SCHEDULE_OPTIONS
from .schedule import run_program

# A chunk that is misaligned or has a ragged end, where each element has its own mask: with four
# elements a thread some variants spill 8 bytes (Triton 3.7.1, sm_80 and sm_90), with two none.
RAGGED_BLOCK = tl.constexpr(256)

LAUNCH_OPTIONS = SCHEDULE_OPTIONS | {"num_warps": 4, "maxnreg": 64}
# Adam in float64 takes 120 registers; under a limit of 64 it would spill 130 bytes a thread.
LAUNCH_OPTIONS_FLOAT64 = LAUNCH_OPTIONS | {"maxnreg": 128}


def launch_options(kinds):
    """Compiler options for a launch over these (param, grad, state) types."""
    wide = any(tl.float64 in kind for kind in kinds)
    return LAUNCH_OPTIONS_FLOAT64 if wide else LAUNCH_OPTIONS


@triton.jit
def _pointer(address, start, DTYPE: tl.constexpr, VECTOR: tl.constexpr):
    pointer = address.to(tl.pointer_type(DTYPE))
    if VECTOR:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start


@triton.jit
def _elements(k: tl.constexpr, addresses, left, REQUIRED: tl.constexpr):
    """How many elements of state k to move: none where the group does not keep it."""
    count = left
    if k >= REQUIRED:
        count = tl.where(addresses[2 + k] != 0, left, 0)
    return count


@triton.jit
def _update_chunk(
    addresses, start, left, c, inv_scale,
    RULE: tl.constexpr, REQUIRED: tl.constexpr, C: tl.constexpr, KINDS: tl.constexpr,
    K: tl.constexpr, STATES: tl.constexpr, UNSCALE: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Apply RULE to elements start ... start + left of one tensor, WIDTH at a time.

    VECTOR: every address is a multiple of 16 bytes, and left of 4 elements.
    """
    P: tl.constexpr = KINDS[K][0]
    GRAD_DTYPE: tl.constexpr = KINDS[K][1]
    S: tl.constexpr = KINDS[K][2]
    p_ptr = _pointer(addresses[0], start, P, VECTOR)
    g_ptr = _pointer(addresses[1], start, GRAD_DTYPE, VECTOR)
    state_ptrs = ()
    for k in tl.static_range(STATES):
        state_ptrs += (_pointer(addresses[2 + k], start, S, VECTOR),)
    WIDTH: tl.constexpr = BLOCK if VECTOR else RAGGED_BLOCK
    if VECTOR:
        # Shows the compiler that the mask holds for four elements at a time.
        left = left // 4 * 4
    i = left * 0
    while i * WIDTH < left:
        at = i * WIDTH + tl.arange(0, WIDTH)
        # A mask is one comparison of vectors: `mask & scalar` is no bool in 3.9's interpreter.
        mask = at < left
        p = tl.load(p_ptr + at, mask=mask).to(C)
        g = tl.load(g_ptr + at, mask=mask).to(C)
        if UNSCALE:
            g = g * inv_scale
            tl.store(g_ptr + at, g.to(GRAD_DTYPE), mask=mask)
        states = ()
        for k in tl.static_range(STATES):
            kept = at < _elements(k, addresses, left, REQUIRED)
            states += (tl.load(state_ptrs[k] + at, mask=kept, other=0.0).to(C),)
        p, states = RULE(p, g, states, c)
        for k in tl.static_range(STATES):
            kept = at < _elements(k, addresses, left, REQUIRED)
            tl.store(state_ptrs[k] + at, states[k].to(S), mask=kept)
        tl.store(p_ptr + at, p.to(P), mask=mask)
        i += 1


@triton.jit
def _update_kinds(
    kind, addresses, start, left, h, G, step, scale_ptr,
    COEFFICIENTS: tl.constexpr, RULE: tl.constexpr, REQUIRED: tl.constexpr, C: tl.constexpr,
    KINDS: tl.constexpr, STATES: tl.constexpr, UNSCALE: tl.constexpr,
):  # fmt: skip
    """_update_chunk for the kinds that compute in C, which share the group's coefficients."""
    c = COEFFICIENTS(h, G, step, C)
    inv_scale = c[0]
    if UNSCALE:
        inv_scale = (1.0 / tl.load(scale_ptr).to(tl.float64)).to(C)
    together = left & 3
    for k in tl.static_range(len(addresses)):
        together |= addresses[k] & 15
    for k in tl.static_range(len(KINDS)):
        if (KINDS[k][0] == tl.float64) == (C == tl.float64):
            if kind == k:
                if together == 0:
                    _update_chunk(
                        addresses, start, left, c, inv_scale,
                        RULE, REQUIRED, C, KINDS, k, STATES, UNSCALE, True,
                    )  # fmt: skip
                else:
                    _update_chunk(
                        addresses, start, left, c, inv_scale,
                        RULE, REQUIRED, C, KINDS, k, STATES, UNSCALE, False,
                    )  # fmt: skip


@triton.constexpr_function
def _any_kind(kinds, double):
    return any((kind[0] == tl.float64) == double for kind in kinds)


@triton.jit
def _update_tensor(
    t, chunk, addresses_ptr, info_ptr, offsets_ptr, record_ptr, clock, scale_ptr,
    num_tensors, num_columns, G,
    COEFFICIENTS: tl.constexpr, RULE: tl.constexpr, REQUIRED: tl.constexpr, KINDS: tl.constexpr,
    STATES: tl.constexpr, UNSCALE: tl.constexpr, ITERATIONS: tl.constexpr,
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
        addresses = (tl.load(slot + PARAM * num_tensors), g_addr)
        for k in tl.static_range(STATES):
            addresses += (tl.load(slot + (STATE0 + k) * num_tensors),)
        start = chunk.to(tl.int64) * (BLOCK * ITERATIONS)
        left = tl.load(fact + NUMEL * num_tensors) - start
        left = tl.minimum(left, BLOCK * ITERATIONS).to(tl.int32)
        kind = tl.load(fact + KIND * num_tensors)
        h = record_ptr + (clock & 1) * num_columns * G + tl.load(fact + GROUP * num_tensors)
        step = clock - offset + 1
        if _any_kind(KINDS, False):
            _update_kinds(
                kind, addresses, start, left, h, G, step, scale_ptr,
                COEFFICIENTS, RULE, REQUIRED, tl.float32, KINDS, STATES, UNSCALE,
            )  # fmt: skip
        if _any_kind(KINDS, True):
            _update_kinds(
                kind, addresses, start, left, h, G, step, scale_ptr,
                COEFFICIENTS, RULE, REQUIRED, tl.float64, KINDS, STATES, UNSCALE,
            )  # fmt: skip


@triton.jit
def _skipped(found_inf_ptr, SCALER: tl.constexpr):
    """GradScaler found a non-finite gradient: this step stands still."""
    skipped = tl.num_programs(0) < 0
    if SCALER:
        skipped = tl.load(found_inf_ptr) != 0.0
    return skipped


@triton.jit(do_not_specialize=["num_rows", "advance", "num_tensors", "num_columns", "G"])
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
    advance,
    num_tensors,
    num_columns,
    G,
    COEFFICIENTS: tl.constexpr,
    RULE: tl.constexpr,
    REQUIRED: tl.constexpr,
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
    COEFFICIENTS, RULE, REQUIRED: a Rule of ``rules.py``.
    KINDS:  the (param, grad, state) dtypes present; STATES: state slots in use.
    Host:   never waited for; may be captured.
    """
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    clock = tl.load(clock_ptr + CLOCK)
    skipped = _skipped(found_inf_ptr, SCALER)
    if pid == 0:
        current = (clock & 1).to(tl.int32) * num_columns
        # A skipped step reads no half: an on-skip schedule may write both.
        run_program(
            ops_ptr, lanes_ptr, aux_ptr, num_rows, record_ptr, current, num_columns - current,
            skipped, clock_ptr, tl.zeros((), tl.float64), skipped, advance, G,
        )  # fmt: skip
    elif not skipped:
        t = tl.load(chunks_ptr + pid - 1)
        chunk = tl.load(chunks_ptr + programs - 1 + pid - 1)
        _update_tensor(
            t, chunk, addresses_ptr, info_ptr, offsets_ptr, record_ptr, clock, scale_ptr,
            num_tensors, num_columns, G,
            COEFFICIENTS, RULE, REQUIRED, KINDS, STATES, UNSCALE, ITERATIONS,
        )  # fmt: skip
    tl.debug_barrier()
    drawn = tl.atomic_add(clock_ptr + TICKET, 1, sem="acq_rel")
    if drawn == programs - 1:
        tl.store(clock_ptr + TICKET, drawn * 0)
        if not _skipped(found_inf_ptr, SCALER):
            tl.store(clock_ptr + CLOCK, tl.load(clock_ptr + CLOCK) + 1)
