// The lean step: what a step does when nothing changed since the last one, without Python.
#pragma once

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

// set_up_lean(exchange capsule, the base type of tensors, torch.Tensor, the dict of
// torch.autograd.profiler, the two dicts of hooks of all optimizers): what LeanStep needs of torch.
PyObject* set_up_lean(PyObject*, PyObject* arguments);

// Adds the types LeanStep and LeanSchedule to the module; -1 with an error set.
int add_lean_types(PyObject* module);
