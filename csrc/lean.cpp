// The lean step: what a step does when nothing changed since the last one, without Python.
//
// A LeanStep is made by a whole step and holds what that step found. Its own step() looks whether
// all of it still holds (groups, params, hooks, profiler, scaler), takes the gradients' addresses,
// and launches. Where anything is other than it was, it does nothing and returns False, and the
// whole step runs. It counts its launches; the ledger settles the account when somebody reads.
#include "lean.h"

#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include "cpu.h"
#include "dlpack.h"
#include "layout.h"

namespace {

using namespace fused_sched;

constexpr int64_t kRelease = 1 << 16;  // elements from which on other Python threads may run

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

// What all LeanSteps need of torch, given once.
struct Torch {
  dlpack::ExchangeApi* exchange;
  PyObject* tensor_type;
  PyObject* profiler;  // dict of torch.autograd.profiler
  PyObject *pre_hooks, *post_hooks;  // of all optimizers
  PyGetSetDef grad;  // the attribute's getter: without the lookup it takes half the time
} torch{};

struct Names {
  PyObject *is_neg, *dict, *param_groups, *params, *grad_scale, *found_inf, *profiling;
} names{};

bool intern_names() {
  const auto intern = [](PyObject*& name, const char* text) {
    if (name == nullptr) name = PyUnicode_InternFromString(text);
    return name != nullptr;
  };
  return intern(names.is_neg, "is_neg") && intern(names.dict, "__dict__") &&
         intern(names.param_groups, "param_groups") && intern(names.params, "params") &&
         intern(names.grad_scale, "grad_scale") && intern(names.found_inf, "found_inf") &&
         intern(names.profiling, "_is_profiler_enabled");
}

// Whether a dict has no value under a key, or None.
bool lacks(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  return value == nullptr || value == Py_None;
}

// One param, as the table knows it.
struct Member {
  PyObject* param;  // borrowed from Lean::params
  int64_t column;   // of the table; -1: it is not there
  bool reached;     // by a step; else a gradient needs the whole one
  int64_t address;
  dlpack::DType dtype, grad_dtype;
  int32_t ndim;
  int64_t numel;
  std::unique_ptr<int64_t[]> layout;  // shape, then strides
};

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

bool parse_limit(PyObject* object, int64_t* limit) {
  *limit = object == Py_None ? -1 : PyLong_AsLongLong(object);
  return *limit != -1 || PyErr_Occurred() == nullptr;
}

bool read(PyObject* object, dlpack::Tensor* out) {
  if (torch.exchange->tensor_from_object(object, out) == 0) return true;
  PyErr_Clear();
  return false;
}

struct Lean {
  UpdateArgs args;
  int64_t steps = 0;
  int64_t limit = -1;  // launches until the whole step must look; -1: none
  bool running = false;
  std::mutex launching;  // held by the launch without the GIL, so that take() can wait for it
  Ref group_list, groups, param_lists, params, pre_hooks, post_hooks, forced, engine, keep;
  int64_t members_count = 0, groups_count = 0, elements = 0;
  std::unique_ptr<Member[]> members;
  std::unique_ptr<int64_t[]> next_grads;

  bool nobody_listens(PyObject* attributes) const {
    return lacks(attributes, names.found_inf) && lacks(attributes, names.grad_scale) &&
           PyDict_Size(pre_hooks.get()) == 0 && PyDict_Size(post_hooks.get()) == 0 &&
           PyDict_Size(torch.pre_hooks) == 0 && PyDict_Size(torch.post_hooks) == 0 &&
           PyDict_GetItemWithError(torch.profiler, names.profiling) == Py_False;
  }

