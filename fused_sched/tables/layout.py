"""Where each number of a launch lies: rows, columns, slots and opcodes, stated once.

The Triton kernels have these integers as ``tl.constexpr`` (kernels/constants.py), the C++ as an
enum (engines/native_sources.py). The build imports this where neither torch nor Triton is
installed.
"""

from __future__ import annotations

# -- the param table: int64 [slots, rows] addresses and int64 [INFO, rows] facts ----------------
PARAM, GRAD, STATE0 = range(3)  # then a slot for each further state of the rule

NUMEL, GROUP, KIND, PARAM_INDEX = range(4)
INFO = 4

FLOAT32, BFLOAT16, FLOAT16, FLOAT64 = range(4)
"""How the compiled engine's kinds name a dtype."""

# -- how a Triton launch is cut and compiled: what a GPU's measurements decide ------------------
WARPS = 4
"""Of a program; 32 threads each on NVIDIA's GPUs."""

WAVES = 16
"""Times that a launch over a large model fills the GPU with programs: more of them begin and end
more often, fewer leave multiprocessors idle at the end."""

RESIDENT = 8
"""Programs that a multiprocessor holds at a time, about."""

CHUNK_UNIT = 1024
"""Elements of a program's chunk are a multiple of this, and a chunk at least this long."""

TICKET_ORDER = "relaxed"
"""Of the atomic add that Note [One launch] describes; "acq_rel" is right too, and a fence."""


def chunk_size(elements: int, multiprocessors: int) -> int:
    """Elements of a program's chunk, for WAVES over a large model, for one chunk's over a small."""
    programs = WAVES * RESIDENT * multiprocessors
    return max(-(-elements // (programs * CHUNK_UNIT)), 1) * CHUNK_UNIT


# -- the clock: int64 [CLOCK_WORDS] --------------------------------------------------------------
CLOCK, OVERRUN = range(2)
CLOCK_WORDS = 4

TURN_BITS = 40
"""The clock's word counts steps below these bits, and above them the programs of the launch that
runs: see Note [One launch]. Between launches it is the clock alone."""

# -- how a launch advances the schedules in it ---------------------------------------------------
(
    STAY,  # no row advances; the next half of the record gets the values of the current one
    CALLED,  # every row advances, also where found_inf stops the step: the user's call will come
    COUNTED,  # each row by its own INTERVAL, and ON_SKIP where found_inf stops the step
) = range(3)

# -- a GradScaler's part in a launch: (unscales the gradients, may skip the step) ------------------
Scaling = tuple[bool, bool]
NO_SCALER: Scaling = (False, False)
SCALINGS: tuple[Scaling, ...] = (NO_SCALER, (False, True), (True, True))
"""All that there are; the second is of a step after the scaler's own ``unscale_()``."""

# -- the calls of scheduler.step(), see runtime/cadence.py: int64 [CADENCE_WORDS], on the host -----
(
    PERIOD,  # optimizer steps between the last two rounds of calls; 0 before the first
    SINCE,  # optimizer steps since the last round
    AHEAD,  # 1: the device has made a round that the calls have yet to confirm
    ANSWERED,  # calls of that round that have come
    CALLS,  # of a round, one for each fused scheduler; 0: no launch computes ahead
    LEFT,  # advances until a schedule ends; -1 if none does
    ROUNDS,  # made by the device and confirmed, not yet taken over by the host
) = range(7)
CADENCE_WORDS = 7

# -- a schedule row's scalars: int64 [rows, OP_WORDS] --------------------------------------------
(
    OPCODE,
    COLUMN,  # of the hyper record
    DERIVED,  # column that holds log(value), or -1
    NEXT,  # row that follows this one
    INTERVAL,  # optimizer steps per advance of this row
    TICK,  # state: optimizer steps since the last advance
    EPOCH,  # state: torch's last_epoch
    COUNT,  # state: torch's _step_count
    COUNT_INCREMENT,  # what step() adds to _step_count
    AUX_START,  # first float64 of this row in aux
    AUX_LENGTH,
    AUX_EPOCH,  # the epoch of a table's first entry
    MODE,  # variant of the opcode, see lr_scheduler/
    HAS_RESTART,  # 1: a SequentialLR milestone sets the value RESTART
    ON_SKIP,  # 1: advances also when found_inf stops the step
    ADDRESS,  # of a HISTORY row's ring, float64 [AUX_LENGTH, groups]
) = range(16)
OP_WORDS = 16

# -- a schedule row's numbers, one lane per group: float64 [rows, LANE_WORDS, groups] ------------
BASE, RESTART = 0, 1
P0, P1, P2, P3, P4, P5, P6, P7, P8, P9 = range(2, 12)
S0, S1, S2 = range(12, 15)  # state
LAST = 15  # state: the value after the last advance, torch's _last_lr
LANE_WORDS = 16

LANES = 128
"""Groups that the schedule program handles at a time: one per thread."""

# -- opcodes -------------------------------------------------------------------------------------
(
    LOAD,  # value = record[column]
    STORE,  # record[column] = value
    SEQUENTIAL,  # jump to the child whose turn it is
    HOLD,
    EXPONENTIAL,
    STEP,
    MULTI_STEP,
    LINEAR,
    POLYNOMIAL,
    COSINE,
    WARM_RESTARTS,
    CYCLIC,
    ONE_CYCLE,
    TABLE_VALUE,
    TABLE_FACTOR,
    SWA,
    PLATEAU,
    PIECEWISE,
    HISTORY,  # ring[clock % AUX_LENGTH] = record[column], of a step that is made
) = range(19)

# MODE of CYCLIC
TRIANGULAR, TRIANGULAR2, EXP_RANGE = range(3)
# MODE of ONE_CYCLE and SWA
ANNEAL_COS, ANNEAL_LINEAR = range(2)
# MODE of PLATEAU
MIN_REL, MIN_ABS, MAX_REL, MAX_ABS = range(4)

# A PIECEWISE row's table, float64 [pieces, PIECE_WORDS]: see Piece of schedules/known_lambdas.py
PIECE_END, PIECE_KIND, PIECE_SHIFT, PIECE_LENGTH, PIECE_P, PIECE_A, PIECE_B = range(7)
PIECE_WORDS = 7
# kind of a piece
POWER_PIECE, COSINE_PIECE, RESTARTING_PIECE = range(3)

# -- the hyper record: float64 [2, columns, groups], per optimizer -------------------------------
LR_COLUMN = 0
"""Every optimizer's first column is lr."""
