// Storage types and their conversion to the compute type, a block of elements at a time.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "layout.h"

namespace fused_sched {

struct bfloat16 {
  uint16_t bits;
};

inline float widen(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void narrow(float value, bfloat16& x) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties even
  x.bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

inline float widen(_Float16 x) { return static_cast<float>(x); }
inline void narrow(float value, _Float16& x) { x = static_cast<_Float16>(value); }

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline void narrow(float value, float& x) { x = value; }
inline void narrow(double value, double& x) { x = value; }

// Sixteen elements at a time where the instruction set has the conversion: compilers of today
// leave float16 to scalar code, 8 times slower.
#if defined(__AVX512F__)
constexpr int kVector = 16;

inline void widen_vector(const _Float16* from, float* to) {
  const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  _mm512_storeu_ps(to, _mm512_maskz_cvtph_ps(0xffff, packed));
}
inline void narrow_vector(const float* from, _Float16* to) {
  const __m256i packed =
      _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed);
}
#elif defined(__F16C__)
constexpr int kVector = 8;

inline void widen_vector(const _Float16* from, float* to) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
inline void narrow_vector(const float* from, _Float16* to) {
  const __m128i packed = _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
}
#else
constexpr int kVector = 1;

inline void widen_vector(const _Float16* from, float* to) { *to = widen(*from); }
inline void narrow_vector(const float* from, _Float16* to) { narrow(*from, *to); }
#endif

template <class T, class C>
inline void widen_all(const void* from, int n, C* __restrict__ to) {
  const T* __restrict__ source = static_cast<const T*>(from);
  for (int i = 0; i < n; ++i) to[i] = static_cast<C>(widen(source[i]));
}

template <class T, class C>
inline void narrow_all(const C* __restrict__ from, int n, void* to) {
  T* __restrict__ target = static_cast<T*>(to);
  for (int i = 0; i < n; ++i) narrow(static_cast<decltype(widen(T()))>(from[i]), target[i]);
}

template <>
inline void widen_all<_Float16, float>(const void* from, int n, float* __restrict__ to) {
  const _Float16* source = static_cast<const _Float16*>(from);
  int i = 0;
  for (; i + kVector <= n; i += kVector) widen_vector(source + i, to + i);
  for (; i < n; ++i) to[i] = widen(source[i]);
}

template <>
inline void narrow_all<_Float16, float>(const float* __restrict__ from, int n, void* to) {
  _Float16* target = static_cast<_Float16*>(to);
  int i = 0;
  for (; i + kVector <= n; i += kVector) narrow_vector(from + i, target + i);
  for (; i < n; ++i) narrow(from[i], target[i]);
}

#if defined(__AVX512BF16__)
// One instruction for the rounding; it takes denormals (below 1e-38) for zero, the tail's too, so
// that no result depends on where a thread's part ends.
template <>
inline void narrow_all<bfloat16, float>(const float* __restrict__ from, int n, void* to) {
  bfloat16* target = static_cast<bfloat16*>(to);
  for (int i = 0; i < n; i += 16) {
    const __mmask16 live = n - i < 16 ? (1u << (n - i)) - 1u : 0xffffu;
    const __m256bh packed = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(live, from + i));
    _mm256_mask_storeu_epi16(target + i, live, reinterpret_cast<__m256i>(packed));
  }
}
#endif

inline int64_t size_of(int64_t dtype) {
  return dtype == FLOAT64 ? 8 : (dtype == FLOAT32 ? 4 : 2);
}

template <class C>
constexpr int64_t native_dtype() {
  return sizeof(C) == 8 ? FLOAT64 : FLOAT32;
}

// Elements of one tensor in the compute type: in place where the storage is that type, else in a
// buffer that `keep` writes back. One without memory has no data.
template <class C>
class Block {
 public:
  Block() = default;

  Block(int64_t dtype, int64_t address, int64_t start, int n, C* buffer) : dtype_(dtype), n_(n) {
    memory_ = reinterpret_cast<char*>(address) + start * size_of(dtype);
    if (dtype == native_dtype<C>()) {
      data = reinterpret_cast<C*>(memory_);
      memory_ = nullptr;
      return;
    }
    data = buffer;
    switch (dtype) {
      case FLOAT32: widen_all<float>(memory_, n, data); break;
      case BFLOAT16: widen_all<bfloat16>(memory_, n, data); break;
      case FLOAT16: widen_all<_Float16>(memory_, n, data); break;
      default: widen_all<double>(memory_, n, data);
    }
  }

  void keep() const {
    if (memory_ == nullptr) return;
    switch (dtype_) {
      case FLOAT32: narrow_all<float>(data, n_, memory_); break;
      case BFLOAT16: narrow_all<bfloat16>(data, n_, memory_); break;
      case FLOAT16: narrow_all<_Float16>(data, n_, memory_); break;
      default: narrow_all<double>(data, n_, memory_);
    }
  }

  C* data = nullptr;

 private:
  int64_t dtype_ = 0;
  int n_ = 0;
  char* memory_ = nullptr;  // where `keep` writes, null if `data` is the storage itself
};

}  // namespace fused_sched
