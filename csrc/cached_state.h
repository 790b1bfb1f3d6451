// What `optimizer.state` shows while user code holds it: the tensors that the launches write, and
// the step counts, which a cached launch then keeps current.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "cached_object.h"

namespace cached {

class ExposedState {
 public:
  // keeper  dict whose "state" is {param: {name: tensor}}
  // rows    tuple; for each member of the table, in its order,
  //         (param, names, tensors, noted, value, address): the names and tensors of its moments;
  //         None, or what was noted of its step count, whose `step` is its tensor (on the CPU,
  //         float32 or float64) and whose `value` lies at the address, int64. Without any of them
  //         it is not in the state yet.
  // False with an error set.
  bool note(PyObject* keeper, PyObject* rows) {
    keeper_ = Ref::to(keeper);
    rows_ = Ref::to(rows);
    entries_.clear();
    for (Py_ssize_t i = 0; i < PyTuple_Size(rows); ++i)
      if (!note_row(PyTuple_GetItem(rows, i))) return false;
    return true;
  }

  bool watched() const { return static_cast<bool>(keeper_); }

  // Whether the state is still what it was: no other tensor or count was put into it.
  bool unchanged() {
    PyObject* state = PyDict_GetItemWithError(keeper_.get(), names.state);
    bool same = state != nullptr && PyDict_Check(state);
    for (size_t i = 0; same && i < entries_.size(); ++i)
      same = unchanged(entries_[i], PyDict_GetItemWithError(state, entries_[i].param));
    if (PyErr_Occurred() != nullptr) PyErr_Clear();
    return same;
  }

  // A launch with these gradients, right after unchanged().
  void count_launch(const int64_t* grads) {
    for (size_t i = 0; i < entries_.size(); ++i) {
      const Entry& entry = entries_[i];
      if (entry.step == nullptr || grads[i] == 0) continue;
      const double count = static_cast<double>(++*entry.count);
      if (entry.wide)
        std::memcpy(entry.at, &count, sizeof count);
      else
        write_float(count, entry.at);
    }
  }

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(keeper_.get());
    Py_VISIT(rows_.get());
    return 0;
  }

 private:
  struct Slot {
    PyObject *name, *tensor;
    int64_t address;
  };

  struct Entry {
    PyObject* param;  // all of them borrowed from the rows
    std::vector<Slot> slots;
    PyObject* step = nullptr;
    int64_t* count = nullptr;
    bool wide = false;  // float64
    void* at = nullptr;  // where the step tensor lies, as unchanged() saw it
  };

  static void write_float(double count, void* to) {
    const float value = static_cast<float>(count);
    std::memcpy(to, &value, sizeof value);
  }

  static bool read(PyObject* tensor, dlpack::Tensor* out) {
    return torch.exchange->tensor_from_object(tensor, out) == 0;
  }

  bool note_row(PyObject* row) {
    Entry entry;
    PyObject *slot_names, *tensors, *noted, *value;
    unsigned long long count;
    if (!PyArg_ParseTuple(row, "OO!O!OOK", &entry.param, &PyTuple_Type, &slot_names,
                          &PyTuple_Type, &tensors, &noted, &value, &count))
      return false;
    for (Py_ssize_t i = 0; i < PyTuple_Size(slot_names); ++i) {
      dlpack::Tensor tensor;
      PyObject* object = PyTuple_GetItem(tensors, i);
      if (object == nullptr || !read(object, &tensor)) return false;
      entry.slots.push_back({PyTuple_GetItem(slot_names, i), object, tensor.address()});
    }
    if (noted != Py_None) {
      // Its reference stays that of `noted`: by their number user code's are found.
      dlpack::Tensor tensor;
      const Ref step(PyObject_GetAttr(noted, names.step));
      if (!step || !read(step.get(), &tensor)) return false;
      entry.step = step.get();
      entry.count = reinterpret_cast<int64_t*>(count);
      entry.wide = tensor.dtype.bits == 64;
    }
    entries_.push_back(std::move(entry));
    return true;
  }

  static bool unchanged(Entry& entry, PyObject* shown) {
    if (entry.slots.empty() && entry.step == nullptr)
      return shown == nullptr || (PyDict_Check(shown) && PyDict_Size(shown) == 0);
    if (shown == nullptr || !PyDict_Check(shown)) return false;
    for (const Slot& slot : entry.slots) {
      dlpack::Tensor tensor;
      if (PyDict_GetItemWithError(shown, slot.name) != slot.tensor || !read(slot.tensor, &tensor) ||
          tensor.address() != slot.address)
        return false;
    }
    return entry.step == nullptr ||
           (PyDict_GetItemWithError(shown, names.step) == entry.step && counts(entry));
  }

  // Whether the step tensor holds the count that was written last.
  static bool counts(Entry& entry) {
    dlpack::Tensor tensor;
    if (!read(entry.step, &tensor) || tensor.device.type != dlpack::kCpu || tensor.ndim != 0 ||
        tensor.dtype.code != dlpack::kFloat || tensor.dtype.bits != (entry.wide ? 64 : 32))
      return false;
    entry.at = reinterpret_cast<void*>(tensor.address());
    double wide;
    float narrow;
    if (entry.wide) {
      std::memcpy(&wide, entry.at, sizeof wide);
    } else {
      std::memcpy(&narrow, entry.at, sizeof narrow);
      wide = narrow;
    }
    return wide == static_cast<double>(*entry.count);
  }

  Ref keeper_, rows_;
  std::vector<Entry> entries_;  // by column of the table
};

}  // namespace cached
