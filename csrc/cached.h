// The cached launch: what a step does when nothing changed since the last one, without Python.
#pragma once

#define Py_LIMITED_API 0x030A0000
#include <Python.h>

// A bytes argument, by the format "O&" with `take_bytes`. Not "y#": compiled with the headers of
// Python 3.13 or newer, that one raises on 3.12 and older.
struct Bytes {
  char* data;
  Py_ssize_t size;
};

inline int take_bytes(PyObject* object, void* bytes) {
  auto* out = static_cast<Bytes*>(bytes);
  return PyBytes_AsStringAndSize(object, &out->data, &out->size) == 0;
}

// set_up_cached(exchange capsule, the base type of tensors, torch.Tensor, the dict of
// torch.autograd.profiler, the two dicts of hooks of all optimizers, torch._C._increment_version):
// what CachedLaunch needs of torch.
PyObject* set_up_cached(PyObject*, PyObject* arguments);

// Adds the types CachedLaunch, TritonStep, CachedSchedule and CachedCall to the module; -1 with an
// error set.
int add_cached_types(PyObject* module);
