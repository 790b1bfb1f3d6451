// What a cached launch checks before it launches, and the launch: on a CPU, by cuda.cu, of Triton's.
#pragma once

#include <memory>
#include <mutex>

#include "cadence.h"
#include "cpu.h"
#include "cuda_engine.h"
#include "layout.h"
#include "cached_groups.h"
#include "cached_params.h"
#include "cached_object.h"
#include "cached_state.h"
#include "cached_stream.h"
#include "cached_triton.h"

namespace cached {

constexpr int64_t kRelease = 1 << 16;  // elements from which on other Python threads may run

// Whether a dict has no value under a key, or None.
inline bool lacks(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  return value == nullptr || value == Py_None;
}

enum Where { ON_CPU, BY_CUDA, BY_TRITON };

struct Cached {
  Where where = ON_CPU;
  CudaUpdateArgs launch{};  // on a CPU only its `args`; of Triton's only `advance` and the stream
  TritonLaunch triton;
  int64_t steps = 0;
  int64_t limit = -1;  // launches until the full step must look; -1: none
  Cadence cadence;     // of the fused schedules, where calls govern them
  bool running = false;
  std::mutex launching;  // held by the launch without the GIL, so that take() can wait for it
  Ref pre_hooks, post_hooks, forced, engine, keep;
  Groups groups;
  ParamRows rows;
  ExposedState exposed;
  std::unique_ptr<int64_t[]> addresses;
  int64_t* grads = nullptr;  // in `addresses`
  LastStream stream;         // on a GPU

  bool no_scaler(PyObject* attributes) const {
    return lacks(attributes, names.found_inf) && lacks(attributes, names.grad_scale);
  }

  bool no_listeners() const {
    return PyDict_Size(pre_hooks.get()) == 0 && PyDict_Size(post_hooks.get()) == 0 &&
           PyDict_Size(torch.pre_hooks) == 0 && PyDict_Size(torch.post_hooks) == 0 &&
           PyDict_GetItemWithError(torch.profiler, names.profiling) == Py_False;
  }

  // `seen`: hooks and profiler have seen this step.
  bool step(PyObject* optimizer, bool seen) {
    if (steps == limit || PyDict_GetItem(forced.get(), Py_None) != engine.get()) return false;
    if (!cadence.guess(&launch.args.advance)) return false;
    const Ref attributes(PyObject_GetAttr(optimizer, names.dict));
    if (!attributes) {
      PyErr_Clear();
      return false;
    }
    if (!no_scaler(attributes.get()) || !(seen || no_listeners())) return false;
    if (!groups.same(attributes.get(), rows)) return false;
    if (exposed.watched() && !exposed.unchanged()) return false;
    if (where == ON_CPU) return update_on_cpu();
    return (where != BY_TRITON || triton.no_hooks()) && update_on_gpu();
  }

  // Where the launch queue is full a launch waits, and what it waits for may need the GIL. It counts
  // once it is made, before another thread can ask; one that fails is left to the full step, which
  // raises.
  bool update_on_gpu() {
    if (running || !stream.take_current(&launch.stream) || !rows.take_gradients(grads) ||
        !rows.bump_versions())
      return false;
    const char* failed;
    running = true;
    launching.lock();
    Py_BEGIN_ALLOW_THREADS
    failed = start();
    Py_END_ALLOW_THREADS
    if (failed == nullptr) count_launch();
    launching.unlock();
    running = false;
    return failed == nullptr;
  }

  const char* start() {
#ifdef FS_CUDA
    if (where == BY_CUDA) return cuda_update(launch, grads, launch.args.tensors);
#endif
    return triton.start(grads, launch.args.advance, launch.stream);
  }

  bool update_on_cpu() {
    if (!rows.take_gradients(grads) || !rows.bump_versions()) return false;
    count_launch();  // before another thread can ask for it
    if (rows.elements() < kRelease) {
      update(launch.args);
      return true;
    }
    running = true;
    launching.lock();
    Py_BEGIN_ALLOW_THREADS
    update(launch.args);
    launching.unlock();
    Py_END_ALLOW_THREADS
    running = false;
    return true;
  }

  int64_t* room(int64_t count) {
    addresses.reset(new int64_t[count]);
    return addresses.get();
  }

  void count_launch() {
    ++steps;
    rows.count_launch();
    cadence.count_launch(launch.args.advance);
    if (exposed.watched()) exposed.count_launch(grads);
  }
};

}  // namespace cached
