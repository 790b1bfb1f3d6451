// What CachedLaunch and CachedSchedule share: references, names, the way to torch, a Python type's
// ends.
#pragma once

#include "cached.h"

#include <cstdint>
#include <utility>

#include "dlpack.h"

namespace cached {

// A strong reference.
class Ref {
 public:
  Ref() = default;
  explicit Ref(PyObject* stolen) : object_(stolen) {}
  static Ref to(PyObject* borrowed) { return Ref(Py_NewRef(borrowed)); }
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() { Py_XDECREF(object_); }
  PyObject* get() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_ = nullptr;
};

// What every CachedLaunch needs of torch, given once.
struct Torch {
  dlpack::ExchangeApi* exchange;
  PyObject* tensor_type;
  PyObject* profiler;  // dict of torch.autograd.profiler
  PyObject *pre_hooks, *post_hooks;  // of all optimizers
  PyObject* increment_version;  // of autograd: takes a list of tensors
  PyGetSetDef grad;  // the attribute's getter: without the lookup it takes half the time
};
extern Torch torch;

struct Names {
  PyObject *is_neg, *dict, *param_groups, *params, *grad_scale, *found_inf, *profiling;
  PyObject *last_stream, *cuda_stream, *state, *step, *enter_hook, *exit_hook, *detach;
};
extern Names names;

inline bool parse_limit(PyObject* object, int64_t* limit) {
  *limit = object == Py_None ? -1 : PyLong_AsLongLong(object);
  return *limit != -1 || PyErr_Occurred() == nullptr;
}

template <int (*clear)(PyObject*)>
void deallocate(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  clear(self);
  reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
  Py_DECREF(type);
}

extern PyType_Spec step_spec, triton_spec, schedule_spec, call_spec;

}  // namespace cached
