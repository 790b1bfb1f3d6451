// The stream that a cached launch launches on.
#pragma once

#include <cstdint>

#include "cached_object.h"

namespace cached {

// The stream of the last work on a GPU. The device state notes it, as a torch.cuda.Stream under
// "_last_stream" in its dict: every launch, every value that the host sends.
class LastStream {
 public:
  // Who is asked: the number of the calling thread's device, -1 without one; whether a stream of a
  // device captures.
  struct Cuda {
    int64_t (*device)();
    bool (*captures)(int64_t device, void* stream);
    bool launches_elsewhere;  // on another device than the calling thread's
  };

  void note(PyObject* device_state, int64_t device, const Cuda& cuda) {
    device_state_ = Ref::to(device_state);
    device_ = device;
    cuda_ = cuda;
  }

  // The current stream, null for the default one. False where the full step does more than to
  // launch on it: it waits for a stream that had the last work, and under capture it gives the
  // graph tables of its own.
  bool take_current(void** stream) {
    if (!current(device_, stream) || !had_last_work(*stream)) return false;
    // The full step asks the calling thread's device whether it captures.
    const int64_t here = cuda_.device();
    void* other;
    return here == device_ || (cuda_.launches_elsewhere && here >= 0 && current(here, &other));
  }

  PyObject* device_state() const { return device_state_.get(); }

 private:
  // A device's current stream; false while it captures.
  bool current(int64_t device, void** stream) const {
    *stream = nullptr;
    if (torch.exchange->current_stream(dlpack::kCuda, static_cast<int32_t>(device), stream) != 0) {
      PyErr_Clear();
      return false;
    }
    return !cuda_.captures(device, *stream);
  }

  bool had_last_work(void* stream) {
    PyObject* noted = PyDict_GetItemWithError(device_state_.get(), names.last_stream);
    if (noted == nullptr || noted == Py_None) return false;
    if (noted != noted_.get()) {  // another object, perhaps of the same stream
      const Ref number(PyObject_GetAttr(noted, names.cuda_stream));
      if (number) last_ = PyLong_AsVoidPtr(number.get());
      if (PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        return false;
      }
      noted_ = Ref::to(noted);
    }
    return last_ == stream;
  }

  Ref device_state_, noted_;
  int64_t device_ = -1;
  Cuda cuda_{};
  void* last_ = nullptr;
};

}  // namespace cached
