// What csrc/cuda_device.h uses of the driver's header, on a CPU: each GPU has one context.
#pragma once

#include <cstring>

using CUdevice = int;
using CUcontext = const bool*;
enum CUresult { CUDA_SUCCESS, CUDA_ERROR_INVALID_DEVICE = 101 };

namespace cuda_on_host {

constexpr int kDevices = 2;
inline bool contexts[kDevices] = {};  // whether something has used a GPU
inline int retained[kDevices] = {};
inline CUcontext pushed = nullptr;  // on top of the thread's own; one at most

inline CUresult state(CUdevice device, unsigned*, int* active) {
  *active = contexts[device];
  return CUDA_SUCCESS;
}

inline CUresult retain(CUcontext* context, CUdevice device) {
  if (device >= kDevices) return CUDA_ERROR_INVALID_DEVICE;
  ++retained[device];
  *context = &contexts[device];
  contexts[device] = true;
  return CUDA_SUCCESS;
}

inline CUresult release(CUdevice device) {
  --retained[device];
  return CUDA_SUCCESS;
}

inline CUresult push(CUcontext context) {
  pushed = context;
  return CUDA_SUCCESS;
}

inline CUresult pop(CUcontext* context) {
  *context = pushed;
  pushed = nullptr;
  return CUDA_SUCCESS;
}

inline void* driver_function(const char* name) {
  const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
  if (is("cuDevicePrimaryCtxGetState")) return reinterpret_cast<void*>(state);
  if (is("cuDevicePrimaryCtxRetain")) return reinterpret_cast<void*>(retain);
  if (is("cuDevicePrimaryCtxRelease")) return reinterpret_cast<void*>(release);
  if (is("cuCtxPushCurrent")) return reinterpret_cast<void*>(push);
  return is("cuCtxPopCurrent") ? reinterpret_cast<void*>(pop) : nullptr;
}

}  // namespace cuda_on_host
