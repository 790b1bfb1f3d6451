// fused_sched.engines._native: the compiled engine as a Python module (stable ABI of Python 3.10).
#include "cached.h"

#include <cstring>

#include "cpu.h"
#include "driver.h"
#ifdef FS_CUDA  // the architectures that cuda.cu is compiled for, as a string
#include "cuda_engine.h"
#endif

namespace {

// Fields as bytes of int64, into a struct of 8-byte fields.
template <class Args>
bool parse(const Bytes& bytes, Args* out) {
  if (bytes.size != sizeof(Args)) {
    PyErr_Format(PyExc_ValueError, "expected %zu bytes of fields, got %zd", sizeof(Args),
                 bytes.size);
    return false;
  }
  std::memcpy(out, bytes.data, sizeof(Args));
  return true;
}

template <class Args, void (*run)(const Args&)>
PyObject* call(PyObject*, PyObject* fields) {
  Bytes bytes;
  Args args;
  if (!take_bytes(fields, &bytes) || !parse(bytes, &args)) return nullptr;
  Py_BEGIN_ALLOW_THREADS
  run(args);
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

PyObject* get_isa(PyObject*, PyObject*) { return PyUnicode_FromString(isa()); }

// {name: address of its Update}
PyObject* get_rules(PyObject*, PyObject*) {
  PyObject* rules = PyDict_New();
  for (const CpuRule* rule = cpu_rules(); rules != nullptr && rule->name != nullptr; ++rule) {
    PyObject* address = PyLong_FromVoidPtr(reinterpret_cast<void*>(rule->update));
    const int failed = address == nullptr || PyDict_SetItemString(rules, rule->name, address);
    Py_XDECREF(address);
    if (failed) Py_CLEAR(rules);
  }
  return rules;
}

PyObject* get_digest(PyObject*, PyObject*) { return PyUnicode_FromString(FS_DIGEST); }

PyObject* use_threads(PyObject*, PyObject* arguments) {
  unsigned long long run, count;
  if (!PyArg_ParseTuple(arguments, "KK", &run, &count)) return nullptr;
  set_threads(reinterpret_cast<ParallelFor>(run), reinterpret_cast<int32_t (*)(uint32_t*)>(count));
  Py_RETURN_NONE;
}

PyObject* find_driver(PyObject*, PyObject* arguments) {
  const char* name;
  if (!PyArg_ParseTuple(arguments, "s", &name)) return nullptr;
  const char* missing = driver::find(name);
  return missing == nullptr ? Py_NewRef(Py_None) : PyUnicode_FromString(missing);
}

#ifdef FS_CUDA
PyObject* get_cuda_archs(PyObject*, PyObject*) { return PyUnicode_FromString(FS_CUDA); }

PyObject* none_or_raise(const char* error) {
  if (error == nullptr) Py_RETURN_NONE;
  PyErr_Format(PyExc_RuntimeError, "CUDA error: %s", error);
  return nullptr;
}

// Fields, then the gradients' addresses as bytes of int64; none if the device's table has them.
PyObject* update_cuda(PyObject*, PyObject* arguments) {
  const char* error;
  Bytes fields, grads;
  CudaUpdateArgs args;
  if (!PyArg_ParseTuple(arguments, "O&O&", take_bytes, &fields, take_bytes, &grads) ||
      !parse(fields, &args))
    return nullptr;
  Py_BEGIN_ALLOW_THREADS
  error = cuda_update(args, reinterpret_cast<const int64_t*>(grads.data), grads.size / 8);
  Py_END_ALLOW_THREADS
  return none_or_raise(error);
}

PyObject* advance_cuda(PyObject*, PyObject* arguments) {
  const char* error;
  Bytes fields;
  CudaAdvanceArgs args;
  if (!PyArg_ParseTuple(arguments, "O&", take_bytes, &fields) || !parse(fields, &args))
    return nullptr;
  Py_BEGIN_ALLOW_THREADS
  error = cuda_advance(args);
  Py_END_ALLOW_THREADS
  return none_or_raise(error);
}

PyObject* load_cuda(PyObject*, PyObject* arguments) {
  const char* error;
  long long device;
  if (!PyArg_ParseTuple(arguments, "L", &device)) return nullptr;
  Py_BEGIN_ALLOW_THREADS
  error = cuda_load(device);
  Py_END_ALLOW_THREADS
  return none_or_raise(error);
}
#else
PyObject* get_cuda_archs(PyObject*, PyObject*) { return PyUnicode_FromString(""); }
#endif

PyMethodDef methods[] = {
    {"update", call<UpdateArgs, update>, METH_O, "One launch; UpdateArgs as bytes of int64."},
    {"advance", call<AdvanceArgs, advance>, METH_O, "A schedule; AdvanceArgs as bytes of int64."},
    {"isa", get_isa, METH_NOARGS, "The instruction set in use."},
    {"rules", get_rules, METH_NOARGS, "Addresses of the rules in it, by name."},
    {"digest", get_digest, METH_NOARGS, "What it was compiled from, as a hash."},
    {"use_threads", use_threads, METH_VARARGS, "Addresses of libtorch's parallel_for and count."},
    {"set_up_cached", set_up_cached, METH_VARARGS, "What CachedLaunch needs of torch."},
    {"find_driver", find_driver, METH_VARARGS,
     "Finds CUDA's driver in a library, for TritonStep; None, or what is missing."},
    {"cuda_archs", get_cuda_archs, METH_NOARGS, "Those it has CUDA code for; empty: none."},
#ifdef FS_CUDA
    {"cuda_update", update_cuda, METH_VARARGS, "CudaUpdateArgs and gradients, bytes of int64."},
    {"cuda_advance", advance_cuda, METH_VARARGS, "CudaAdvanceArgs as bytes of int64."},
    {"cuda_load", load_cuda, METH_VARARGS, "Loads every kernel on a device."},
#endif
    {nullptr, nullptr, 0, nullptr}};

int execute(PyObject* module) {
#ifdef FS_CUDA
  if (PyModule_AddIntConstant(module, "CUDA_GRADIENTS", kCudaGradients) != 0) return -1;
#endif
  return add_cached_types(module);
}

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(execute)}, {0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", nullptr, 0, methods, slots,
                          nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() { return PyModuleDef_Init(&definition); }
