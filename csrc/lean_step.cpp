// The lean step: what a step does when nothing changed since the last one, without Python.
//
// A LeanStep is made by a whole step and holds what that step found. Its own step() looks whether
// all of it still holds (groups, params, hooks, profiler, scaler, a state that somebody holds; on a
// GPU the stream), takes the gradients' addresses, and launches. Where anything is other than it
// was, it does nothing and returns False, and the whole step runs. It counts its launches; the
// mirror settles the account when somebody reads.
#include <cstring>
#include <memory>
#include <mutex>

#include "cadence.h"
#include "cuda.h"
#include "layout.h"
#include "lean_groups.h"
#include "lean_members.h"
#include "lean_object.h"
#include "lean_state.h"
#ifdef FS_CUDA
#include "lean_stream.h"
#endif

namespace lean {
namespace {

using namespace fused_sched;

constexpr int64_t kRelease = 1 << 16;  // elements from which on other Python threads may run

// Whether a dict has no value under a key, or None.
bool lacks(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  return value == nullptr || value == Py_None;
}

struct Lean {
  CudaUpdateArgs launch;  // on a CPU only its `args`
  bool on_gpu = false;
  int64_t steps = 0;
  int64_t limit = -1;  // launches until the whole step must look; -1: none
  Cadence cadence;     // of the fused schedules, where calls govern them
  bool running = false;
  std::mutex launching;  // held by the launch without the GIL, so that take() can wait for it
  Ref pre_hooks, post_hooks, forced, engine, keep;
  Groups groups;
  Members members;
  ShownState shown;
  std::unique_ptr<int64_t[]> addresses;
  int64_t* grads = nullptr;  // in `addresses`
#ifdef FS_CUDA
  LastStream stream;
#endif

  bool nobody_scales(PyObject* attributes) const {
    return lacks(attributes, names.found_inf) && lacks(attributes, names.grad_scale);
  }

  bool nobody_listens() const {
    return PyDict_Size(pre_hooks.get()) == 0 && PyDict_Size(post_hooks.get()) == 0 &&
           PyDict_Size(torch.pre_hooks) == 0 && PyDict_Size(torch.post_hooks) == 0 &&
           PyDict_GetItemWithError(torch.profiler, names.profiling) == Py_False;
  }

  // `told`: whoever listens to steps has been told of this one.
  bool step(PyObject* optimizer, bool told) {
    if (steps == limit || PyDict_GetItem(forced.get(), Py_None) != engine.get()) return false;
    if (!cadence.guess(&launch.args.advance)) return false;
    const Ref attributes(PyObject_GetAttr(optimizer, names.dict));
    if (!attributes) {
      PyErr_Clear();
      return false;
    }
    if (!nobody_scales(attributes.get()) || !(told || nobody_listens())) return false;
    if (!groups.same(attributes.get(), members)) return false;
    if (shown.watched() && !shown.unchanged()) return false;
#ifdef FS_CUDA
    if (on_gpu) return update_on_gpu();
#endif
    return update_on_cpu();
  }

#ifdef FS_CUDA
  // Where the launch queue is full a launch waits, and what it waits for may need the GIL. It counts
  // once it is made, before another thread can ask; one that fails is left to the whole step, which
  // raises.
  bool update_on_gpu() {
    if (running || !stream.take_current(&launch.stream) || !members.take_gradients(grads) ||
        !members.bump_versions())
      return false;
    const char* failed;
    running = true;
    launching.lock();
    Py_BEGIN_ALLOW_THREADS
    failed = cuda_update(launch, grads, launch.args.tensors);
    Py_END_ALLOW_THREADS
    if (failed == nullptr) count_launch();
    launching.unlock();
    running = false;
    return failed == nullptr;
  }
#endif

  bool update_on_cpu() {
    if (!members.take_gradients(grads) || !members.bump_versions()) return false;
    count_launch();  // before another thread can ask for it
    if (members.elements() < kRelease) {
      update(launch.args);
      return true;
    }
    running = true;
    launching.lock();
    Py_BEGIN_ALLOW_THREADS
    update(launch.args);
    launching.unlock();
    Py_END_ALLOW_THREADS
    running = false;
    return true;
  }

  void count_launch() {
    ++steps;
    members.count_launch();
    cadence.count_launch(launch.args.advance);
    if (shown.watched()) shown.count_launch(grads);
  }
};

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
    lean.on_gpu = true;
    lean.stream.note(plan, lean.launch.device);
    lean.addresses.reset(new int64_t[args.tensors]);
    lean.grads = lean.addresses.get();
    return true;
  }
#endif
  if (fields.size != sizeof(UpdateArgs) || plan != Py_None) {
    PyErr_SetString(PyExc_ValueError, "LeanStep: fields of another size");
    return false;
  }
  std::memcpy(&args, fields.data, sizeof(UpdateArgs));
  const int64_t count = SLOTS * args.tensors;
  lean.addresses.reset(new int64_t[count]);
  std::memcpy(lean.addresses.get(), args.addresses, count * sizeof(int64_t));
  args.addresses = lean.addresses.get();
  lean.grads = args.addresses + GRAD * args.tensors;
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
//   cadence     address of the words of optim/cadence.py; 0 where no calls govern
//   keep        whatever owns the memory that fields point at
//   limit       launches until the whole step must look, None for no limit
PyObject* new_lean(PyTypeObject* type, PyObject* arguments, PyObject*) {
  Bytes fields, facts;
  dlpack::Device device;
  PyObject *plan, *group_list, *params, *pre_hooks, *post_hooks, *forced, *keep, *limit;
  unsigned long long cadence;
  if (!PyArg_ParseTuple(arguments, "O&O(ii)O!O!O&O!O!O!KOO", take_bytes, &fields, &plan,
                        &device.type, &device.number, &PyList_Type, &group_list, &PyTuple_Type,
                        &params, take_bytes, &facts, &PyDict_Type, &pre_hooks, &PyDict_Type,
                        &post_hooks, &PyDict_Type, &forced, &cadence, &keep, &limit))
    return nullptr;
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
  if (!parse_limit(limit, &lean->limit) || !note_launch(*lean, fields, plan) ||
      !lean->groups.note(group_list) || !lean->members.note(params, facts.data, device))
    return nullptr;
  const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
  PyObject* self = allocate(type, 0);
  if (self != nullptr) reinterpret_cast<LeanObject*>(self)->lean = lean.release();
  return self;
}

int traverse_lean(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const Lean* lean = lean_of(self);
  if (lean == nullptr) return 0;
  for (const Ref* ref : {&lean->pre_hooks, &lean->post_hooks, &lean->forced, &lean->keep})
    Py_VISIT(ref->get());
  if (const int stop = lean->groups.traverse(visit, arg)) return stop;
  Py_VISIT(lean->members.params());
  Py_VISIT(lean->members.table());
  if (const int stop = lean->shown.traverse(visit, arg)) return stop;
#ifdef FS_CUDA
  Py_VISIT(lean->stream.plan());
#endif
  return 0;
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

PyType_Slot lean_slots[] = {{Py_tp_new, reinterpret_cast<void*>(new_lean)},
                            {Py_tp_dealloc, reinterpret_cast<void*>(deallocate<clear_lean>)},
                            {Py_tp_traverse, reinterpret_cast<void*>(traverse_lean)},
                            {Py_tp_clear, reinterpret_cast<void*>(clear_lean)},
                            {Py_tp_methods, lean_methods},
                            {0, nullptr}};

}  // namespace

PyType_Spec step_spec = {"fused_sched.engines._native.LeanStep", sizeof(LeanObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, lean_slots};

}  // namespace lean
