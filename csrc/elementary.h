// cos and pow in float64: on a device in forms that need no local memory, as CUDA's own do.
//
// The C++ statement of fused_sched/kernels/cosine.py, which says why it is enough, and of `power`
// in opcodes.py.
#pragma once

#include <cmath>

#include "inline.h"

namespace fused_sched {

// pi / 2 = kHalfPiHigh + kHalfPiMiddle + kHalfPiLow; the first two have 33 bits.
constexpr double kTwoOverPi = 0.6366197723675814;
constexpr double kHalfPiHigh = 1.5707963267341256;
constexpr double kHalfPiMiddle = 6.077100506303966e-11;
constexpr double kHalfPiLow = 2.0222662487959506e-21;

// cos(high + low) for abs(high) <= pi / 4: Taylor to x**16, next term 2e-18.
FS_INLINE double cos_reduced(double high, double low) {
  const double z = high * high;
  double tail = 1.0 / 20922789888000.0;
  tail = tail * z - 1.0 / 87178291200.0;
  tail = tail * z + 1.0 / 479001600.0;
  tail = tail * z - 1.0 / 3628800.0;
  tail = tail * z + 1.0 / 40320.0;
  tail = tail * z - 1.0 / 720.0;
  tail = tail * z + 1.0 / 24.0;
  const double half = 0.5 * z, lead = 1.0 - half;
  return lead + (((1.0 - lead) - half) + (z * z * tail - high * low));
}

// sin(high + low) for abs(high) <= pi / 4: Taylor to x**17, next term 8e-20.
FS_INLINE double sin_reduced(double high, double low) {
  const double z = high * high;
  double tail = 1.0 / 355687428096000.0;
  tail = tail * z - 1.0 / 1307674368000.0;
  tail = tail * z + 1.0 / 6227020800.0;
  tail = tail * z - 1.0 / 39916800.0;
  tail = tail * z + 1.0 / 362880.0;
  tail = tail * z - 1.0 / 5040.0;
  tail = tail * z + 1.0 / 120.0;
  tail = tail * z - 1.0 / 6.0;
  return high + (high * z * tail + low * (1.0 - 0.5 * z));
}

// cos(x) for abs(x) < 2**20 * pi / 2.
FS_INLINE double cosine(double x) {
#ifdef __CUDA_ARCH__
  const double quadrant = floor(x * kTwoOverPi + 0.5);
  const double rest = x - quadrant * kHalfPiHigh;
  const double step = quadrant * kHalfPiMiddle;
  const double high = rest - step;
  const double low = ((rest - high) - step) - quadrant * kHalfPiLow;
  const double value = high + low, error = (high - value) + low;
  const double turn = quadrant - 4.0 * floor(quadrant * 0.25);
  if (turn == 0.0) return cos_reduced(value, error);
  if (turn == 2.0) return -cos_reduced(value, error);
  return turn == 1.0 ? -sin_reduced(value, error) : sin_reduced(value, error);
#else
  return cos(x);
#endif
}

// x ** y for x >= 0; exact for y = 1 and y = 0.
FS_INLINE double power(double x, double y) {
#ifdef __CUDA_ARCH__
  if (y == 1.0) return x;
  if (y == 0.0) return 1.0;
  return x > 0.0 ? exp(y * log(x)) : 0.0;
#else
  return pow(x, y);
#endif
}

}  // namespace fused_sched
