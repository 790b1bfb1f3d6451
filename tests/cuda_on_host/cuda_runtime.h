// Runs CUDA code on a CPU, for tests: what csrc/cuda.cu uses of CUDA.
//
// A block's threads are fibers that run one after another, from barrier to barrier; so do the
// blocks of a launch. The variable CUDA_ON_HOST_ORDER=backward turns both orders around: what
// depends on them is a race. A barrier that some threads of a block miss ends the process.
#pragma once

#include <cuda.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __host__
#define __device__
#define __global__ static
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __builtin_assume(condition) static_cast<void>(condition)
#define __isGlobal(pointer) true

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue = 1, cudaErrorInvalidDevice = 101 };
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess };
constexpr cudaError_t cudaErrorNotSupported = static_cast<cudaError_t>(801);
constexpr int cudaEnableDefault = 0;
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
struct cudaFuncAttributes {};

struct dim3 {
  unsigned x;
  explicit dim3(unsigned n = 0) : x(n) {}
};

struct float2 {
  float x, y;
};

inline float2 make_float2(float x, float y) { return {x, y}; }

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline double __longlong_as_double(int64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct alignas(16) longlong2 {
  long long x, y;
};

namespace cuda_on_host {

constexpr int kStack = 1 << 17;  // a kernel's parameters lie on it

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = true;
};

inline std::vector<Fiber> fibers(1024);
inline ucontext_t scheduler;
inline std::function<void()> body;
inline dim3 thread, block, grid;
inline int launches = 0;
inline bool idle = false;  // launches are counted, and do nothing
inline cudaStream_t stream = nullptr;  // of the last launch
inline int device = 0;  // the thread's own, of kDevices
inline int launched_on = -1;
inline cudaStream_t captured = nullptr;
inline bool captures = false;

inline unsigned in_order(unsigned n, unsigned count) {
  const char* order = std::getenv("CUDA_ON_HOST_ORDER");
  return order != nullptr && std::strcmp(order, "backward") == 0 ? count - 1 - n : n;
}

inline void run_thread() {
  body();
  Fiber& self = fibers[thread.x];
  self.done = true;
  swapcontext(&self.context, &scheduler);
}

inline void prepare(Fiber& fiber) {
  fiber.done = false;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  makecontext(&fiber.context, run_thread, 0);
}

// Every thread to its next barrier, or its end; how many have ended.
inline unsigned run_to_barrier(unsigned threads) {
  unsigned ended = 0;
  for (unsigned n = 0; n < threads; ++n) {
    thread.x = in_order(n, threads);
    Fiber& fiber = fibers[thread.x];
    if (!fiber.done) swapcontext(&scheduler, &fiber.context);
    ended += fiber.done;
  }
  return ended;
}

inline void run_block(unsigned threads) {
  for (unsigned t = 0; t < threads; ++t) prepare(fibers[t]);
  unsigned ended = 0;
  while ((ended = run_to_barrier(threads)) == 0) continue;
  if (ended == threads) return;
  std::fprintf(stderr, "cuda_on_host: %u threads have missed a barrier\n", ended);
  std::abort();
}

template <class... P, size_t... I>
void call(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<P*>(arguments[I])...);
}

}  // namespace cuda_on_host

#define threadIdx (cuda_on_host::thread)
#define blockIdx (cuda_on_host::block)
#define gridDim (cuda_on_host::grid)

inline void __syncthreads() {
  swapcontext(&cuda_on_host::fibers[threadIdx.x].context, &cuda_on_host::scheduler);
}

template <class T>
T atomicAdd(T* place, T value) {
  return std::exchange(*place, *place + value);
}

inline cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, int,
                                           cudaDriverEntryPointQueryResult*) {
  *function = cuda_on_host::driver_function(name);
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  using namespace cuda_on_host;
  *device = pushed == nullptr ? cuda_on_host::device : static_cast<int>(pushed - contexts);
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
  if (device >= cuda_on_host::kDevices) return cudaErrorInvalidDevice;
  cuda_on_host::device = device;
  cuda_on_host::contexts[device] = true;
  return cudaSuccess;
}

template <class... P>
cudaError_t cudaLaunchKernel(void (*kernel)(P...), dim3 blocks, dim3 threads, void** arguments,
                             size_t, cudaStream_t on) {
  using namespace cuda_on_host;
  body = [=] { call(kernel, arguments, std::index_sequence_for<P...>()); };
  grid = blocks;
  stream = on;
  cudaGetDevice(&launched_on);
  contexts[launched_on] = true;
  ++launches;
  for (unsigned n = 0; n < blocks.x && !idle; ++n) {
    block.x = in_order(n, blocks.x);
    run_block(threads.x);
  }
  return cudaSuccess;
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  int device;
  cudaGetDevice(&device);
  cuda_on_host::contexts[device] = true;
  const bool active = cuda_on_host::captures && stream == cuda_on_host::captured;
  *status = active ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidDevice ? "invalid device ordinal" : "invalid argument";
}

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return cudaSuccess;
}

// For ctypes.
#define FS_FOR_TESTS extern "C" __attribute__((used, visibility("default"))) inline

// Launches so far; the blocks and the stream of the last.
FS_FOR_TESTS int cuda_on_host_launches() { return cuda_on_host::launches; }
FS_FOR_TESTS int cuda_on_host_blocks() { return static_cast<int>(cuda_on_host::grid.x); }
FS_FOR_TESTS void* cuda_on_host_stream() { return cuda_on_host::stream; }

// The GPU of the last launch; the GPUs that have a context, as bits; whether one is held or pushed.
FS_FOR_TESTS int cuda_on_host_launched_on() { return cuda_on_host::launched_on; }
FS_FOR_TESTS int cuda_on_host_contexts() {
  return cuda_on_host::contexts[0] | cuda_on_host::contexts[1] << 1;
}
FS_FOR_TESTS bool cuda_on_host_holds() {
  using namespace cuda_on_host;
  return pushed != nullptr || retained[0] != 0 || retained[1] != 0;
}
FS_FOR_TESTS void cuda_on_host_forget_contexts() {
  cuda_on_host::contexts[0] = cuda_on_host::contexts[1] = false;
}

// What a GPU would be told otherwise.
FS_FOR_TESTS void cuda_on_host_idle(int idle) { cuda_on_host::idle = idle; }
FS_FOR_TESTS void cuda_on_host_device(int device) { cuda_on_host::device = device; }
FS_FOR_TESTS void cuda_on_host_capture(int captures, void* stream) {
  if (captures) cuda_on_host::contexts[cuda_on_host::device] = true;
  cuda_on_host::captures = captures;
  cuda_on_host::captured = stream;
}

#include "libcuda.h"
