// What csrc/cuda.cu uses of CUDA's header, on a CPU.
#pragma once

#include "cuda_runtime.h"

struct __nv_bfloat162 {
  uint16_t x, y;
};

// To nearest, ties to even; NaN as CUDA has it.
inline uint16_t bfloat16_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  return value == value ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : 0x7fffu;
}

inline __nv_bfloat162 __float22bfloat162_rn(float2 x) {
  return {bfloat16_bits(x.x), bfloat16_bits(x.y)};
}
