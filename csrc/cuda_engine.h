// The CUDA engine. The addresses that it takes are the device's, those of `kinds` apart.
#pragma once

#include <cstdint>

#include "structs.h"

// Gradients whose addresses fit into a launch's parameters.
constexpr int kCudaGradients = 4000;

// One launch each; CUDA's words for what went wrong, or null. `grads` [count] are the gradients'
// addresses; with a count of 0 the launch reads row GRAD of `addresses`, more do not fit.
const char* cuda_update(const CudaUpdateArgs& args, const int64_t* grads, int64_t count);
const char* cuda_advance(const CudaAdvanceArgs& args);

// Loads every kernel: under capture it would fail.
const char* cuda_load(int64_t device);

// The calling thread's device; -1 without one.
int64_t cuda_device();

// Whether a graph is being captured on a device's stream, or CUDA does not say.
bool cuda_captures(int64_t device, void* stream);
