// What Python passes to the CPU engine, and what each instruction set's variant exports.
#pragma once

#include <cstdint>

// libtorch's at::parallel_for through its C shim (torch >= 2.10), given by Python at run time: the
// library needs no torch to be built and runs with any.
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain,
                                void (*body)(int64_t, int64_t, void*), void* context);

// Every field is 8 bytes: Python fills it as an array of int64.
struct UpdateArgs {
  int64_t* addresses;   // [slots, tensors]
  const int64_t* info;  // [INFO, tensors]
  int64_t* offsets;     // [params], launches that each param missed
  double* record;       // [2, columns, groups]
  int64_t* clock;       // [CLOCK_WORDS]
  int64_t* ops;         // [rows, OP_WORDS]
  double* lanes;        // [rows, LANE_WORDS, groups]
  const double* aux;
  const float* scale;      // null: gradients are not scaled
  const float* found_inf;  // null: no scaler
  const int64_t* kinds;    // [kinds, 3] DType of param, grad, state
  int64_t* ends;           // [tensors], scratch
  int64_t rows, slots, tensors, columns, groups;
  int64_t rule;     // on the CPU an Update, of cpu_rules(); in cuda.cu its number in FS_RULES
  int64_t advance;  // Advance
};

struct AdvanceArgs {
  double* record;
  int64_t* clock;
  int64_t* ops;
  double* lanes;
  const double* aux;
  double* trace;         // null, or [steps, columns, groups]
  const double* metric;  // null, or [1]
  int64_t rows, columns, groups, steps;
};

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
