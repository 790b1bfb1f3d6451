// The lean step: what a step does when nothing changed since the last one, without Python.
//
// A LeanStep is made by a whole step and holds what that step found. Its own step() looks whether
// all of it still holds (groups, params, hooks, profiler, scaler, a state that somebody holds; on a
// GPU the stream), takes the gradients' addresses, and launches. Where anything is other than it
// was, it does nothing and returns False, and the whole step runs. It counts its launches; the
// mirror settles the account when somebody reads.
#include <cstring>
#include <memory>

#include "lean_checks.h"

namespace lean {
namespace {

using namespace fused_sched;

struct LeanObject {
  PyObject_HEAD
  Lean* lean;
};

Lean* lean_of(PyObject* self) { return reinterpret_cast<LeanObject*>(self)->lean; }

// -- made by a whole step ------------------------------------------------------------------------

// The fields, and where the gradients' addresses go: on a CPU into a copy of the table's, which
// stays as the last whole step has left it; on a GPU they are parameters of the launch.
bool note_launch(Lean& lean, const Bytes& fields, PyObject* plan) {
  UpdateArgs& args = lean.launch.args;
#ifdef FS_CUDA
  if (fields.size == sizeof(CudaUpdateArgs) && PyDict_Check(plan)) {
    std::memcpy(&lean.launch, fields.data, sizeof(CudaUpdateArgs));
    lean.where = BY_CUDA;
    lean.stream.note(plan, lean.launch.device, {cuda_device, cuda_captures, true});
    lean.grads = lean.room(args.tensors);
    return true;
  }
#endif
  if (fields.size != sizeof(UpdateArgs) || plan != Py_None) {
    PyErr_SetString(PyExc_ValueError, "LeanStep: fields of another size");
    return false;
  }
  std::memcpy(&args, fields.data, sizeof(UpdateArgs));
  const int64_t count = args.slots * args.tensors;
  std::memcpy(lean.room(count), args.addresses, count * sizeof(int64_t));
  args.addresses = lean.addresses.get();
  lean.grads = args.addresses + GRAD * args.tensors;
  return true;
}

// The same for a kernel of Triton's, which reads the addresses in a table of its own.
bool note_triton(Lean& lean, const Bytes& fields, PyObject* plan, int64_t device, PyObject* hooks) {
  if (!PyDict_Check(plan) || !PyTuple_Check(hooks)) {
    PyErr_SetString(PyExc_TypeError, "TritonStep: plan is no dict, or hooks no tuple");
    return false;
  }
  if (!lean.triton.note(fields.data, fields.size, hooks)) return false;
  lean.where = BY_TRITON;
  lean.launch.args.advance = COUNTED;
  lean.stream.note(plan, device, {driver::device, driver::captures, false});
  lean.grads = lean.room(lean.triton.tensors());
  return true;
}

// LeanStep(fields, plan, device, group_list, params, facts, pre_hooks, post_hooks, forced, cadence,
//          keep, limit):
//   fields      UpdateArgs or CudaUpdateArgs as int64
//   plan        None, or for CudaUpdateArgs the dict of LastStream
//   device      DLPack's type and number of it
//   group_list  optimizer.param_groups
//   params      tuple of all params, in the groups' order
//   facts       int64 [params, 4], see Members::note
//   hooks       the optimizer's dicts
//   forced      dict whose entry None is the engine asked for
//   cadence     address of the words of runtime/cadence.py; 0 where no calls govern
//   keep        whatever owns the memory that fields point at
//   limit       launches until the whole step must look, None for no limit
//   hooks       for a TritonStep alone, see TritonLaunch::note
PyObject* new_either(PyTypeObject* type, PyObject* arguments, bool triton) {
  Bytes fields, facts;
  dlpack::Device device;
  PyObject *plan, *group_list, *params, *pre_hooks, *post_hooks, *forced, *keep, *limit;
  PyObject* hooks = nullptr;
  unsigned long long cadence;
  if (!PyArg_ParseTuple(arguments, "O&O(ii)O!O!O&O!O!O!KOO|O", take_bytes, &fields, &plan,
                        &device.type, &device.number, &PyList_Type, &group_list, &PyTuple_Type,
                        &params, take_bytes, &facts, &PyDict_Type, &pre_hooks, &PyDict_Type,
                        &post_hooks, &PyDict_Type, &forced, &cadence, &keep, &limit, &hooks))
    return nullptr;
  if ((hooks != nullptr) != triton) {
    PyErr_SetString(PyExc_TypeError, "hooks are a TritonStep's, and needed there");
    return nullptr;
  }
  constexpr Py_ssize_t kRow = Members::kFacts * sizeof(int64_t);
  if (facts.size != PyTuple_Size(params) * kRow) {
    PyErr_SetString(PyExc_ValueError, "LeanStep: facts of another size");
    return nullptr;
  }
  auto lean = std::make_unique<Lean>();
  lean->pre_hooks = Ref::to(pre_hooks);
  lean->post_hooks = Ref::to(post_hooks);
  lean->forced = Ref::to(forced);
  if (PyObject* engine = PyDict_GetItem(forced, Py_None)) lean->engine = Ref::to(engine);
  lean->cadence.words = reinterpret_cast<int64_t*>(cadence);
  lean->keep = Ref::to(keep);
  const bool noted = triton ? note_triton(*lean, fields, plan, device.number, hooks)
                            : note_launch(*lean, fields, plan);
  if (!noted || !parse_limit(limit, &lean->limit) ||
      !lean->groups.note(group_list) || !lean->members.note(params, facts.data, device))
    return nullptr;
  const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
  PyObject* self = allocate(type, 0);
  if (self != nullptr) reinterpret_cast<LeanObject*>(self)->lean = lean.release();
  return self;
}

PyObject* new_lean(PyTypeObject* type, PyObject* arguments, PyObject*) {
  return new_either(type, arguments, false);
}

PyObject* new_triton(PyTypeObject* type, PyObject* arguments, PyObject*) {
  return new_either(type, arguments, true);
}

int traverse_lean(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const Lean* lean = lean_of(self);
  if (lean == nullptr) return 0;
  for (const Ref* ref : {&lean->pre_hooks, &lean->post_hooks, &lean->forced, &lean->keep})
    Py_VISIT(ref->get());
  if (const int stop = lean->groups.traverse(visit, arg)) return stop;
  Py_VISIT(lean->members.params());
  Py_VISIT(lean->members.counters());
  if (const int stop = lean->shown.traverse(visit, arg)) return stop;
  Py_VISIT(lean->stream.plan());
  return lean->triton.traverse(visit, arg);
}

int clear_lean(PyObject* self) {
  delete std::exchange(reinterpret_cast<LeanObject*>(self)->lean, nullptr);
  return 0;
}

// -- the type ------------------------------------------------------------------------------------

PyObject* step_or_decline(PyObject* self, PyObject* optimizer, bool told) {
  Lean* lean = lean_of(self);
  if (lean->running) {
    PyErr_SetString(PyExc_RuntimeError,
                    "step() was called while another thread is in this optimizer's step(); an "
                    "optimizer serves one thread at a time");
    return nullptr;
  }
  return PyBool_FromLong(lean->step(optimizer, told));
}

PyObject* step_lean(PyObject* self, PyObject* optimizer) {
  return step_or_decline(self, optimizer, false);
}

PyObject* update_lean(PyObject* self, PyObject* optimizer) {
  return step_or_decline(self, optimizer, true);
}

PyObject* watch_lean(PyObject* self, PyObject* arguments) {
  PyObject *keeper, *rows;
  if (!PyArg_ParseTuple(arguments, "O!O!", &PyDict_Type, &keeper, &PyTuple_Type, &rows) ||
      !lean_of(self)->shown.note(keeper, rows))
    return nullptr;
  Py_RETURN_NONE;
}

PyObject* take_lean(PyObject* self, PyObject*) {
  Lean* lean = lean_of(self);
  if (lean->running) {
    Py_BEGIN_ALLOW_THREADS
    lean->launching.lock();
    lean->launching.unlock();
    Py_END_ALLOW_THREADS
  }
  PyObject* missed = lean->members.take_missed();
  if (missed == nullptr) return nullptr;
  if (lean->limit >= 0) lean->limit -= lean->steps;
  return Py_BuildValue("LN", static_cast<long long>(std::exchange(lean->steps, 0)), missed);
}

PyObject* renew_lean(PyObject* self, PyObject* limit) {
  if (!parse_limit(limit, &lean_of(self)->limit)) return nullptr;
  Py_RETURN_NONE;
}

PyMethodDef lean_methods[] = {
    {"step", step_lean, METH_O, "step(optimizer): True if the step was made."},
    {"update", update_lean, METH_O, "step() where hooks and profiler have been told of the step."},
    {"watch", watch_lean, METH_VARARGS,
     "watch(keeper, rows): somebody holds the state, see ShownState::note."},
    {"take", take_lean, METH_NOARGS,
     "(steps made since the last take(), {number of a param: those in which it had no gradient})."},
    {"renew", renew_lean, METH_O, "Another limit."},
    {nullptr, nullptr, 0, nullptr}};

template <PyObject* (*create)(PyTypeObject*, PyObject*, PyObject*)>
PyType_Slot lean_slots[] = {{Py_tp_new, reinterpret_cast<void*>(create)},
                            {Py_tp_dealloc, reinterpret_cast<void*>(deallocate<clear_lean>)},
                            {Py_tp_traverse, reinterpret_cast<void*>(traverse_lean)},
                            {Py_tp_clear, reinterpret_cast<void*>(clear_lean)},
                            {Py_tp_methods, lean_methods},
                            {0, nullptr}};

}  // namespace

constexpr unsigned kFlags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC;

PyType_Spec step_spec = {"fused_sched.engines._native.LeanStep", sizeof(LeanObject), 0, kFlags,
                         lean_slots<new_lean>};
PyType_Spec triton_spec = {"fused_sched.engines._native.TritonStep", sizeof(LeanObject), 0, kFlags,
                           lean_slots<new_triton>};

}  // namespace lean