  // The same groups, with the same params.
  bool same_groups(PyObject* attributes) const {
    if (PyDict_GetItemWithError(attributes, names.param_groups) != group_list.get()) return false;
    if (PyList_Size(group_list.get()) != groups_count) return false;
    int64_t m = 0;
    for (int64_t g = 0; g < groups_count; ++g) {
      PyObject* group = PyList_GetItem(group_list.get(), g);
      if (group != PyTuple_GetItem(groups.get(), g)) return false;
      PyObject* list = PyTuple_GetItem(param_lists.get(), g);
      if (PyDict_GetItemWithError(group, names.params) != list) return false;
      const Py_ssize_t count = PyList_Size(list);
      if (m + count > members_count) return false;
      for (Py_ssize_t i = 0; i < count; ++i, ++m)
        if (PyList_GetItem(list, i) != members[m].param) return false;
    }
    return m == members_count;
  }

  // The gradients' addresses into next_grads; false where one is none that a kernel reads.
  bool take_gradients() {
    for (int64_t m = 0; m < members_count; ++m) {
      const Member& member = members[m];
      const Ref grad(torch.grad.get(member.param, torch.grad.closure));
      if (!grad) {
        PyErr_Clear();
        return false;
      }
      if (!member.reached && grad.get() != Py_None) return false;
      if (member.column < 0) continue;
      dlpack::Tensor tensor;
      if (!read(member.param, &tensor) || tensor.address() != member.address ||
          !(tensor.dtype == member.dtype) || !same_layout(member, tensor))
        return false;
      int64_t* address = &next_grads[member.column];
      *address = 0;
      if (grad.get() != Py_None && !take_gradient(member, grad.get(), address)) return false;
    }
    return true;
  }

  static bool take_gradient(const Member& member, PyObject* grad, int64_t* address) {
    dlpack::Tensor tensor;
    if (reinterpret_cast<PyObject*>(Py_TYPE(grad)) != torch.tensor_type || !read(grad, &tensor) ||
        tensor.device_type != dlpack::kCpu || !(tensor.dtype == member.grad_dtype) ||
        !same_layout(member, tensor))
      return false;
    // A lazy negation has other bits than values. It is a view with gaps, unless of one element.
    if (member.numel == 1 && is_negated(grad)) return false;
    constexpr int64_t kNowhere = 16;  // of an empty tensor: 0 says that there is no gradient
    *address = tensor.data == nullptr ? kNowhere : tensor.address();
    return true;
  }

  static bool is_negated(PyObject* grad) {
    const Ref answer(PyObject_CallMethodObjArgs(grad, names.is_neg, nullptr));
    if (!answer) PyErr_Clear();
    return answer.get() != Py_False;
  }

