"""The launch: every tensor, group and dtype of a device, and the schedule, in one kernel.

Note [One launch]
~~~~~~~~~~~~~~~~~
The grid is chunks + 1 programs. The parity of the clock names the current half of the hyper
record. Program 0 advances the schedule from the current half into the other one (or, told to hold
it, writes the same values there); every other program updates one chunk of one tensor with the
values of the current half.

Each program begins with one atomic add of TURN to the clock's word. What the add returns is both
the clock, in the lower bits, and the program's ticket, in the upper ones. The program that draws
the last ticket takes all TURNs off the word again, and adds one to the clock unless found_inf is
set, with one more atomic add. So all programs of a launch have read the same step and the same
values, and the next launch reads the next ones. With found_inf set nothing moves. The host takes no
part: a captured launch replays with a live schedule.

The adds are relaxed, with no fence, because nothing that a program writes is read by another one of
the same launch:

* The word itself is touched only by atomic adds. They happen in one order that every program sees
  the same way, and to read the clock and to draw is one of them. When the last ticket has been
  drawn, every program has its clock.
* The half that program 0 writes, and the rows' state, are read by the next launch. Where found_inf
  lets program 0 write the current half, no other program reads any.
* A launch ends before the next one on its stream begins, and all that it wrote is visible then.

So a last ticket says that every program has begun, not that it has ended, and that is enough.
"""

import triton
import triton.language as tl

from fused_sched.tables import layout

from .chunk import update_chunk
from .constants import CLOCK, GRAD, GROUP, KIND, NUMEL, PARAM_INDEX, TURN, TURN_BITS
from .schedule import LAUNCH_OPTIONS as SCHEDULE_OPTIONS
from .schedule import run_program


def launch_options(tuning):
    """Compiler options for a launch with this Tuning."""
    return SCHEDULE_OPTIONS | {"num_warps": layout.WARPS, "maxnreg": tuning.registers}


@triton.jit
def _draw(clock_ptr, programs, skipped, ORDER: tl.constexpr):
    """The clock of this launch; one program more has read it. See Note [One launch]."""
    word = tl.atomic_add(clock_ptr + CLOCK, TURN, sem=ORDER)
    if (word >> TURN_BITS) + 1 == programs:
        moves = tl.where(skipped, 0, 1)
        tl.atomic_add(clock_ptr + CLOCK, moves - programs.to(tl.int64) * TURN, sem=ORDER)
    return word & (TURN - 1)


