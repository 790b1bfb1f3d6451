// The param groups of an optimizer, and whether they are still the same with the same params.
#pragma once

#include "cached_params.h"
#include "cached_object.h"

namespace cached {

// Whether a list holds the same objects, in this order, as a tuple.
inline bool holds_all(PyObject* list, PyObject* tuple) {
  const Py_ssize_t count = PyTuple_Size(tuple);
  if (PyList_Size(list) != count) return false;
  for (Py_ssize_t i = 0; i < count; ++i)
    if (PyList_GetItem(list, i) != PyTuple_GetItem(tuple, i)) return false;
  return true;
}

class Groups {
 public:
  // False with an error set.
  bool note(PyObject* list) {
    list_ = Ref::to(list);
    groups_ = Ref(PyList_AsTuple(list));
    count_ = PyList_Size(list);
    param_lists_ = Ref(PyTuple_New(count_));
    if (!groups_ || !param_lists_) return false;
    for (Py_ssize_t g = 0; g < count_; ++g) {
      PyObject* params = PyDict_GetItemWithError(PyList_GetItem(list, g), names.params);
      if (params == nullptr || !PyList_Check(params)) {
        PyErr_SetString(PyExc_TypeError, "CachedLaunch: a group's params are no list");
        return false;
      }
      PyTuple_SetItem(param_lists_.get(), g, Py_NewRef(params));
    }
    return true;
  }

  // `attributes`: the optimizer's dict.
  bool same(PyObject* attributes, const ParamRows& rows) const {
    if (PyDict_GetItemWithError(attributes, names.param_groups) != list_.get()) return false;
    if (PyList_Size(list_.get()) != count_) return false;
    int64_t m = 0;
    for (Py_ssize_t g = 0; g < count_; ++g) {
      PyObject* group = PyList_GetItem(list_.get(), g);
      if (group != PyTuple_GetItem(groups_.get(), g)) return false;
      PyObject* params = PyTuple_GetItem(param_lists_.get(), g);
      if (PyDict_GetItemWithError(group, names.params) != params) return false;
      const Py_ssize_t size = PyList_Size(params);
      if (m + size > rows.size()) return false;
      for (Py_ssize_t i = 0; i < size; ++i, ++m)
        if (PyList_GetItem(params, i) != rows[m]) return false;
    }
    return m == rows.size();
  }

  int traverse(visitproc visit, void* arg) const {
    for (const Ref* ref : {&list_, &groups_, &param_lists_}) Py_VISIT(ref->get());
    return 0;
  }

 private:
  Ref list_, groups_, param_lists_;
  Py_ssize_t count_ = 0;
};

}  // namespace cached
