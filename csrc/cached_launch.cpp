// The cached launch: what a step does when nothing changed since the last one, without Python.
//
// A CachedLaunch is made by a full step and holds what that step found. Its own step() checks that
// all of it still holds (groups, params, hooks, profiler, scaler, a state that user code holds; on a
// GPU the stream), takes the gradients' addresses, and launches. Where anything is other than it
// was, it does nothing and returns False, and the full step runs. It counts its launches; the
// mirror settles the account before a read.
#include <cstring>
#include <memory>

#include "cached_checks.h"

namespace cached {
namespace {

using namespace fused_sched;

struct CachedObject {
  PyObject_HEAD
  Cached* cached;
};

Cached* cached_of(PyObject* self) { return reinterpret_cast<CachedObject*>(self)->cached; }

// -- made by a full step ------------------------------------------------------------------------

// The fields, and where the gradients' addresses go: on a CPU into a copy of the table's, which
// stays as the last full step has left it; on a GPU they are parameters of the launch.
bool note_launch(Cached& cached, const Bytes& fields, PyObject* device_state) {
  UpdateArgs& args = cached.launch.args;
#ifdef FS_CUDA
  if (fields.size == sizeof(CudaUpdateArgs) && PyDict_Check(device_state)) {
    std::memcpy(&cached.launch, fields.data, sizeof(CudaUpdateArgs));
    cached.where = BY_CUDA;
    cached.stream.note(device_state, cached.launch.device, {cuda_device, cuda_captures, true});
    cached.grads = cached.room(args.tensors);
    return true;
  }
#endif
  if (fields.size != sizeof(UpdateArgs) || device_state != Py_None) {
    PyErr_SetString(PyExc_ValueError, "CachedLaunch: fields of another size");
    return false;
  }
  std::memcpy(&args, fields.data, sizeof(UpdateArgs));
  const int64_t count = args.slots * args.tensors;
  std::memcpy(cached.room(count), args.addresses, count * sizeof(int64_t));
  args.addresses = cached.addresses.get();
  cached.grads = args.addresses + GRAD * args.tensors;
  return true;
}

// The same for a kernel of Triton's, which reads the addresses in a table of its own.
bool note_triton(Cached& cached, const Bytes& fields, PyObject* device_state, int64_t device,
                 PyObject* hooks) {
  if (!PyDict_Check(device_state) || !PyTuple_Check(hooks)) {
    PyErr_SetString(PyExc_TypeError, "TritonStep: the device state is no dict, or hooks no tuple");
    return false;
  }
  if (!cached.triton.note(fields.data, fields.size, hooks)) return false;
  cached.where = BY_TRITON;
  cached.launch.args.advance = COUNTED;
  cached.stream.note(device_state, device, {driver::device, driver::captures, false});
  cached.grads = cached.room(cached.triton.tensors());
  return true;
}

// CachedLaunch(fields, device_state, device, group_list, params, facts, pre_hooks, post_hooks,
//              forced, cadence, keep, limit):
//   fields      UpdateArgs or CudaUpdateArgs as int64
//   device_state  None, or for CudaUpdateArgs the dict of LastStream
//   device      DLPack's type and number of it
//   group_list  optimizer.param_groups
//   params      tuple of all params, in the groups' order
//   facts       int64 [params, 4], see ParamRows::note
//   hooks       the optimizer's dicts
//   forced      dict whose entry None is the engine asked for
//   cadence     address of the words of runtime/cadence.py; 0 where no calls govern
//   keep        whatever owns the memory that fields point at
//   limit       launches until the full step must look, None for no limit
//   hooks       for a TritonStep only, see TritonLaunch::note
PyObject* new_either(PyTypeObject* type, PyObject* arguments, bool triton) {
  Bytes fields, facts;
  dlpack::Device device;
  PyObject *device_state, *group_list, *params, *pre_hooks, *post_hooks, *forced, *keep, *limit;
  PyObject* hooks = nullptr;
  unsigned long long cadence;
  if (!PyArg_ParseTuple(arguments, "O&O(ii)O!O!O&O!O!O!KOO|O", take_bytes, &fields, &device_state,
                        &device.type, &device.number, &PyList_Type, &group_list, &PyTuple_Type,
                        &params, take_bytes, &facts, &PyDict_Type, &pre_hooks, &PyDict_Type,
                        &post_hooks, &PyDict_Type, &forced, &cadence, &keep, &limit, &hooks))
    return nullptr;
  if ((hooks != nullptr) != triton) {
    PyErr_SetString(PyExc_TypeError, "hooks are a TritonStep's, and needed there");
    return nullptr;
  }
  constexpr Py_ssize_t kRow = ParamRows::kFacts * sizeof(int64_t);
  if (facts.size != PyTuple_Size(params) * kRow) {
    PyErr_SetString(PyExc_ValueError, "CachedLaunch: facts of another size");
    return nullptr;
  }
  auto cached = std::make_unique<Cached>();
  cached->pre_hooks = Ref::to(pre_hooks);
  cached->post_hooks = Ref::to(post_hooks);
  cached->forced = Ref::to(forced);
  if (PyObject* engine = PyDict_GetItem(forced, Py_None)) cached->engine = Ref::to(engine);
  cached->cadence.words = reinterpret_cast<int64_t*>(cadence);
  cached->keep = Ref::to(keep);
  const bool noted = triton ? note_triton(*cached, fields, device_state, device.number, hooks)
                            : note_launch(*cached, fields, device_state);
  if (!noted || !parse_limit(limit, &cached->limit) ||
      !cached->groups.note(group_list) || !cached->rows.note(params, facts.data, device))
    return nullptr;
  const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
  PyObject* self = allocate(type, 0);
  if (self != nullptr) reinterpret_cast<CachedObject*>(self)->cached = cached.release();
  return self;
}

PyObject* new_cached(PyTypeObject* type, PyObject* arguments, PyObject*) {
  return new_either(type, arguments, false);
}

PyObject* new_triton(PyTypeObject* type, PyObject* arguments, PyObject*) {
  return new_either(type, arguments, true);
}

int traverse_cached(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const Cached* cached = cached_of(self);
  if (cached == nullptr) return 0;
  for (const Ref* ref : {&cached->pre_hooks, &cached->post_hooks, &cached->forced, &cached->keep})
    Py_VISIT(ref->get());
  if (const int stop = cached->groups.traverse(visit, arg)) return stop;
  Py_VISIT(cached->rows.params());
  Py_VISIT(cached->rows.counters());
  if (const int stop = cached->exposed.traverse(visit, arg)) return stop;
  Py_VISIT(cached->stream.device_state());
  return cached->triton.traverse(visit, arg);
}

int clear_cached(PyObject* self) {
  delete std::exchange(reinterpret_cast<CachedObject*>(self)->cached, nullptr);
  return 0;
}

// -- the type ------------------------------------------------------------------------------------

PyObject* step_or_decline(PyObject* self, PyObject* optimizer, bool seen) {
  Cached* cached = cached_of(self);
  if (cached->running) {
    PyErr_SetString(PyExc_RuntimeError,
                    "step() was called while another thread is in this optimizer's step(); an "
                    "optimizer serves one thread at a time");
    return nullptr;
  }
  return PyBool_FromLong(cached->step(optimizer, seen));
}

PyObject* step_cached(PyObject* self, PyObject* optimizer) {
  return step_or_decline(self, optimizer, false);
}

PyObject* update_cached(PyObject* self, PyObject* optimizer) {
  return step_or_decline(self, optimizer, true);
}

PyObject* watch_cached(PyObject* self, PyObject* arguments) {
  PyObject *keeper, *rows;
  if (!PyArg_ParseTuple(arguments, "O!O!", &PyDict_Type, &keeper, &PyTuple_Type, &rows) ||
      !cached_of(self)->exposed.note(keeper, rows))
    return nullptr;
  Py_RETURN_NONE;
}

PyObject* take_cached(PyObject* self, PyObject*) {
  Cached* cached = cached_of(self);
  if (cached->running) {
    Py_BEGIN_ALLOW_THREADS
    cached->launching.lock();
    cached->launching.unlock();
    Py_END_ALLOW_THREADS
  }
  PyObject* missed = cached->rows.take_missed();
  if (missed == nullptr) return nullptr;
  if (cached->limit >= 0) cached->limit -= cached->steps;
  return Py_BuildValue("LN", static_cast<long long>(std::exchange(cached->steps, 0)), missed);
}

PyObject* renew_cached(PyObject* self, PyObject* limit) {
  if (!parse_limit(limit, &cached_of(self)->limit)) return nullptr;
  Py_RETURN_NONE;
}

PyMethodDef cached_methods[] = {
    {"step", step_cached, METH_O, "step(optimizer): True if the step was made."},
    {"update", update_cached, METH_O,
     "step() where hooks and profiler have seen the step."},
    {"watch", watch_cached, METH_VARARGS,
     "watch(keeper, rows): user code holds the state, see ExposedState::note."},
    {"take", take_cached, METH_NOARGS,
     "(steps made since the last take(), {number of a param: those in which it had no gradient})."},
    {"renew", renew_cached, METH_O, "Another limit."},
    {nullptr, nullptr, 0, nullptr}};

template <PyObject* (*create)(PyTypeObject*, PyObject*, PyObject*)>
PyType_Slot cached_slots[] = {{Py_tp_new, reinterpret_cast<void*>(create)},
                              {Py_tp_dealloc, reinterpret_cast<void*>(deallocate<clear_cached>)},
                              {Py_tp_traverse, reinterpret_cast<void*>(traverse_cached)},
                              {Py_tp_clear, reinterpret_cast<void*>(clear_cached)},
                              {Py_tp_methods, cached_methods},
                              {0, nullptr}};

}  // namespace

constexpr unsigned kFlags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC;

PyType_Spec step_spec = {"fused_sched.engines._native.CachedLaunch", sizeof(CachedObject), 0,
                         kFlags, cached_slots<new_cached>};
PyType_Spec triton_spec = {"fused_sched.engines._native.TritonStep", sizeof(CachedObject), 0,
                           kFlags, cached_slots<new_triton>};

}  // namespace cached
