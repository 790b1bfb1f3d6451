// An optimizer's params as the param table knows them, and the gradients that they have now.
#pragma once

#include <cstdint>
#include <memory>

#include "cached_object.h"

namespace cached {

// A tensor that shares a param's memory and version counter: whose versions go up, the param's do.
// The second reference is torch's own. Where Python holds the only one, each touch by torch costs
// two changes of owner: for params themselves torch takes twice the time. A param must not be held
// so: its hooks may hold the optimizer, and Python would not see the cycle.
class Counter {
 public:
  Counter() = default;
  Counter(Counter&&) = delete;
  ~Counter() {
    if (held_ != nullptr) held_->deleter(held_);
  }
  // False with an error set.
  bool note(PyObject* param) {
    alias_ = Ref(PyObject_CallMethodObjArgs(param, names.detach, nullptr));
    return alias_ && torch.exchange->managed_from_object(alias_.get(), &held_) == 0;
  }
  PyObject* alias() const { return alias_.get(); }

 private:
  Ref alias_;
  dlpack::ManagedTensor* held_ = nullptr;
};

// One param, as the table knows it.
struct ParamRow {
  PyObject* param;  // borrowed
  Counter counter;  // if it is in the table
  int64_t column;   // of the table; -1: it is not there
  bool reached;     // by a step; else a gradient needs the full one
  int64_t address;
  dlpack::DType dtype, grad_dtype;
  int32_t ndim;
  int64_t numel;
  int64_t missed;                     // launches since the last take_missed()
  std::unique_ptr<int64_t[]> layout;  // shape, then strides
};

class ParamRows {
 public:
  static constexpr Py_ssize_t kFacts = 4;

  // All params of an optimizer, in the groups' order, on one device. `facts` [params, kFacts]: the
  // table's column, whether it was reached, the gradient's DLPack code and bits. False with an
  // error set.
  bool note(PyObject* params, const char* facts, const dlpack::Device& device);

  // The gradients' addresses, by column; false where one is none that a kernel reads, or where a
  // param is not what the table knows.
  bool take_gradients(int64_t* addresses);

  // Tells autograd that a launch writes the params whose gradients were taken last; false where it
  // cannot be told.
  bool bump_versions() const;

  // A launch with the gradients taken last.
  void count_launch();

  // {number of a param: launches for which it had no gradient}, of those that missed any.
  PyObject* take_missed();

  int64_t size() const { return count_; }
  int64_t elements() const { return elements_; }
  PyObject* params() const { return params_.get(); }
  PyObject* counters() const { return counters_.get(); }
  PyObject* operator[](int64_t m) const { return rows_[m].param; }

 private:
  bool note_row(ParamRow& row, PyObject* param, const int64_t* facts);
  bool take_address(const ParamRow& row, PyObject* grad, int64_t* address) const;
  bool read(PyObject* object, const ParamRow& row, dlpack::Tensor* out) const;

  Ref params_;
  Ref counters_;  // a list of the aliases of those in the table
  dlpack::Device device_{};
  int64_t count_ = 0, elements_ = 0;
  int64_t missing_ = 0;  // of the gradients taken last
  std::unique_ptr<ParamRow[]> rows_;
  const int64_t* taken_ = nullptr;
};

}  // namespace cached
