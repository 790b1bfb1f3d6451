// The driver's functions by name, with the few of its types that they take.
#include "driver.h"

#include <dlfcn.h>

namespace driver {
namespace {

// Those of cuda.h; 0 is success.
using Result = int;
using Stream = void*;

struct Functions {
  Result (*get_device)(int* device);
  Result (*is_capturing)(Stream stream, int* status);
  Result (*copy)(uint64_t target, const void* source, size_t bytes, Stream stream);
  Result (*launch)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                   Stream stream, void** parameters, void** extra);
  Result (*get_error)(Result error, const char** words);
};

Functions functions{};

template <class F>
bool look_up(void* library, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
  return *function != nullptr;
}

const char* words_of(Result error) {
  if (error == 0) return nullptr;
  const char* words = nullptr;
  if (functions.get_error(error, &words) != 0 || words == nullptr) words = "unknown error";
  return words;
}

}  // namespace

const char* find(const char* name) {
  void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return "the CUDA driver's library cannot be loaded";
  Functions found{};
  if (!look_up(library, "cuCtxGetDevice", &found.get_device) ||
      !look_up(library, "cuStreamIsCapturing", &found.is_capturing) ||
      !look_up(library, "cuMemcpyHtoDAsync_v2", &found.copy) ||
      !look_up(library, "cuLaunchKernel", &found.launch) ||
      !look_up(library, "cuGetErrorString", &found.get_error))
    return "the CUDA driver's library lacks a function";
  functions = found;
  return nullptr;
}

int64_t device() {
  int number;
  return functions.get_device(&number) == 0 ? number : -1;
}

bool captures(int64_t, void* stream) {
  int status;
  return functions.is_capturing(stream, &status) != 0 || status != 0;
}

const char* copy(uint64_t target, const void* source, size_t bytes, void* stream) {
  return words_of(functions.copy(target, source, bytes, stream));
}

const char* launch(const Kernel& kernel, void** parameters, void* stream) {
  return words_of(functions.launch(reinterpret_cast<void*>(kernel.function),
                                   static_cast<unsigned>(kernel.blocks), 1, 1,
                                   static_cast<unsigned>(kernel.threads), 1, 1,
                                   static_cast<unsigned>(kernel.shared), stream, parameters,
                                   nullptr));
}

}  // namespace driver