@triton.jit
def _update_tensor(
    t, chunk, size, addresses_ptr, info_ptr, offsets_ptr, recurrences_ptr, record_ptr, clock_ptr,
    scale_ptr, skipped, num_tensors, num_params, num_columns, G,
    COEFFICIENTS: tl.constexpr, RULE: tl.constexpr, REQUIRED: tl.constexpr,
    RECURRENCES: tl.constexpr, OF_GROUP: tl.constexpr, KINDS: tl.constexpr, STATES: tl.constexpr,
    UNSCALE: tl.constexpr, VECTORS: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """One chunk of tensor t; a tensor without a gradient only notes that its step stood still."""
    # All that depends on t alone, together: each wait for memory is a tenth of a small step.
    addresses = ()
    for k in tl.static_range(2 + STATES):
        addresses += (tl.load(addresses_ptr + k * num_tensors + t),)
    fact = info_ptr + t
    numel = tl.load(fact + NUMEL * num_tensors)
    group = tl.load(fact + GROUP * num_tensors)
    kind = tl.load(fact + KIND * num_tensors)
    param = tl.load(fact + PARAM_INDEX * num_tensors)
    clock = _draw(clock_ptr, tl.num_programs(0), skipped, ORDER)
    offset = tl.load(offsets_ptr + param)
    half = (clock & 1) * RECURRENCES * num_params
    carried = recurrences_ptr + half + param
    carried_on = recurrences_ptr + RECURRENCES * num_params - half + param
    h = record_ptr + (clock & 1) * num_columns * G + group
    if not skipped:
        if addresses[GRAD] == 0:
            if chunk == 0:
                tl.store(offsets_ptr + param, offset + 1)
                for k in tl.static_range(RECURRENCES - OF_GROUP):
                    tl.store(carried_on + k * num_params, tl.load(carried + k * num_params))
                if OF_GROUP > 0:
                    step = clock - offset + 1
                    numbers = COEFFICIENTS(h, G, carried, num_params, step, tl.float64)
                    for k in tl.static_range(RECURRENCES - OF_GROUP, RECURRENCES):
                        number = numbers[len(numbers) - RECURRENCES + k]
                        tl.store(carried_on + k * num_params, number)
        else:
            for k in tl.static_range(len(KINDS)):
                if kind == k:
                    update_chunk(
                        addresses, chunk, size, numel, h, G, carried, carried_on, num_params,
                        clock - offset + 1, scale_ptr,
                        COEFFICIENTS, RULE, REQUIRED, RECURRENCES, KINDS, k, UNSCALE, VECTORS,
                    )  # fmt: skip


@triton.jit
def _skipped(found_inf_ptr, SCALER: tl.constexpr):
    """GradScaler found a non-finite gradient: this step stands still."""
    skipped = tl.num_programs(0) < 0
    if SCALER:
        skipped = tl.load(found_inf_ptr) != 0.0
    return skipped


@triton.jit(
    do_not_specialize=[
        "chunk_size", "num_rows", "advance", "num_tensors", "num_params", "num_columns", "G",
    ]
)  # fmt: skip
def update_kernel(
    addresses_ptr,
    info_ptr,
    chunks_ptr,
    offsets_ptr,
    recurrences_ptr,
    record_ptr,
    clock_ptr,
    ops_ptr,
    lanes_ptr,
    aux_ptr,
    scale_ptr,
    found_inf_ptr,
    chunk_size,
    num_rows,
    advance,
    num_tensors,
    num_params,
    num_columns,
    G,
    COEFFICIENTS: tl.constexpr,
    RULE: tl.constexpr,
    REQUIRED: tl.constexpr,
    RECURRENCES: tl.constexpr,
    OF_GROUP: tl.constexpr,
    KINDS: tl.constexpr,
    STATES: tl.constexpr,
    SCALER: tl.constexpr,
    UNSCALE: tl.constexpr,
    VECTORS: tl.constexpr,
    ORDER: tl.constexpr,
):
    """One optimizer step and one schedule step. See Note [One launch].

    Grid:   (chunks + 1,). Program 0 runs the schedule; program i owns chunk i - 1.
    Reads:  addresses [slots, num_tensors], info [INFO, num_tensors] int64; chunks [2, chunks]
            int32 (tensor, chunk of it, of chunk_size elements); offsets [params] int64, the
            launches each param missed; the current half of record [2, num_columns, G] and of
            recurrences [2, RECURRENCES, num_params], both float64; found_inf, scale [1] float32.
    Writes: param, state (and the unscaled grad under UNSCALE), each element by one program; the
            other half of the record, and of a param's recurrences by the program of its first
            chunk; the last program to begin publishes them by the clock.
    COEFFICIENTS, RULE, REQUIRED, RECURRENCES, OF_GROUP: a Bound of ``rules.py``.
    KINDS:  the (param, grad, state) dtypes present; STATES: state slots in use.
    VECTORS, ORDER: of a Tuning, and TICKET_ORDER, of ``tables/layout.py``.
    Host:   never waited for; may be captured.
    """
    pid = tl.program_id(0)
    skipped = _skipped(found_inf_ptr, SCALER)
    if pid == 0:
        clock = _draw(clock_ptr, tl.num_programs(0), skipped, ORDER)
        current = (clock & 1).to(tl.int32) * num_columns
        # A skipped step reads no half: an on-skip schedule may write both.
        run_program(
            ops_ptr, lanes_ptr, aux_ptr, num_rows, record_ptr, current, num_columns - current,
            skipped, clock_ptr, clock, tl.zeros((), tl.float64), skipped, advance, G,
        )  # fmt: skip
    else:
        _update_tensor(
            tl.load(chunks_ptr + pid - 1), tl.load(chunks_ptr + tl.num_programs(0) + pid - 2),
            chunk_size, addresses_ptr, info_ptr, offsets_ptr, recurrences_ptr, record_ptr,
            clock_ptr, scale_ptr, skipped, num_tensors, num_params, num_columns, G,
            COEFFICIENTS, RULE, REQUIRED, RECURRENCES, OF_GROUP, KINDS, STATES, UNSCALE, VECTORS,
            ORDER,
        )  # fmt: skip
