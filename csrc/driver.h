// CUDA's driver, as far as the launch of a loaded kernel takes it. It is found at run time: without
// cuda.cu too the library can start what Triton has compiled.
#pragma once

#include <cstddef>
#include <cstdint>

namespace driver {

// Finds the driver's functions in a library that dlopen() knows by `name`; null, or what is missing.
const char* find(const char* name);

// The calling thread's device; -1 without one.
int64_t device();

// Whether a graph is being captured on a stream, or the driver does not say.
bool captures(int64_t device, void* stream);

// Bytes into a device's memory, on a stream. The source may change afterwards.
const char* copy(uint64_t target, const void* source, size_t bytes, void* stream);

struct Kernel {
  int64_t function;  // CUfunction
  int64_t blocks, threads, shared;
};

// The calling thread's device must be the kernel's. As copy(), null or CUDA's words for what failed.
const char* launch(const Kernel& kernel, void** parameters, void* stream);

}  // namespace driver
