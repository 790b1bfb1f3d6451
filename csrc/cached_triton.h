// The launch of a kernel that Triton has compiled, as its own launcher makes it.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "driver.h"
#include "cached_object.h"
#include "structs.h"

namespace cached {

class TritonLaunch {
 public:
  // data   TritonFields, then the kernel's parameters
  // hooks  Triton's object that has "launch_enter_hook" and "launch_exit_hook"; that chain of calls
  //        and its list of them; the other chain and its list. Called by Triton's own launcher.
  // False with an error set.
  bool note(const char* data, Py_ssize_t size, PyObject* hooks) {
    const Py_ssize_t left = size - static_cast<Py_ssize_t>(sizeof fields_);
    if (left < 8 || left % 8 != 0 || PyTuple_Size(hooks) != 5) {
      PyErr_SetString(PyExc_ValueError, "TritonStep: fields of another size");
      return false;
    }
    std::memcpy(&fields_, data, sizeof fields_);
    words_.resize(left / 8);
    std::memcpy(words_.data(), data + sizeof fields_, left);
    for (int64_t& word : words_) parameters_.push_back(&word);
    hooks_ = Ref::to(hooks);
    return true;
  }

  int64_t tensors() const { return fields_.tensors; }

  bool no_hooks() const {
    return is_silent(names.enter_hook, 1) && is_silent(names.exit_hook, 3);
  }

  // A launch with these gradients; null, or CUDA's words for what went wrong.
  const char* start(const int64_t* grads, int64_t advance, void* stream) {
    if (const char* failed = send(grads, stream)) return failed;
    words_[fields_.advance] = advance;
    const driver::Kernel kernel{fields_.function, fields_.blocks, fields_.threads, fields_.shared};
    return driver::launch(kernel, parameters_.data(), stream);
  }

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(hooks_.get());
    return 0;
  }

 private:
  // The addresses into the table, if they are others than those that are there. Up to 64 KB the
  // driver takes them along with the call: the copy waits for nothing (CUDA C++ Programming Guide,
  // "Asynchronous Concurrent Execution").
  const char* send(const int64_t* grads, void* stream) {
    const size_t bytes = fields_.tensors * sizeof *grads;
    if (!sent_.empty() && std::memcmp(sent_.data(), grads, bytes) == 0) return nullptr;
    sent_.clear();
    const char* failed = driver::copy(fields_.grads, grads, bytes, stream);
    if (failed == nullptr) sent_.assign(grads, grads + fields_.tensors);
    return failed;
  }

  bool is_silent(PyObject* name, Py_ssize_t chain) const {
    const Ref now(PyObject_GetAttr(PyTuple_GetItem(hooks_.get(), 0), name));
    if (!now) PyErr_Clear();
    return now.get() == PyTuple_GetItem(hooks_.get(), chain) &&
           PyList_Size(PyTuple_GetItem(hooks_.get(), chain + 1)) == 0;
  }

  TritonFields fields_{};
  std::vector<int64_t> words_;     // the parameters; the kernel knows of how many bytes each is
  std::vector<void*> parameters_;  // their addresses
  std::vector<int64_t> sent_;      // the gradients in the table; empty before the first
  Ref hooks_;
};

}  // namespace cached
