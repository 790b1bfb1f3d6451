// The CPU engine: a launch, the schedule alone, and the choice of the instruction set.
#include "cpu.h"

#include <cstdlib>
#include <cstring>

#include "rule_list.h"
#include "schedule.h"

#define FS_DECLARE(rule) void update_##rule(const UpdateArgs&, const Threads&);
#define FS_ENTRY(rule) {#rule, update_##rule},
#define FS_VARIANT(isa)                                                 \
  namespace isa {                                                       \
  FS_RULES(FS_DECLARE)                                                  \
  const CpuRule rules[] = {FS_RULES(FS_ENTRY){nullptr, nullptr}};       \
  }
#if defined(__x86_64__)
FS_VARIANT(avx512bf16)
FS_VARIANT(avx512)
FS_VARIANT(avx2)
#endif
FS_VARIANT(baseline)

namespace {

struct Variant {
  const char* name;
  const CpuRule* rules;
};

// The best that the processor has; FUSED_SCHED_ISA forces one, for tests.
Variant choose() {
  const char* forced = std::getenv("FUSED_SCHED_ISA");
  const auto wanted = [forced](const char* name) {
    return forced == nullptr || *forced == 0 || std::strcmp(forced, name) == 0;
  };
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("f16c");
  if (v4 && __builtin_cpu_supports("avx512bf16") && wanted("avx512bf16"))
    return {"avx512bf16", avx512bf16::rules};
  if (v4 && wanted("avx512")) return {"avx512", avx512::rules};
  if (v3 && wanted("avx2")) return {"avx2", avx2::rules};
#endif
  return {"baseline", baseline::rules};
}

const Variant& variant() {
  static const Variant chosen = choose();
  return chosen;
}

ParallelFor parallel_for = nullptr;
int32_t (*thread_count)(uint32_t*) = nullptr;

Threads threads() {
  uint32_t count = 1;
  if (parallel_for == nullptr || thread_count(&count) != 0) count = 1;
  return {parallel_for, count};
}

}  // namespace

const char* isa() { return variant().name; }
const CpuRule* cpu_rules() { return variant().rules; }

void set_threads(ParallelFor run, int32_t (*count)(uint32_t*)) {
  parallel_for = run;
  thread_count = count;
}

// See Note [One launch]: found_inf stops everything but a schedule that advances all the same.
void update(const UpdateArgs& args) {
  using namespace fused_sched;
  const bool skipped = args.found_inf != nullptr && *args.found_inf != 0.0f;
  const int64_t parity = args.clock[CLOCK] & 1, half = args.columns * args.groups;
  double* current = args.record + parity * half;
  double* next = args.record + (1 - parity) * half;
  if (!skipped) reinterpret_cast<Update>(args.rule)(args, threads());
  const Program program{args.ops, args.lanes, args.aux, args.rows, args.groups};
  run_program(program, {current, next, skipped ? current : next},
              {args.clock, args.clock[CLOCK], 0.0, skipped, args.advance});
  args.clock[CLOCK] += !skipped;
}

// The schedule alone, `steps` times: explicit mode. Both halves are written.
void advance(const AdvanceArgs& args) {
  using namespace fused_sched;
  const int64_t half = args.columns * args.groups;
  double* current = args.record + (args.clock[CLOCK] & 1) * half;
  const Program program{args.ops, args.lanes, args.aux, args.rows, args.groups};
  const Halves halves{current, args.record, args.record + half};
  const double metric = args.metric == nullptr ? 0.0 : *args.metric;
  for (int64_t n = 0; n < args.steps; ++n) {
    run_program(program, halves, {args.clock, args.clock[CLOCK], metric, false, COUNTED});
    if (args.trace != nullptr) std::memcpy(args.trace + n * half, current, half * sizeof(double));
  }
}
