// What a rule computes with: the C++ statement of fused_sched/rules/arithmetic.py, of numbers and of
// vectors. `where(c, a, b)` is `c ? a : b`.
#pragma once

#include <cmath>
#include <cstdint>

#include "inline.h"
#ifndef __CUDACC__
#include "vector.h"
#endif

namespace fused_sched {

// One row's numbers in a table of columns: a group's hyperparameters, a param's recurrences.
struct Numbers {
  const double* first;
  int64_t rows;
  FS_INLINE double operator[](int column) const { return first[column * rows]; }
};

// 1 - beta ** step; beta = 0 has log -inf and gives 1.
FS_INLINE double bias_correction(double log_beta, double step) { return -expm1(step * log_beta); }

FS_INLINE bool negate(bool x) { return !x; }

FS_INLINE float sqrt(float x) { return ::sqrtf(x); }
FS_INLINE double sqrt(double x) { return ::sqrt(x); }
FS_INLINE float exp(float x) { return ::expf(x); }
FS_INLINE double exp(double x) { return ::exp(x); }
FS_INLINE float log(float x) { return ::logf(x); }
FS_INLINE double log(double x) { return ::log(x); }
FS_INLINE float abs(float x) { return ::fabsf(x); }
FS_INLINE double abs(double x) { return ::fabs(x); }

#ifndef __CUDACC__
template <class V>
inline auto size_of(V x) -> decltype(x[0], int()) {
  return sizeof x / sizeof x[0];
}

// Element by element: the compilers have no vector form without a library of its own.
template <class V>
inline auto exp(V x) -> decltype(x[0], V()) {
  for (int i = 0; i < size_of(x); ++i) x[i] = exp(x[i]);
  return x;
}
template <class V>
inline auto log(V x) -> decltype(x[0], V()) {
  for (int i = 0; i < size_of(x); ++i) x[i] = log(x[i]);
  return x;
}
template <class V>
inline auto abs(V x) -> decltype(x[0], V()) {
  return x <= 0 ? V{} - x : x;  // -0 gives 0
}
template <class M>
inline auto negate(M mask) -> decltype(mask[0], M()) {
  return ~mask;
}
#endif

// NaN if either is.
template <class V>
FS_INLINE V maximum(V a, V b) {
  return (a > b) | (a != a) ? a : b;
}
template <class V>
FS_INLINE V minimum(V a, V b) {
  return (a < b) | (a != a) ? a : b;
}

// A number that all elements share, as an element.
template <class V, class C>
FS_INLINE V spread(C x) {
  return x - V{};
}

template <class V>
FS_INLINE auto spread_truth(bool x) -> decltype(V{} == V{}) {
  return x ? V{} == V{} : V{} != V{};
}

}  // namespace fused_sched
