// Vectors of the compiler, as wide as the registers of the instruction set.
#pragma once

#include <cmath>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fused_sched {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Arithmetic on them is element by element.
template <class C>
struct VectorOf {
  typedef C type __attribute__((vector_size(kVectorBytes)));
  static constexpr int size = kVectorBytes / sizeof(C);
};
template <class C>
using Vector = typename VectorOf<C>::type;

#if defined(__AVX512F__)
inline Vector<float> sqrt(Vector<float> x) { return _mm512_maskz_sqrt_ps(0xffff, x); }
inline Vector<double> sqrt(Vector<double> x) { return _mm512_maskz_sqrt_pd(0xff, x); }
#elif defined(__AVX2__)
inline Vector<float> sqrt(Vector<float> x) { return _mm256_sqrt_ps(x); }
inline Vector<double> sqrt(Vector<double> x) { return _mm256_sqrt_pd(x); }
#elif defined(__x86_64__)
inline Vector<float> sqrt(Vector<float> x) { return _mm_sqrt_ps(x); }
inline Vector<double> sqrt(Vector<double> x) { return _mm_sqrt_pd(x); }
#else
inline Vector<float> sqrt(Vector<float> x) {
  for (int i = 0; i < VectorOf<float>::size; ++i) x[i] = std::sqrt(x[i]);
  return x;
}
inline Vector<double> sqrt(Vector<double> x) {
  for (int i = 0; i < VectorOf<double>::size; ++i) x[i] = std::sqrt(x[i]);
  return x;
}
#endif

}  // namespace fused_sched
