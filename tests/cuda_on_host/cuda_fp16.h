// What csrc/cuda.cu uses of CUDA's header, on a CPU.
#pragma once

#include "cuda_runtime.h"

struct __half2 {
  _Float16 x, y;
};

inline float2 __half22float2(__half2 pair) {
  return {static_cast<float>(pair.x), static_cast<float>(pair.y)};
}

inline __half2 __float22half2_rn(float2 x) {
  return {static_cast<_Float16>(x.x), static_cast<_Float16>(x.y)};
}
