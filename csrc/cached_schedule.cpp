// The cached advance: an explicit schedule's step on the CPU, without Python.
//
// As a CachedLaunch, it looks whether the optimizer still has the groups that it was made for, and
// counts what it did.
#include <cstring>

#include "cpu.h"
#include "cached_groups.h"
#include "cached_object.h"

namespace cached {
namespace {

struct ScheduleObject {
  PyObject_HEAD
  AdvanceArgs args;
  int64_t steps, limit;
  PyObject *attributes, *group_list, *groups, *keep;
};

ScheduleObject* schedule_of(PyObject* self) { return reinterpret_cast<ScheduleObject*>(self); }

// CachedSchedule(fields, attributes, group_list, groups, keep, limit): AdvanceArgs as int64; the
// optimizer's dict, its list of groups and a tuple of them; the others as for CachedLaunch.
PyObject* new_schedule(PyTypeObject* type, PyObject* arguments, PyObject*) {
  Bytes fields;
  PyObject *attributes, *group_list, *groups, *keep, *limit;
  if (!PyArg_ParseTuple(arguments, "O&O!O!O!OO", take_bytes, &fields, &PyDict_Type,
                        &attributes, &PyList_Type, &group_list, &PyTuple_Type, &groups, &keep,
                        &limit))
    return nullptr;
  if (fields.size != sizeof(AdvanceArgs)) {
    PyErr_SetString(PyExc_ValueError, "CachedSchedule: the fields' size is wrong");
    return nullptr;
  }
  const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
  PyObject* self = allocate(type, 0);
  if (self == nullptr) return nullptr;
  ScheduleObject* schedule = schedule_of(self);
  std::memcpy(&schedule->args, fields.data, sizeof(AdvanceArgs));
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
  return list == schedule.group_list && holds_all(list, schedule.groups);
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

}  // namespace

PyType_Spec schedule_spec = {"fused_sched.engines._native.CachedSchedule", sizeof(ScheduleObject),
                             0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, schedule_slots};

}  // namespace cached
