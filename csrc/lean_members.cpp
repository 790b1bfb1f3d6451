#include "lean_members.h"

#include <cstring>

namespace lean {
namespace {

// Whether a tensor has the member's shape, and each element where the param has it.
bool same_layout(const Member& member, const dlpack::Tensor& tensor) {
  if (tensor.ndim != member.ndim) return false;
  const int64_t* shape = member.layout.get();
  const int64_t* strides = shape + member.ndim;
  for (int32_t i = 0; i < member.ndim; ++i) {
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

// A list of some of the members' aliases.
template <class Which>
Ref counters_of(const Member* members, int64_t count, Which which) {
  Ref list(PyList_New(0));
  for (int64_t m = 0; list && m < count; ++m)
    if (which(members[m]) && PyList_Append(list.get(), members[m].counter.alias()) != 0)
      return Ref();
  return list;
}

}  // namespace

bool Members::note(PyObject* params, const char* facts, const dlpack::Device& device) {
  params_ = Ref::to(params);
  device_ = device;
  count_ = PyTuple_Size(params);
  members_.reset(new Member[count_]{});
  for (int64_t m = 0; m < count_; ++m) {
    int64_t row[kFacts];
    std::memcpy(row, facts + m * sizeof row, sizeof row);
    if (!note_member(members_[m], PyTuple_GetItem(params, m), row)) return false;
    elements_ += members_[m].numel;
  }
  counters_ = counters_of(members_.get(), count_, [](const Member& m) { return m.column >= 0; });
  return static_cast<bool>(counters_);
}

bool Members::note_member(Member& member, PyObject* param, const int64_t* facts) {
  dlpack::Tensor tensor;
  if (torch.exchange->tensor_from_object(param, &tensor) != 0) return false;
  member.param = param;
  member.column = facts[0];
  if (member.column >= 0 && !member.counter.note(param)) return false;
  member.reached = facts[1] != 0;
  member.address = tensor.address();
  member.dtype = tensor.dtype;
  member.grad_dtype = {static_cast<uint8_t>(facts[2]), static_cast<uint8_t>(facts[3]), 1};
  member.ndim = tensor.ndim;
  member.layout.reset(new int64_t[2 * tensor.ndim + 1]);
  member.numel = 1;
  for (int32_t i = 0; i < tensor.ndim; ++i) {
    member.layout[i] = tensor.shape[i];
    member.layout[tensor.ndim + i] = tensor.strides[i];
    member.numel *= tensor.shape[i];
  }
  return true;
}

// A tensor that lies where the member's param and gradient do: its device, and each element.
bool Members::read(PyObject* object, const Member& member, dlpack::Tensor* out) const {
  if (torch.exchange->tensor_from_object(object, out) != 0) {
    PyErr_Clear();
    return false;
  }
  return out->device == device_ && same_layout(member, *out);
}

bool Members::take_gradients(int64_t* addresses) {
  taken_ = addresses;
  missing_ = 0;
  for (int64_t m = 0; m < count_; ++m) {
    const Member& member = members_[m];
    const Ref grad(torch.grad.get(member.param, torch.grad.closure));
    if (!grad) {
      PyErr_Clear();
      return false;
    }
    const bool missing = grad.get() == Py_None;
    if (!member.reached && !missing) return false;
    if (member.column < 0) continue;
    dlpack::Tensor tensor;
    if (!read(member.param, member, &tensor) || tensor.address() != member.address ||
        !(tensor.dtype == member.dtype))
      return false;
    addresses[member.column] = 0;
    missing_ += missing;
    if (!missing && !take_address(member, grad.get(), &addresses[member.column])) return false;
  }
  return true;
}

bool Members::take_address(const Member& member, PyObject* grad, int64_t* address) const {
  dlpack::Tensor tensor;
  if (reinterpret_cast<PyObject*>(Py_TYPE(grad)) != torch.tensor_type ||
      !read(grad, member, &tensor) || !(tensor.dtype == member.grad_dtype))
    return false;
  // A lazy negation has other bits than values. It is a view with gaps, unless of one element.
  if (member.numel == 1 && is_negated(grad)) return false;
  constexpr int64_t kNowhere = 16;  // of an empty tensor: 0 says that there is no gradient
  *address = tensor.data == nullptr ? kNowhere : tensor.address();
  return true;
}

bool Members::bump_versions() const {
  const auto had_one = [this](const Member& m) { return m.column >= 0 && taken_[m.column] != 0; };
  const Ref written = missing_ == 0 ? Ref::to(counters_.get())
                                    : counters_of(members_.get(), count_, had_one);
  const Ref done(written ? PyObject_CallFunctionObjArgs(torch.increment_version, written.get(),
                                                        nullptr)
                         : nullptr);
  if (!done) PyErr_Clear();
  return static_cast<bool>(done);
}

void Members::count_launch() {
  if (missing_ == 0) return;
  for (int64_t m = 0; m < count_; ++m)
    if (members_[m].column >= 0) members_[m].missed += taken_[members_[m].column] == 0;
}

PyObject* Members::take_missed() {
  Ref missed(PyDict_New());
  if (!missed) return nullptr;
  for (int64_t m = 0; m < count_; ++m) {
    if (members_[m].missed == 0) continue;
    const Ref number(PyLong_FromLongLong(m));
    const Ref launches(PyLong_FromLongLong(std::exchange(members_[m].missed, 0)));
    if (!number || !launches || PyDict_SetItem(missed.get(), number.get(), launches.get()) != 0)
      return nullptr;
  }
  return Py_NewRef(missed.get());
}

}  // namespace lean
