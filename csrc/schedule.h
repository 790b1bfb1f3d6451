// The schedule program: torch's recurrences in float64, one lane per group.
//
// The C++ statement of fused_sched/kernels/schedule.py, with the same symbols.
#pragma once

#include <cmath>
#include <cstdint>

#include "inline.h"
#include "layout.h"
#include "opcodes.h"

namespace fused_sched {

// A program's data and where it moves values from and to. On a device one thread serves a lane.
struct Program {
  int64_t* ops;     // [rows, OP_WORDS]
  double* lanes;    // [rows, LANE_WORDS, groups]
  const double* aux;
  int64_t rows;
  int64_t groups;
};

struct Halves {
  const double* current;  // [columns, groups]
  double* first;
  double* second;
};

// What the rows of one turn see beside their own data.
struct Turn {
  int64_t* flags;  // [CLOCK_WORDS], for OVERRUN alone
  int64_t step;    // the clock
  double metric;
  bool skipped;
  int64_t advance;  // Advance
};

// Where a program's rows are read from: their own memory.
struct RowsInPlace {
  const int64_t* ops;
  FS_INLINE const int64_t* at(int row) const { return ops + row * OP_WORDS; }
};

// A pointer into a device's memory, which a compiler cannot see from one that lay in shared memory.
template <class T>
FS_INLINE T* in_memory(T* place) {
#ifdef __CUDA_ARCH__
  __builtin_assume(__isGlobal(place));
#endif
  return place;
}

// SequentialLR: the child whose turn it is, by bisect_right over the milestones in their order.
FS_INLINE int64_t child(const int64_t* op, const double* aux, int64_t epoch, bool* restart) {
  const double* milestones = aux + op[AUX_START];
  const double e = static_cast<double>(epoch);
  int64_t low = 0, high = op[AUX_LENGTH];
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (e < milestones[middle]) high = middle; else low = middle + 1;
  }
  *restart = low > 0 && milestones[low - 1] == e;
  return low;
}

// A column, and log(value) where the record keeps it; a beta that ends at 0 may be rounded below.
FS_INLINE void store_column(const int64_t* op, double value, const Halves& halves, int lane,
                            int groups) {
  const int64_t at = op[COLUMN] * groups + lane;
  double *first = in_memory(halves.first), *second = in_memory(halves.second);
  first[at] = second[at] = value;
  if (op[DERIVED] < 0) return;
  const int64_t derived = op[DERIVED] * groups + lane;
  first[derived] = second[derived] = log(value > 0.0 ? value : 0.0);
}

// What a step that is made uses, into the ring of a HISTORY row.
FS_INLINE void keep(const int64_t* op, double value, int64_t step, int lane, int groups) {
  if (op[AUX_LENGTH] == 0) return;
  double* ring = in_memory(reinterpret_cast<double*>(op[ADDRESS]));
  ring[step % op[AUX_LENGTH] * groups + lane] = value;
}

// The rows of one lane. The thread with `last` also moves the rows' scalars; no lane reads them
// after that. On a GPU the lanes of a block walk the rows together, at the same pace; a thread beyond the
// last lane walks along and touches nothing.
template <class Rows>
FS_INLINE void run_lane(const Program& p, Rows& rows, const Halves& halves, const Turn& turn,
                        int lane, bool last) {
  double value = 0.0;
  bool restart = false;
  for (int r = 0; r < static_cast<int>(p.rows);) {
    const int64_t* op = rows.at(r);
    const int groups = static_cast<int>(p.groups);
    const bool live = lane < groups;
    const double* current = in_memory(halves.current);
    int following = static_cast<int>(op[NEXT]);
    if (op[OPCODE] == LOAD) {
      if (live) value = current[op[COLUMN] * groups + lane];
    } else if (op[OPCODE] == STORE) {
      if (live) store_column(op, value, halves, lane, groups);
    } else if (op[OPCODE] == HISTORY) {
      const double now = live ? current[op[COLUMN] * groups + lane] : 0.0;
      if (live && !turn.skipped) keep(op, now, turn.step, lane, groups);
    } else {
      const bool counts = turn.advance == CALLED ||
                          (turn.advance == COUNTED && (!turn.skipped || op[ON_SKIP]));
      const int64_t tick = op[TICK] + 1;
      const bool due = counts && tick >= op[INTERVAL];
      const int64_t epoch = restart ? 0 : op[EPOCH] + 1;
      const int64_t number = restart ? op[COUNT] : op[COUNT] + op[COUNT_INCREMENT];
      int64_t* own = in_memory(p.ops) + r * OP_WORDS;
      if (counts && last) own[TICK] = due ? 0 : tick;
      if (due && last) own[EPOCH] = epoch, own[COUNT] = number;
      if (due && op[OPCODE] == SEQUENTIAL) {
        following = r + 1 + static_cast<int>(child(op, in_memory(p.aux), epoch, &restart));
      } else if (due) {
        double* row = in_memory(p.lanes) + static_cast<int64_t>(r) * LANE_WORDS * groups;
        const opcode::Cell cell{op, row, lane, groups, in_memory(p.aux)};
        if (live) {
          int64_t* flags = in_memory(turn.flags);
          value = opcode::evaluate(value, epoch, number, restart, turn.metric, cell, flags);
          cell[LAST] = value;
        }
        restart = false;
      }
    }
    r = following;
  }
}

// Every lane, on one thread.
inline void run_program(const Program& p, const Halves& halves, const Turn& turn) {
  const RowsInPlace rows{p.ops};
  for (int64_t lane = 0; lane < p.groups; ++lane)
    run_lane(p, rows, halves, turn, static_cast<int>(lane), lane + 1 == p.groups);
}

}  // namespace fused_sched
