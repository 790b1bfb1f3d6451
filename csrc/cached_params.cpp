#include "cached_params.h"

#include <cstring>

namespace cached {
namespace {

// Whether a tensor has the row's shape, and each element where the param has it.
bool same_layout(const ParamRow& row, const dlpack::Tensor& tensor) {
  if (tensor.ndim != row.ndim) return false;
  const int64_t* shape = row.layout.get();
  const int64_t* strides = shape + row.ndim;
  for (int32_t i = 0; i < row.ndim; ++i) {
    if (tensor.shape[i] != shape[i]) return false;
    if (shape[i] > 1 && tensor.strides[i] != strides[i]) return false;
  }
  return true;
}

bool is_negated(PyObject* grad) {
  const Ref answer(PyObject_CallMethodObjArgs(grad, names.is_neg, nullptr));
  if (!answer) PyErr_Clear();
  return answer.get() != Py_False;
}

// A list of some of the params' aliases.
template <class Which>
Ref counters_of(const ParamRow* rows, int64_t count, Which which) {
  Ref list(PyList_New(0));
  for (int64_t m = 0; list && m < count; ++m)
    if (which(rows[m]) && PyList_Append(list.get(), rows[m].counter.alias()) != 0)
      return Ref();
  return list;
}

}  // namespace

bool ParamRows::note(PyObject* params, const char* facts, const dlpack::Device& device) {
  params_ = Ref::to(params);
  device_ = device;
  count_ = PyTuple_Size(params);
  rows_.reset(new ParamRow[count_]{});
  for (int64_t m = 0; m < count_; ++m) {
    int64_t fact[kFacts];
    std::memcpy(fact, facts + m * sizeof fact, sizeof fact);
    if (!note_row(rows_[m], PyTuple_GetItem(params, m), fact)) return false;
    elements_ += rows_[m].numel;
  }
  counters_ = counters_of(rows_.get(), count_, [](const ParamRow& m) { return m.column >= 0; });
  return static_cast<bool>(counters_);
}

bool ParamRows::note_row(ParamRow& row, PyObject* param, const int64_t* facts) {
  dlpack::Tensor tensor;
  if (torch.exchange->tensor_from_object(param, &tensor) != 0) return false;
  row.param = param;
  row.column = facts[0];
  if (row.column >= 0 && !row.counter.note(param)) return false;
  row.reached = facts[1] != 0;
  row.address = tensor.address();
  row.dtype = tensor.dtype;
  row.grad_dtype = {static_cast<uint8_t>(facts[2]), static_cast<uint8_t>(facts[3]), 1};
  row.ndim = tensor.ndim;
  row.layout.reset(new int64_t[2 * tensor.ndim + 1]);
  row.numel = 1;
  for (int32_t i = 0; i < tensor.ndim; ++i) {
    row.layout[i] = tensor.shape[i];
    row.layout[tensor.ndim + i] = tensor.strides[i];
    row.numel *= tensor.shape[i];
  }
  return true;
}

// A tensor that lies where the row's param and gradient do: its device, and each element.
bool ParamRows::read(PyObject* object, const ParamRow& row, dlpack::Tensor* out) const {
  if (torch.exchange->tensor_from_object(object, out) != 0) {
    PyErr_Clear();
    return false;
  }
  return out->device == device_ && same_layout(row, *out);
}

bool ParamRows::take_gradients(int64_t* addresses) {
  taken_ = addresses;
  missing_ = 0;
  for (int64_t m = 0; m < count_; ++m) {
    const ParamRow& row = rows_[m];
    const Ref grad(torch.grad.get(row.param, torch.grad.closure));
    if (!grad) {
      PyErr_Clear();
      return false;
    }
    const bool missing = grad.get() == Py_None;
    if (!row.reached && !missing) return false;
    if (row.column < 0) continue;
    dlpack::Tensor tensor;
    if (!read(row.param, row, &tensor) || tensor.address() != row.address ||
        !(tensor.dtype == row.dtype))
      return false;
    addresses[row.column] = 0;
    missing_ += missing;
    if (!missing && !take_address(row, grad.get(), &addresses[row.column])) return false;
  }
  return true;
}

bool ParamRows::take_address(const ParamRow& row, PyObject* grad, int64_t* address) const {
  dlpack::Tensor tensor;
  if (reinterpret_cast<PyObject*>(Py_TYPE(grad)) != torch.tensor_type ||
      !read(grad, row, &tensor) || !(tensor.dtype == row.grad_dtype))
    return false;
  // A lazy negation has other bits than values. It is a view with gaps, unless of one element.
  if (row.numel == 1 && is_negated(grad)) return false;
  constexpr int64_t kNowhere = 16;  // of an empty tensor: 0 says that there is no gradient
  *address = tensor.data == nullptr ? kNowhere : tensor.address();
  return true;
}

bool ParamRows::bump_versions() const {
  const auto had_one = [this](const ParamRow& m) { return m.column >= 0 && taken_[m.column] != 0; };
  const Ref written = missing_ == 0 ? Ref::to(counters_.get())
                                    : counters_of(rows_.get(), count_, had_one);
  const Ref done(written ? PyObject_CallFunctionObjArgs(torch.increment_version, written.get(),
                                                        nullptr)
                         : nullptr);
  if (!done) PyErr_Clear();
  return static_cast<bool>(done);
}

void ParamRows::count_launch() {
  if (missing_ == 0) return;
  for (int64_t m = 0; m < count_; ++m)
    if (rows_[m].column >= 0) rows_[m].missed += taken_[rows_[m].column] == 0;
}

PyObject* ParamRows::take_missed() {
  Ref missed(PyDict_New());
  if (!missed) return nullptr;
  for (int64_t m = 0; m < count_; ++m) {
    if (rows_[m].missed == 0) continue;
    const Ref number(PyLong_FromLongLong(m));
    const Ref launches(PyLong_FromLongLong(std::exchange(rows_[m].missed, 0)));
    if (!number || !launches || PyDict_SetItem(missed.get(), number.get(), launches.get()) != 0)
      return nullptr;
  }
  return Py_NewRef(missed.get());
}

}  // namespace cached
