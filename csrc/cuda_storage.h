// Storage types on a GPU: elements and packs of them, and their conversion to the compute type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>

#include "layout.h"

#define FS_DEVICE __device__ __forceinline__

namespace fused_sched {

// The i-th T of an array. From its address a compiler cannot see that it lies in global memory.
template <class T>
FS_DEVICE T& at(char* array, int i) {
  T* place = reinterpret_cast<T*>(array) + i;
  __builtin_assume(__isGlobal(place));
  return *place;
}

// Bytes of an element: 1 << log_size.
FS_DEVICE int log_size(int dtype) { return dtype == FLOAT64 ? 3 : (dtype == FLOAT32 ? 2 : 1); }

// Two elements of 16 bits, and one in the lower half.
FS_DEVICE float2 widen(uint32_t pair, int dtype) {
  if (dtype == BFLOAT16)
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  __half2 halves;
  memcpy(&halves, &pair, sizeof pair);
  return __half22float2(halves);
}

FS_DEVICE uint32_t narrow(float2 x, int dtype) {
  uint32_t pair;
  if (dtype == BFLOAT16) {
    const __nv_bfloat162 halves = __float22bfloat162_rn(x);
    memcpy(&pair, &halves, sizeof pair);
  } else {
    const __half2 halves = __float22half2_rn(x);
    memcpy(&pair, &halves, sizeof pair);
  }
  return pair;
}

// -- elements ------------------------------------------------------------------------------------

// N elements at a distance of `stride`, as they are stored: loads that wait for nothing.
template <int N>
FS_DEVICE void load_bits(char* array, int dtype, int i, int stride, int count, uint64_t* bits) {
  const int size = 1 << log_size(dtype);
#pragma unroll
  for (int n = 0; n < N; ++n) bits[n] = 0;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int k = i + n * stride;
    if (k >= count) continue;
    if (size == 8) bits[n] = at<uint64_t>(array, k);
    else if (size == 4) bits[n] = at<uint32_t>(array, k);
    else bits[n] = at<uint16_t>(array, k);
  }
}

template <class C>
FS_DEVICE C from_bits(uint64_t bits, int dtype) {
  if (dtype == FLOAT64) return static_cast<C>(__longlong_as_double(static_cast<int64_t>(bits)));
  const auto low = static_cast<uint32_t>(bits);
  if (dtype == FLOAT32) return static_cast<C>(__uint_as_float(low));
  return static_cast<C>(widen(low, dtype).x);
}

template <class C>
FS_DEVICE void store(C x, char* array, int dtype, int i) {
  if (dtype == FLOAT64) {
    at<double>(array, i) = static_cast<double>(x);
  } else if (dtype == FLOAT32) {
    at<float>(array, i) = static_cast<float>(x);
  } else {
    const float2 low = make_float2(static_cast<float>(x), 0.0f);
    at<uint16_t>(array, i) = static_cast<uint16_t>(narrow(low, dtype));
  }
}

// -- packs ---------------------------------------------------------------------------------------

// Elements of one array that a thread moves at a time: of 2 or 4 bytes each, 16 bytes together or,
// beside arrays of wider elements, 8.
struct alignas(16) Pack {
  uint32_t words[4];

  FS_DEVICE float2 pair(int i, int bytes, int dtype) const {
    if (bytes == 2) return widen(words[i], dtype);
    return make_float2(__uint_as_float(words[2 * i]), __uint_as_float(words[2 * i + 1]));
  }

  FS_DEVICE void set_pair(int i, int bytes, int dtype, float x, float y) {
    if (bytes == 2) {
      words[i] = narrow(make_float2(x, y), dtype);
    } else {
      words[2 * i] = __float_as_uint(x);
      words[2 * i + 1] = __float_as_uint(y);
    }
  }
};

struct alignas(8) HalfPack {
  uint32_t words[2];
};

// The i-th pack of an array whose packs have 16 bytes or 8, and are aligned.
FS_DEVICE Pack load_pack(char* array, int i, bool full) {
  if (full) return at<Pack>(array, i);
  const HalfPack half = at<HalfPack>(array, i);
  return {{half.words[0], half.words[1], 0, 0}};
}

FS_DEVICE void store_pack(const Pack& pack, char* array, int i, bool full) {
  if (full) at<Pack>(array, i) = pack;
  else at<HalfPack>(array, i) = {{pack.words[0], pack.words[1]}};
}

// The same of any array: W elements of kBytes each, by themselves. A warp's accesses lie side by
// side all the same, and the cache puts together what they read of one line.
template <int W, int kBytes>
FS_DEVICE Pack load_pieces(char* array, int i) {
  Pack pack = {};
#pragma unroll
  for (int j = 0; j < W; ++j) {
    if (kBytes == 4) pack.words[j] = at<uint32_t>(array, i * W + j);
    else pack.words[j / 2] |= static_cast<uint32_t>(at<uint16_t>(array, i * W + j)) << 16 * (j % 2);
  }
  return pack;
}

template <int W, int kBytes>
FS_DEVICE void store_pieces(const Pack& pack, char* array, int i) {
#pragma unroll
  for (int j = 0; j < W; ++j) {
    if (kBytes == 4) at<uint32_t>(array, i * W + j) = pack.words[j];
    else at<uint16_t>(array, i * W + j) = static_cast<uint16_t>(pack.words[j / 2] >> 16 * (j % 2));
  }
}

}  // namespace fused_sched
