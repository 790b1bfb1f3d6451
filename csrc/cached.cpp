// What the cached types need of Python and torch, and their way into the module.
#include "cached.h"

#include <cstring>

#include "cached_object.h"

namespace cached {

Torch torch{};
Names names{};

namespace {

bool intern_names() {
  const auto intern = [](PyObject*& name, const char* text) {
    if (name == nullptr) name = PyUnicode_InternFromString(text);
    return name != nullptr;
  };
  return intern(names.is_neg, "is_neg") && intern(names.dict, "__dict__") &&
         intern(names.param_groups, "param_groups") && intern(names.params, "params") &&
         intern(names.grad_scale, "grad_scale") && intern(names.found_inf, "found_inf") &&
         intern(names.profiling, "_is_profiler_enabled") &&
         intern(names.last_stream, "_last_stream") && intern(names.cuda_stream, "cuda_stream") &&
         intern(names.state, "state") && intern(names.step, "step") &&
         intern(names.enter_hook, "launch_enter_hook") &&
         intern(names.exit_hook, "launch_exit_hook") && intern(names.detach, "detach");
}

int add_type(PyObject* module, PyType_Spec* spec, const char* name) {
  const Ref type(PyType_FromSpec(spec));
  return type ? PyModule_AddObjectRef(module, name, type.get()) : -1;
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

}  // namespace
}  // namespace cached

using namespace cached;

int add_cached_types(PyObject* module) {
  if (!intern_names()) return -1;
  if (add_type(module, &step_spec, "CachedLaunch") != 0) return -1;
  if (add_type(module, &triton_spec, "TritonStep") != 0) return -1;
  if (add_type(module, &call_spec, "CachedCall") != 0) return -1;
  return add_type(module, &schedule_spec, "CachedSchedule");
}

PyObject* set_up_cached(PyObject*, PyObject* arguments) {
  PyObject *capsule, *base, *tensor, *profiler, *pre_hooks, *post_hooks, *increment_version;
  if (!PyArg_ParseTuple(arguments, "OO!OOOOO", &capsule, &PyType_Type, &base, &tensor, &profiler,
                        &pre_hooks, &post_hooks, &increment_version))
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
  torch = {api,
           Py_NewRef(tensor),
           Py_NewRef(profiler),
           Py_NewRef(pre_hooks),
           Py_NewRef(post_hooks),
           Py_NewRef(increment_version),
           grad};
  Py_RETURN_NONE;
}
