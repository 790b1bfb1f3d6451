// The cached call: scheduler.step() of a fused scheduler whose step the last launch has made.
#include "cadence.h"
#include "cached_groups.h"
#include "cached_object.h"

namespace cached {
namespace {

struct CallObject {
  PyObject_HEAD
  Cadence cadence;
  int64_t number;
  PyObject *attributes, *groups, *keep;
};

CallObject* call_of(PyObject* self) { return reinterpret_cast<CallObject*>(self); }

// CachedCall(cadence, number, attributes, groups, keep): the address of the words of
// runtime/cadence.py, the scheduler's number among the fused ones, the optimizer's dict, a tuple of
// its groups, and what owns the words.
PyObject* new_call(PyTypeObject* type, PyObject* arguments, PyObject*) {
  unsigned long long words;
  long long number;
  PyObject *attributes, *groups, *keep;
  if (!PyArg_ParseTuple(arguments, "KLO!O!O", &words, &number, &PyDict_Type, &attributes,
                        &PyTuple_Type, &groups, &keep))
    return nullptr;
  const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
  PyObject* self = allocate(type, 0);
  if (self == nullptr) return nullptr;
  CallObject* call = call_of(self);
  call->cadence.words = reinterpret_cast<int64_t*>(words);
  call->number = number;
  call->attributes = Py_NewRef(attributes);
  call->groups = Py_NewRef(groups);
  call->keep = Py_NewRef(keep);
  return self;
}

int traverse_call(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(call_of(self)->attributes);
  Py_VISIT(call_of(self)->groups);
  Py_VISIT(call_of(self)->keep);
  return 0;
}

int clear_call(PyObject* self) {
  CallObject* call = call_of(self);
  for (PyObject** ref : {&call->attributes, &call->groups, &call->keep})
    Py_XDECREF(std::exchange(*ref, nullptr));
  return 0;
}

PyObject* step_call(PyObject* self, PyObject*) {
  const CallObject* call = call_of(self);
  PyObject* groups = PyDict_GetItemWithError(call->attributes, names.param_groups);
  const bool same = groups != nullptr && PyList_Check(groups) && holds_all(groups, call->groups);
  return PyBool_FromLong(same && call->cadence.confirm(call->number));
}

PyMethodDef call_methods[] = {
    {"step", step_call, METH_NOARGS, "True if the last launch has made this step."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot call_slots[] = {{Py_tp_new, reinterpret_cast<void*>(new_call)},
                            {Py_tp_dealloc, reinterpret_cast<void*>(deallocate<clear_call>)},
                            {Py_tp_traverse, reinterpret_cast<void*>(traverse_call)},
                            {Py_tp_clear, reinterpret_cast<void*>(clear_call)},
                            {Py_tp_methods, call_methods},
                            {0, nullptr}};

}  // namespace

PyType_Spec call_spec = {"fused_sched.engines._native.CachedCall", sizeof(CallObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, call_slots};

}  // namespace cached
