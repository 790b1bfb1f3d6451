// What the library asks CUDA's driver for, with the state of cuda_runtime.h. A kernel is a number,
// and what runs in its place a function of the test's.
#pragma once

namespace cuda_on_host {

inline void (*kernel)(int64_t function, void** parameters) = nullptr;
inline int copies = 0;
inline int failure = 0;  // what launches return

}  // namespace cuda_on_host

FS_FOR_TESTS int cuCtxGetDevice(int* device) {
  *device = cuda_on_host::device;
  return 0;
}

FS_FOR_TESTS int cuStreamIsCapturing(void* stream, int* status) {
  *status = cuda_on_host::captures && stream == cuda_on_host::captured;
  return 0;
}

FS_FOR_TESTS int cuMemcpyHtoDAsync_v2(uint64_t target, const void* source, size_t bytes, void*) {
  ++cuda_on_host::copies;
  std::memcpy(reinterpret_cast<void*>(target), source, bytes);
  return 0;
}

FS_FOR_TESTS int cuLaunchKernel(void* function, unsigned blocks, unsigned, unsigned, unsigned,
                                unsigned, unsigned, unsigned, void* stream, void** parameters,
                                void**) {
  using namespace cuda_on_host;
  if (failure != 0) return failure;
  grid = dim3(blocks);
  cuda_on_host::stream = stream;
  ++launches;
  if (!idle && kernel != nullptr) kernel(reinterpret_cast<int64_t>(function), parameters);
  return 0;
}

FS_FOR_TESTS int cuGetErrorString(int, const char** words) {
  *words = "a failure of the test's";
  return 0;
}

FS_FOR_TESTS void cuda_on_host_kernel(void (*kernel)(int64_t, void**)) {
  cuda_on_host::kernel = kernel;
}
FS_FOR_TESTS int cuda_on_host_copies() { return cuda_on_host::copies; }
FS_FOR_TESTS void cuda_on_host_fail(int failure) { cuda_on_host::failure = failure; }
