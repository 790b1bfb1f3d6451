// fused_sched.engines._native: the compiled engine as a Python module (stable ABI of Python 3.10).
#include "lean.h"

#include <cstring>

#include "cpu.h"

namespace {

// Fields as bytes of int64, into a struct of 8-byte fields.
template <class Args>
bool parse(PyObject* fields, Args* out) {
  char* bytes;
  Py_ssize_t size;
  if (PyBytes_AsStringAndSize(fields, &bytes, &size) != 0) return false;
  if (size != sizeof(Args)) {
    PyErr_Format(PyExc_ValueError, "expected %zu bytes of fields, got %zd", sizeof(Args), size);
    return false;
  }
  std::memcpy(out, bytes, sizeof(Args));
  return true;
}

template <class Args, void (*run)(const Args&)>
PyObject* call(PyObject*, PyObject* fields) {
  Args args;
  if (!parse(fields, &args)) return nullptr;
  Py_BEGIN_ALLOW_THREADS
  run(args);
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

PyObject* get_isa(PyObject*, PyObject*) { return PyUnicode_FromString(isa()); }

PyObject* use_threads(PyObject*, PyObject* arguments) {
  unsigned long long run, count;
  if (!PyArg_ParseTuple(arguments, "KK", &run, &count)) return nullptr;
  set_threads(reinterpret_cast<ParallelFor>(run), reinterpret_cast<int32_t (*)(uint32_t*)>(count));
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"update", call<UpdateArgs, update>, METH_O, "One launch; UpdateArgs as bytes of int64."},
    {"advance", call<AdvanceArgs, advance>, METH_O, "A schedule; AdvanceArgs as bytes of int64."},
    {"isa", get_isa, METH_NOARGS, "The instruction set in use."},
    {"use_threads", use_threads, METH_VARARGS, "Addresses of libtorch's parallel_for and count."},
    {"set_up_lean", set_up_lean, METH_VARARGS, "What LeanStep needs of torch."},
    {nullptr, nullptr, 0, nullptr}};

int execute(PyObject* module) { return add_lean_types(module); }

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(execute)}, {0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", nullptr, 0, methods, slots,
                          nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() { return PyModuleDef_Init(&definition); }