  bool step(PyObject* optimizer) {
    if (steps == limit || PyDict_GetItem(forced.get(), Py_None) != engine.get()) return false;
    const Ref attributes(PyObject_GetAttr(optimizer, names.dict));
    if (!attributes) {
      PyErr_Clear();
      return false;
    }
    if (!nobody_listens(attributes.get()) || !same_groups(attributes.get()) || !take_gradients())
      return false;
    std::memcpy(args.addresses + GRAD * args.tensors, next_grads.get(),
                args.tensors * sizeof(int64_t));
    ++steps;
    if (elements < kRelease) {
      update(args);
    } else {
      running = true;
      launching.lock();
      Py_BEGIN_ALLOW_THREADS
      update(args);
      launching.unlock();
      Py_END_ALLOW_THREADS
      running = false;
    }
    return true;
  }
};

struct LeanObject {
  PyObject_HEAD
  Lean* lean;
};

Lean* lean_of(PyObject* self) { return reinterpret_cast<LeanObject*>(self)->lean; }

bool note_groups(Lean& lean, PyObject* group_list) {
  lean.group_list = Ref::to(group_list);
  lean.groups = Ref(PyList_AsTuple(group_list));
  lean.groups_count = PyList_Size(group_list);
  lean.param_lists = Ref(PyTuple_New(lean.groups_count));
  if (!lean.groups || !lean.param_lists) return false;
  for (int64_t g = 0; g < lean.groups_count; ++g) {
    PyObject* list = PyDict_GetItemWithError(PyList_GetItem(group_list, g), names.params);
    if (list == nullptr || !PyList_Check(list)) {
      PyErr_SetString(PyExc_TypeError, "LeanStep: a group's params are no list");
      return false;
    }
    PyTuple_SetItem(lean.param_lists.get(), g, Py_NewRef(list));
  }
  return true;
}

// `facts`: the table's column, whether it was reached, the gradient's DLPack code and bits.
bool note_member(Member& member, PyObject* param, const int64_t* facts) {
  dlpack::Tensor tensor;
  if (torch.exchange->tensor_from_object(param, &tensor) != 0) return false;
  member.param = param;
  member.column = facts[0];
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

// LeanStep(fields, group_list, params, facts, pre_hooks, post_hooks, forced, keep, limit):
//   fields      UpdateArgs as int64
//   group_list  optimizer.param_groups
//   params      tuple of all params, in the groups' order
//   facts       int64 [params, 4], see note_member
//   hooks       the optimizer's dicts
//   forced      dict whose entry None is the engine asked for
//   keep        whatever owns the memory that fields point at
//   limit       launches until the whole step must look, None for no limit
PyObject* new_lean(PyTypeObject* type, PyObject* arguments, PyObject*) {
  const char *fields, *facts;
  Py_ssize_t fields_size, facts_size;
  PyObject *group_list, *params, *pre_hooks, *post_hooks, *forced, *keep, *limit;
  if (!PyArg_ParseTuple(arguments, "y#O!O!y#OOO!OO", &fields, &fields_size, &PyList_Type,
                        &group_list, &PyTuple_Type, &params, &facts, &facts_size, &pre_hooks,
                        &post_hooks, &PyDict_Type, &forced, &keep, &limit))
    return nullptr;
  constexpr Py_ssize_t kFacts = 4 * sizeof(int64_t);
  const Py_ssize_t count = PyTuple_Size(params);
  if (fields_size != sizeof(UpdateArgs) || facts_size != count * kFacts) {
    PyErr_SetString(PyExc_ValueError, "LeanStep: the fields or facts have another size");
    return nullptr;
  }
  auto lean = std::make_unique<Lean>();
  std::memcpy(&lean->args, fields, sizeof(UpdateArgs));
  if (!parse_limit(limit, &lean->limit)) return nullptr;
  lean->params = Ref::to(params);
  lean->pre_hooks = Ref::to(pre_hooks);
  lean->post_hooks = Ref::to(post_hooks);
  lean->forced = Ref::to(forced);
  if (PyObject* engine = PyDict_GetItem(forced, Py_None)) lean->engine = Ref::to(engine);
  lean->keep = Ref::to(keep);
  if (!note_groups(*lean, group_list)) return nullptr;
  lean->members_count = count;
  lean->members.reset(new Member[count]{});
  lean->next_grads.reset(new int64_t[lean->args.tensors]);
  for (Py_ssize_t m = 0; m < count; ++m) {
    int64_t row[4];
    std::memcpy(row, facts + m * kFacts, kFacts);
    if (!note_member(lean->members[m], PyTuple_GetItem(params, m), row)) return nullptr;
    lean->elements += lean->members[m].numel;
  }
  const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
  PyObject* self = allocate(type, 0);
  if (self != nullptr) reinterpret_cast<LeanObject*>(self)->lean = lean.release();
  return self;
}

int traverse_lean(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const Lean* lean = lean_of(self);
  if (lean == nullptr) return 0;
  for (const Ref* ref :
       {&lean->group_list, &lean->groups, &lean->param_lists, &lean->params, &lean->pre_hooks,
        &lean->post_hooks, &lean->forced, &lean->keep})
    Py_VISIT(ref->get());
  return 0;
}

int clear_lean(PyObject* self) {
  delete std::exchange(reinterpret_cast<LeanObject*>(self)->lean, nullptr);
  return 0;
}

template <int (*clear)(PyObject*)>
void deallocate(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  clear(self);
  reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
  Py_DECREF(type);
}

PyObject* step_lean(PyObject* self, PyObject* optimizer) {
  Lean* lean = lean_of(self);
  if (lean->running) {
    PyErr_SetString(PyExc_RuntimeError,
                    "step() was called while another thread is in this optimizer's step(); an "
                    "optimizer serves one thread at a time");
    return nullptr;
  }
  return PyBool_FromLong(lean->step(optimizer));
}

PyObject* take_lean(PyObject* self, PyObject*) {
  Lean* lean = lean_of(self);
  if (lean->running) {
    Py_BEGIN_ALLOW_THREADS
    lean->launching.lock();
    lean->launching.unlock();
    Py_END_ALLOW_THREADS
  }
  if (lean->limit >= 0) lean->limit -= lean->steps;
  return PyLong_FromLongLong(std::exchange(lean->steps, 0));
}

PyObject* renew_lean(PyObject* self, PyObject* limit) {
  if (!parse_limit(limit, &lean_of(self)->limit)) return nullptr;
  Py_RETURN_NONE;
}

PyMethodDef lean_methods[] = {
    {"step", step_lean, METH_O, "step(optimizer): True if the step was made."},
    {"take", take_lean, METH_NOARGS, "Steps made since the last take()."},
    {"renew", renew_lean, METH_O, "Another limit."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot lean_slots[] = {{Py_tp_new, reinterpret_cast<void*>(new_lean)},
                            {Py_tp_dealloc, reinterpret_cast<void*>(deallocate<clear_lean>)},
                            {Py_tp_traverse, reinterpret_cast<void*>(traverse_lean)},
                            {Py_tp_clear, reinterpret_cast<void*>(clear_lean)},
                            {Py_tp_methods, lean_methods},
                            {0, nullptr}};

PyType_Spec lean_spec = {"fused_sched.engines._native.LeanStep", sizeof(LeanObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, lean_slots};

// -- a schedule alone ----------------------------------------------------------------------------

struct ScheduleObject {
  PyObject_HEAD
  AdvanceArgs args;
  int64_t steps, limit;
  PyObject *attributes, *group_list, *groups, *keep;
};

ScheduleObject* schedule_of(PyObject* self) { return reinterpret_cast<ScheduleObject*>(self); }

// LeanSchedule(fields, attributes, group_list, groups, keep, limit): AdvanceArgs as int64; the
// optimizer's dict, its list of groups and a tuple of them; the others as for LeanStep.
PyObject* new_schedule(PyTypeObject* type, PyObject* arguments, PyObject*) {
  const char* fields;
  Py_ssize_t size;
  PyObject *attributes, *group_list, *groups, *keep, *limit;
  if (!PyArg_ParseTuple(arguments, "y#O!O!O!OO", &fields, &size, &PyDict_Type, &attributes,
                        &PyList_Type, &group_list, &PyTuple_Type, &groups, &keep, &limit))
    return nullptr;
  if (size != sizeof(AdvanceArgs)) {
    PyErr_SetString(PyExc_ValueError, "LeanSchedule: the fields' size is wrong");
    return nullptr;
  }
  const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
  PyObject* self = allocate(type, 0);
  if (self == nullptr) return nullptr;
  ScheduleObject* schedule = schedule_of(self);
  std::memcpy(&schedule->args, fields, sizeof(AdvanceArgs));
  schedule->steps = 0;
  schedule->attributes = Py_NewRef(attributes);
  schedule->group_list = Py_NewRef(group_list);
  schedule->groups = Py_NewRef(groups);
  schedule->keep = Py_NewRef(keep);
  if (parse_limit(limit, &schedule->limit)) return self;
  Py_DECREF(self);
  return nullptr;
}

int traverse_schedule(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const ScheduleObject* schedule = schedule_of(self);
  Py_VISIT(schedule->attributes);
  Py_VISIT(schedule->group_list);
  Py_VISIT(schedule->groups);
  Py_VISIT(schedule->keep);
  return 0;
}

int clear_schedule(PyObject* self) {
  ScheduleObject* schedule = schedule_of(self);
  for (PyObject** ref : {&schedule->attributes, &schedule->group_list, &schedule->groups,
                         &schedule->keep})
    Py_XDECREF(std::exchange(*ref, nullptr));
  return 0;
}

bool has_same_groups(const ScheduleObject& schedule) {
  PyObject* list = PyDict_GetItemWithError(schedule.attributes, names.param_groups);
  const Py_ssize_t count = PyTuple_Size(schedule.groups);
  if (list != schedule.group_list || PyList_Size(list) != count) return false;
  for (Py_ssize_t g = 0; g < count; ++g)
    if (PyList_GetItem(list, g) != PyTuple_GetItem(schedule.groups, g)) return false;
  return true;
}

PyObject* step_schedule(PyObject* self, PyObject*) {
  ScheduleObject* schedule = schedule_of(self);
  if (schedule->steps == schedule->limit || !has_same_groups(*schedule)) Py_RETURN_FALSE;
  ++schedule->steps;
  advance(schedule->args);
  Py_RETURN_TRUE;
}

PyObject* take_schedule(PyObject* self, PyObject*) {
  ScheduleObject* schedule = schedule_of(self);
  if (schedule->limit >= 0) schedule->limit -= schedule->steps;
  return PyLong_FromLongLong(std::exchange(schedule->steps, 0));
}

PyMethodDef schedule_methods[] = {
    {"step", step_schedule, METH_NOARGS, "True if the schedule was advanced."},
    {"take", take_schedule, METH_NOARGS, "Advances made since the last take()."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot schedule_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(new_schedule)},
    {Py_tp_dealloc, reinterpret_cast<void*>(deallocate<clear_schedule>)},
    {Py_tp_traverse, reinterpret_cast<void*>(traverse_schedule)},
    {Py_tp_clear, reinterpret_cast<void*>(clear_schedule)},
    {Py_tp_methods, schedule_methods},
    {0, nullptr}};

PyType_Spec schedule_spec = {"fused_sched.engines._native.LeanSchedule", sizeof(ScheduleObject),
                             0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, schedule_slots};

int add_type(PyObject* module, PyType_Spec* spec, const char* name) {
  const Ref type(PyType_FromSpec(spec));
  return type ? PyModule_AddObjectRef(module, name, type.get()) : -1;
}

}  // namespace

int add_lean_types(PyObject* module) {
  if (!intern_names()) return -1;
  if (add_type(module, &lean_spec, "LeanStep") != 0) return -1;
  return add_type(module, &schedule_spec, "LeanSchedule");
}

bool find_getter(PyObject* type, const char* name, PyGetSetDef* out) {
  auto* entry = static_cast<PyGetSetDef*>(
      PyType_GetSlot(reinterpret_cast<PyTypeObject*>(type), Py_tp_getset));
  for (; entry != nullptr && entry->name != nullptr; ++entry) {
    if (std::strcmp(entry->name, name) != 0) continue;
    *out = *entry;
    return true;
  }
  PyErr_Format(PyExc_RuntimeError, "this torch has no attribute Tensor.%s", name);
  return false;
}

PyObject* set_up_lean(PyObject*, PyObject* arguments) {
  PyObject *capsule, *base, *tensor, *profiler, *pre_hooks, *post_hooks;
  if (!PyArg_ParseTuple(arguments, "OO!OOOO", &capsule, &PyType_Type, &base, &tensor, &profiler,
                        &pre_hooks, &post_hooks))
    return nullptr;
  auto* api = static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule, dlpack::kCapsule));
  if (api == nullptr) return nullptr;
  while (api != nullptr && api->major != dlpack::kMajor) api = api->previous;
  if (api == nullptr || api->tensor_from_object == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "this torch offers another DLPack than version 1");
    return nullptr;
  }
  PyGetSetDef grad;
  if (!find_getter(base, "grad", &grad)) return nullptr;
  torch = {api, Py_NewRef(tensor), Py_NewRef(profiler), Py_NewRef(pre_hooks),
           Py_NewRef(post_hooks), grad};
  Py_RETURN_NONE;
}
