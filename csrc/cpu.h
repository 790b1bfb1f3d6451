// The CPU engine, and what each instruction set's variant exports.
#pragma once

#include <cstdint>

#include "structs.h"

// libtorch's at::parallel_for through its C shim (torch >= 2.10), given by Python at run time: the
// library needs no torch to be built and runs with any.
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain,
                                void (*body)(int64_t, int64_t, void*), void* context);

struct Threads {
  ParallelFor parallel_for;
  int64_t count;
};

// Every tensor of a launch by one rule, in one instruction set: cpu_update.h.
using Update = void (*)(const UpdateArgs&, const Threads&);

// A rule of FS_RULES, for the instruction set in use.
struct CpuRule {
  const char* name;
  Update update;
};

void update(const UpdateArgs& args);
void advance(const AdvanceArgs& args);
const char* isa();
const CpuRule* cpu_rules();  // ends with a null name
void set_threads(ParallelFor parallel_for, int32_t (*count)(uint32_t*));
