// One function per schedule opcode: torch's recurrences in float64, of one row at one lane.
//
// The C++ statement of fused_sched/kernels/opcodes.py, with the same symbols. It is written by hand,
// as that is: most opcodes search a table, keep state or branch by their mode, and a processor takes
// its cosines where the kernel computes all of them in one place.
#pragma once

#include <cmath>
#include <cstdint>

#include "elementary.h"
#include "inline.h"
#include "layout.h"

namespace fused_sched {
namespace opcode {

constexpr double kPi = 3.141592653589793;

// One row at one lane.
struct Cell {
  const int64_t* op;
  double* row;
  int lane, groups;
  const double* aux;
  FS_INLINE double& operator[](int word) const { return row[word * groups + lane]; }
};

FS_INLINE double multiple_rest(double e, double size) { return e - size * floor(e / size); }

FS_INLINE double step(double v, double e, const Cell& c) {
  return e == 0.0 || multiple_rest(e, c[P1]) != 0.0 ? v : v * c[P0];
}

FS_INLINE double multi_step(double v, double e, const Cell& c) {
  const int64_t count = c.op[AUX_LENGTH];
  const double* keys = c.aux + c.op[AUX_START];
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (keys[middle] < e) low = middle + 1; else high = middle;
  }
  return low < count && keys[low] == e ? v * keys[count + low] : v;
}

FS_INLINE double linear(double v, double e, const Cell& c) {
  const double start = c[P0], rise = c[P1] - start, total = c[P2];
  if (e == 0.0) return v * start;
  if (e > total) return v;
  return v * (1.0 + rise / (total * start + (e - 1.0) * rise));
}

FS_INLINE double polynomial(double v, double e, const Cell& c) {
  const double total = c[P0];
  if (e > total) return v;
  const double ratio = (1.0 - e / total) / (1.0 - (e - 1.0) / total);
  return v * power(ratio, c[P1]);
}

FS_INLINE double cosine_annealing(double v, double e, const Cell& c) {
  const double low = c[P0], T = c[P1];
  if (multiple_rest(e - 1.0 - T, 2.0 * T) == 0.0)
    return v + (c[BASE] - low) * (1.0 - cosine(kPi / T)) / 2.0;
  return (1.0 + cosine(kPi * e / T)) / (1.0 + cosine(kPi * (e - 1.0) / T)) * (v - low) + low;
}

FS_INLINE double warm_restarts(bool restart, const Cell& c) {
  double now = c[S0], length = c[S1];
  if (!restart && (now += 1.0) >= length) {
    now -= length * floor(now / length);
    length *= c[P1];
  }
  c[S0] = now;
  c[S1] = length;
  return c[P0] + (c[BASE] - c[P0]) * (1.0 + cosine(kPi * now / length)) / 2.0;
}

FS_INLINE double cyclic(double e, const Cell& c) {
  const double turns = e / c[P1], ratio = c[P2];
  const double cycle = floor(1.0 + turns);
  const double x = 1.0 + turns - cycle;
  const double s = x <= ratio ? x / ratio : (x - 1.0) / (ratio - 1.0);
  double scale = 1.0;
  if (c.op[MODE] == TRIANGULAR2) scale = 1.0 / exp2(cycle - 1.0);
  if (c.op[MODE] == EXP_RANGE) scale = power(c[P3], e);
  return c[BASE] + (c[P0] - c[BASE]) * s * scale;
}

FS_INLINE double anneal(double start, double end, double fraction, int64_t mode) {
  if (mode == ANNEAL_COS) return end + (start - end) / 2.0 * (cosine(kPi * fraction) + 1.0);
  return (end - start) * fraction + start;
}

// Past total_steps, and past a table's end, v is held and the overrun flag set.
FS_INLINE double one_cycle(double v, double e, const Cell& c, int64_t* clock) {
  if (e > c[P9]) {
    clock[OVERRUN] = 1;
    return v;
  }
  const int last = static_cast<int>(c.op[AUX_LENGTH]) - 1;
  int phase = 0;
  double from = 0.0;
  while (phase < last && e > c[P6 + phase]) from = c[P6 + phase++];
  const double fraction = (e - from) / (c[P6 + phase] - from);
  return anneal(c[P0 + 2 * phase], c[P1 + 2 * phase], fraction, c.op[MODE]);
}

FS_INLINE double table(double v, int64_t epoch, const Cell& c, int64_t* clock) {
  const int64_t index = epoch - c.op[AUX_EPOCH];
  if (index >= c.op[AUX_LENGTH]) clock[OVERRUN] = 1;
  if (index < 0 || index >= c.op[AUX_LENGTH]) return v;
  const double entry = c.aux[c.op[AUX_START] + index * c.groups + c.lane];
  return c.op[OPCODE] == TABLE_FACTOR ? v * entry : entry;
}

FS_INLINE double swa_alpha(double number, double epochs, int64_t mode) {
  double t = number / (epochs > 1.0 ? epochs : 1.0);
  t = t < 0.0 ? 0.0 : (t > 1.0 ? 1.0 : t);
  return mode == ANNEAL_COS ? (1.0 - cosine(kPi * t)) / 2.0 : t;
}

FS_INLINE double swa(double v, int64_t count, const Cell& c) {
  const double goal = c[P0], epochs = c[P1];
  double number = static_cast<double>(count) - 1.0;
  if (epochs == 0.0 && number < 1.0) number = 1.0;
  const double before = swa_alpha(number - 1.0, epochs, c.op[MODE]);
  const double undone = before == 1.0 ? goal : (v - before * goal) / (1.0 - before);
  const double alpha = swa_alpha(number, epochs, c.op[MODE]);
  return goal * alpha + undone * (1.0 - alpha);
}

FS_INLINE bool better(double metric, double best, double threshold, int64_t mode) {
  if (mode == MIN_REL) return metric < best * (1.0 - threshold);
  if (mode == MIN_ABS) return metric < best - threshold;
  if (mode == MAX_REL) return metric > best * (threshold + 1.0);
  return metric > best + threshold;
}

FS_INLINE double plateau(double v, double metric, const Cell& c) {
  double bad = 0.0, cooldown = c[S2];
  if (better(metric, c[S0], c[P3], c.op[MODE])) c[S0] = metric; else bad = c[S1] + 1.0;
  if (cooldown > 0.0) cooldown -= 1.0, bad = 0.0;
  const bool reduce = bad > c[P4];
  c[S1] = reduce ? 0.0 : bad;
  c[S2] = reduce ? c[P5] : cooldown;
  const double floor_value = c[P1];
  const double lower = v * c[P0] < floor_value ? floor_value : v * c[P0];
  return reduce && v - lower > c[P2] ? lower : v;
}

FS_INLINE double piece_value(double e, const double* piece) {
  const double x = (e + piece[PIECE_SHIFT]) / piece[PIECE_LENGTH];
  if (piece[PIECE_KIND] == POWER_PIECE) return power(x, piece[PIECE_P]);
  double turns = piece[PIECE_P] * x;
  if (piece[PIECE_KIND] == RESTARTING_PIECE) turns -= floor(turns);
  return cosine(kPi * turns);
}

FS_INLINE double piecewise(double e, const Cell& c) {
  const double* piece = c.aux + c.op[AUX_START];
  while (e >= piece[PIECE_END]) piece += PIECE_WORDS;
  const double factor = piece[PIECE_A] + piece[PIECE_B] * piece_value(e, piece);
  return c[BASE] * (factor > 0.0 ? factor : 0.0);
}

FS_INLINE double evaluate(double v, int64_t epoch, int64_t count, bool restart, double metric,
                          const Cell& c, int64_t* clock) {
  const double e = static_cast<double>(epoch);
  if (restart && c.op[HAS_RESTART]) return c[RESTART];
  switch (c.op[OPCODE]) {
    case EXPONENTIAL: return v * c[P0];
    case STEP: return step(v, e, c);
    case MULTI_STEP: return multi_step(v, e, c);
    case LINEAR: return linear(v, e, c);
    case POLYNOMIAL: return polynomial(v, e, c);
    case COSINE: return cosine_annealing(v, e, c);
    case WARM_RESTARTS: return warm_restarts(restart, c);
    case CYCLIC: return cyclic(e, c);
    case ONE_CYCLE: return one_cycle(v, e, c, clock);
    case TABLE_VALUE:
    case TABLE_FACTOR: return table(v, epoch, c, clock);
    case SWA: return swa(v, count, c);
    case PLATEAU: return plateau(v, metric, c);
    case PIECEWISE: return piecewise(e, c);
    default: return v;
  }
}

}  // namespace opcode
}  // namespace fused_sched
