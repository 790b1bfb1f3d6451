// Storage types, and their conversion to the compute type, a vector of elements at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "layout.h"
#include "vector.h"

namespace fused_sched {

struct bfloat16 {
  uint16_t bits;
};
using float16 = _Float16;

using Floats = Vector<float>;
using Bits = Vector<uint32_t>;
constexpr int kFloats = VectorOf<float>::size;
typedef uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));

template <class To, class From>
inline To copy_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
inline T read_bits(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// -- vectors from and to memory ------------------------------------------------------------------

inline Floats load(const float* from) { return read_bits<Floats>(from); }
inline void store(Floats x, float* to) { std::memcpy(to, &x, sizeof x); }
inline Vector<double> load(const double* from) { return read_bits<Vector<double>>(from); }
inline void store(Vector<double> x, double* to) { std::memcpy(to, &x, sizeof x); }

inline Floats load(const bfloat16* from) {
  return copy_bits<Floats>(__builtin_convertvector(read_bits<HalfBits>(from), Bits) << 16);
}

#if defined(__AVX512BF16__)
// One instruction for the rounding; it takes denormals (below 1e-38) for zero.
inline void store(Floats x, bfloat16* to) {
  const __m256bh packed = _mm512_cvtneps_pbh(x);
  std::memcpy(to, &packed, sizeof packed);
}
#else
// To nearest, ties to even; a NaN stays one.
inline void store(Floats x, bfloat16* to) {
  const Bits bits = copy_bits<Bits>(x);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits kept = x == x ? rounded : rounded * 0u + 0x7fc0u;
  const HalfBits packed = __builtin_convertvector(kept, HalfBits);
  std::memcpy(to, &packed, sizeof packed);
}
#endif

#if defined(__AVX512F__)
inline Floats load(const float16* from) {
  return _mm512_maskz_cvtph_ps(0xffff, read_bits<__m256i>(from));
}
inline void store(Floats x, float16* to) {
  const __m256i packed = _mm512_maskz_cvtps_ph(0xffff, x, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(to, &packed, sizeof packed);
}
#elif defined(__F16C__)
inline Floats load(const float16* from) { return _mm256_cvtph_ps(read_bits<__m128i>(from)); }
inline void store(Floats x, float16* to) {
  const __m128i packed = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(to, &packed, sizeof packed);
}
#else
inline Floats load(const float16* from) {
  Floats x;
  for (int i = 0; i < kFloats; ++i) x[i] = static_cast<float>(from[i]);
  return x;
}
inline void store(Floats x, float16* to) {
  for (int i = 0; i < kFloats; ++i) to[i] = static_cast<float16>(x[i]);
}
#endif

// The compute type of a storage type.
template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

// -- blocks --------------------------------------------------------------------------------------

// Calls body(T{}) with the storage type of a DType.
template <class Body>
inline void with_type(int64_t dtype, const Body& body) {
  switch (dtype) {
    case FLOAT32: return body(float());
    case BFLOAT16: return body(bfloat16());
    case FLOAT16: return body(float16());
    default: return body(double());
  }
}

constexpr int kRun = 64;  // elements that are converted a second time at once

// Elements in the compute type C into memory of the storage type T, and back. Beside float64 that
// may not be T's own compute type: then some elements go through a buffer of that type.
template <class T, class C>
inline void widen(const T* from, int n, C* to) {
  if constexpr (sizeof(Compute<T>) == sizeof(C)) {
    constexpr int size = VectorOf<C>::size;
    int i = 0;
    for (; i + size <= n; i += size) store(load(from + i), to + i);
    T tail[size] = {};
    std::memcpy(tail, from + i, (n - i) * sizeof(T));
    const Vector<C> x = load(tail);
    for (int j = 0; i + j < n; ++j) to[i + j] = x[j];
  } else {
    alignas(64) Compute<T> some[kRun];
    for (int i = 0; i < n; i += kRun) {
      const int count = n - i < kRun ? n - i : kRun;
      widen(from + i, count, some);
      for (int j = 0; j < count; ++j) to[i + j] = static_cast<C>(some[j]);
    }
  }
}

template <class T, class C>
inline void narrow(const C* from, int n, T* to) {
  if constexpr (sizeof(Compute<T>) == sizeof(C)) {
    constexpr int size = VectorOf<C>::size;
    int i = 0;
    for (; i + size <= n; i += size) store(load(from + i), to + i);
    C rest[size] = {};
    T tail[size];
    std::memcpy(rest, from + i, (n - i) * sizeof(C));
    store(load(rest), tail);
    std::memcpy(to + i, tail, (n - i) * sizeof(T));
  } else {
    alignas(64) Compute<T> some[kRun];
    for (int i = 0; i < n; i += kRun) {
      const int count = n - i < kRun ? n - i : kRun;
      for (int j = 0; j < count; ++j) some[j] = static_cast<Compute<T>>(from[i + j]);
      narrow(some, count, to + i);
    }
  }
}

// Elements of one tensor in the compute type: in place where the storage is that type, else in a
// buffer that `keep` writes back. One without memory has no data.
template <class C>
class Block {
 public:
  Block() = default;

  Block(int64_t dtype, int64_t address, int64_t start, int n, C* buffer) : dtype_(dtype), n_(n) {
    with_type(dtype, [&](auto type) {
      using T = decltype(type);
      T* memory = reinterpret_cast<T*>(address) + start;
      if constexpr (sizeof(T) == sizeof(C)) {
        data = memory;
      } else {
        memory_ = memory;
        data = buffer;
        widen(memory, n, buffer);
      }
    });
  }

  void keep() const {
    if (memory_ == nullptr) return;
    with_type(dtype_, [&](auto type) {
      narrow(data, n_, static_cast<decltype(type)*>(memory_));
    });
  }

  C* data = nullptr;

 private:
  int64_t dtype_ = 0;
  int n_ = 0;
  void* memory_ = nullptr;  // where `keep` writes, null if `data` is the storage itself
};

}  // namespace fused_sched
