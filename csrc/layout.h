// Where each number of a launch lies. Restates fused_sched/tables/layout.py; a test compares them.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FS_INLINE __host__ __device__ __forceinline__
#else
#define FS_INLINE inline
#endif

namespace fused_sched {

enum Slot { PARAM, GRAD, STATE0 };
enum Fact { NUMEL, GROUP, KIND, PARAM_INDEX, INFO };
enum ClockWord { CLOCK, OVERRUN, CLOCK_WORDS = 4 };

// On a GPU a launch's blocks count themselves in the clock's upper bits.
enum ClockBits { TURN_BITS = 40 };

enum Advance { STAY, CALLED, COUNTED };
enum CadenceWord { PERIOD, SINCE, AHEAD, ANSWERED, CALLS, LEFT, ROUNDS, CADENCE_WORDS };

enum OpWord {
  OPCODE, COLUMN, DERIVED, NEXT, INTERVAL, TICK, EPOCH, COUNT, COUNT_INCREMENT,
  AUX_START, AUX_LENGTH, AUX_EPOCH, MODE, HAS_RESTART, ON_SKIP, ADDRESS, OP_WORDS = 16
};

enum LaneWord {
  BASE, RESTART, P0, P1, P2, P3, P4, P5, P6, P7, P8, P9, S0, S1, S2, LAST, LANE_WORDS
};

enum Opcode {
  LOAD, STORE, SEQUENTIAL, HOLD, EXPONENTIAL, STEP, MULTI_STEP, LINEAR, POLYNOMIAL, COSINE,
  WARM_RESTARTS, CYCLIC, ONE_CYCLE, TABLE_VALUE, TABLE_FACTOR, SWA, PLATEAU,
  PIECEWISE, HISTORY
};

enum CyclicMode { TRIANGULAR, TRIANGULAR2, EXP_RANGE };
enum AnnealMode { ANNEAL_COS, ANNEAL_LINEAR };
enum PieceWord { END, SORT, SHIFT, LENGTH, POWER, OFFSET, HEIGHT, PIECE_WORDS };
enum PieceKind { POWER_PIECE, COSINE_PIECE, RESTARTING_PIECE };
enum PlateauMode { MIN_REL, MIN_ABS, MAX_REL, MAX_ABS };

enum DType { FLOAT32, BFLOAT16, FLOAT16, FLOAT64 };

}  // namespace fused_sched
