// The lean call: scheduler.step() of a fused scheduler whose step the last launch has made.
#include "cadence.h"
#include "lean_object.h"

namespace lean {
namespace {

struct CallObject {
  PyObject_HEAD
  Cadence cadence;
  int64_t number;
  PyObject* keep;
};

CallObject* call_of(PyObject* self) { return reinterpret_cast<CallObject*>(self); }

// LeanCall(cadence, number, keep): the address of the words of optim/cadence.py, the scheduler's
// number among the fused ones, and what owns the words.
PyObject* new_call(PyTypeObject* type, PyObject* arguments, PyObject*) {
  unsigned long long words;
  long long number;
  PyObject* keep;
  if (!PyArg_ParseTuple(arguments, "KLO", &words, &number, &keep)) return nullptr;
  const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
  PyObject* self = allocate(type, 0);
  if (self == nullptr) return nullptr;
  CallObject* call = call_of(self);
  call->cadence.words = reinterpret_cast<int64_t*>(words);
  call->number = number;
  call->keep = Py_NewRef(keep);
  return self;
}

int traverse_call(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(call_of(self)->keep);
  return 0;
}

int clear_call(PyObject* self) {
  Py_XDECREF(std::exchange(call_of(self)->keep, nullptr));
  return 0;
}

PyObject* step_call(PyObject* self, PyObject*) {
  return PyBool_FromLong(call_of(self)->cadence.confirm(call_of(self)->number));
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

PyType_Spec call_spec = {"fused_sched.engines._native.LeanCall", sizeof(CallObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, call_slots};

}  // namespace lean
