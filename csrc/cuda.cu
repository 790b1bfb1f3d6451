// The CUDA engine: one kernel per step. See Note [One launch] in fused_sched/kernels/update.py.
#include "cuda_engine.h"

#include <cuda_runtime.h>

#include <cstring>

#include "cuda_chunk.h"
#include "cuda_device.h"
#include "rule_list.h"
#include "rules.h"
#include "schedule.h"

namespace fused_sched {
namespace {

constexpr int kBlocks = 8;      // on a multiprocessor at once: at most 64 registers a thread
constexpr int kWideBlocks = 4;  // with float64: 128

template <int N>
struct Gradients {
  int64_t at[N];
};

// -- a launch's clock ----------------------------------------------------------------------------

FS_DEVICE bool is_skipped(const UpdateArgs& args) {
  return args.found_inf != nullptr && *args.found_inf != 0.0f;
}

constexpr unsigned long long kTurn = 1ull << TURN_BITS;
constexpr int kDrawer = kThreads - 1;

// What a block's threads know of the step. One of them asks, with the one atomic add of Note [One
// launch]: what it returns is the clock below TURN_BITS, and above them the block's ticket. It is
// relaxed, as that note says why.
struct Step {
  int64_t clock;
  bool skipped;

  FS_DEVICE void ask(const UpdateArgs& args) {
    if (threadIdx.x != kDrawer) return;
    auto* word = reinterpret_cast<unsigned long long*>(args.clock + CLOCK);
    const auto drawn = atomicAdd(word, kTurn);
    skipped = is_skipped(args);
    clock = static_cast<int64_t>(drawn & (kTurn - 1));
    // With the last ticket every block has its clock: the word is the next launch's from here on.
    const unsigned long long blocks = gridDim.x;
    if (drawn >> TURN_BITS == blocks - 1) atomicAdd(word, (skipped ? 0 : 1) - blocks * kTurn);
  }
};

// -- the update ----------------------------------------------------------------------------------

template <class R, class C, bool kWide>
FS_DEVICE void update_chunk(const Launch& launch, const Arrays<R::kStates>& arrays, const Step& now,
                            int64_t group, int64_t missed) {
  __shared__ Coefficients<R, C> with;
  constexpr bool kNarrow = sizeof(C) == sizeof(float);
  const bool unscales = launch.args.scale != nullptr;
  Packs<R::kStates> packs[kPlaces<R>];
  if (kNarrow && arrays.all_aligned) {
#pragma unroll
    for (int n = 0; n < kPlaces<R>; ++n)
      load_place<R>(arrays, threadIdx.x + n * kThreads, packs[n]);
  }
  // Once a block, while the first loads are under way: the rule's coefficients take float64.
  if (threadIdx.x == 0) with.set(launch.args, group, now.clock, now.clock - missed + 1);
  __syncthreads();
  if constexpr (kNarrow) {
    if (!kWide || arrays.is_packed()) {
      if (arrays.all_aligned) run_packs<R, true>(arrays, with, unscales, packs);
      else run_packs<R, false>(arrays, with, unscales, packs);
      update_edges(arrays, with, unscales);
      return;
    }
  }
  if constexpr (kWide) update_scattered(arrays, with, unscales);
}

// Block i + 1 owns chunk i. One thread finds what the coefficients depend on, one the arrays.
template <template <class> class Rule, bool kWide>
FS_DEVICE void update_tensor(const Launch& launch, const int64_t* grads) {
  __shared__ Step now;
  __shared__ Arrays<Rule<float>::kStates> arrays;
  const UpdateArgs& args = launch.args;
  const int64_t i = blockIdx.x - 1, chunks = gridDim.x - 1;
  const int64_t t = launch.chunks[i], number = launch.chunks[chunks + i];
  now.ask(args);
  int64_t group = 0, missed = 0;
  if (threadIdx.x == 0) {
    group = args.info[GROUP * args.tensors + t];
    missed = args.offsets[args.info[PARAM_INDEX * args.tensors + t]];
  }
  if (threadIdx.x == kWarp) arrays.set(launch, grads, t, number);
  __syncthreads();
  if (now.skipped) return;
  if (arrays.missing) {  // its step stands still
    if (number == 0 && threadIdx.x == 0)
      args.offsets[args.info[PARAM_INDEX * args.tensors + t]] = missed + 1;
  } else if (kWide && arrays.dtype[PARAM] == FLOAT64) {
    update_chunk<Rule<double>, double, kWide>(launch, arrays, now, group, missed);
  } else {
    update_chunk<Rule<float>, float, kWide>(launch, arrays, now, group, missed);
  }
}

// -- the schedule --------------------------------------------------------------------------------

// The rows of a program, some at a time in shared memory: all of them for most programs, after one
// load of 16 bytes for each thread. A lane then waits for no row.
constexpr int kTile = kThreads / (OP_WORDS / 2);
struct alignas(16) Tile {
  int64_t words[kTile][OP_WORDS];
};

class Rows {
 public:
  FS_DEVICE Rows(const int64_t* ops, int64_t rows, Tile& tile)
      : ops_(ops), words_(static_cast<int>(rows) * OP_WORDS), tile_(tile) {}

  // This thread's share of the rows from `row` on.
  FS_DEVICE longlong2 fetch(int row) const {
    const int word = row * OP_WORDS + 2 * threadIdx.x;
    if (word >= words_) return {0, 0};
    return *reinterpret_cast<const longlong2*>(ops_ + word);
  }

  FS_DEVICE void keep(longlong2 words, int row) {
    reinterpret_cast<longlong2*>(tile_.words)[threadIdx.x] = words;
    first_ = row;
  }

  // For every thread of the block at once.
  FS_DEVICE const int64_t* at(int row) {
    if (row < first_ || row >= first_ + kTile) {
      __syncthreads();
      keep(fetch(row), row);
      __syncthreads();
    }
    return tile_.words[row - first_];
  }

 private:
  const int64_t* ops_;
  int words_;
  Tile& tile_;
  int first_ = -kTile;
};

FS_DEVICE void run_lanes(const Program& program, Rows& rows, const Halves& halves,
                         const Turn& turn) {
  const int groups = static_cast<int>(program.groups);
  for (int first = 0; first < groups; first += kThreads) {
    const bool last = threadIdx.x == 0 && first + kThreads >= groups;
    run_lane(program, rows, halves, turn, first + threadIdx.x, last);
  }
}

FS_DEVICE void run_schedule(const UpdateArgs& args) {
  __shared__ Step now;
  __shared__ Tile tile;
  // Read where they are used: in registers the rows would have too few.
  __shared__ Program program;
  __shared__ Halves halves;
  __shared__ Turn turn;
  Rows rows(args.ops, args.rows, tile);
  const longlong2 first_rows = rows.fetch(0);
  now.ask(args);
  rows.keep(first_rows, 0);
  if (threadIdx.x == kDrawer) {
    const int64_t half = args.columns * args.groups, parity = now.clock & 1;
    double* current = args.record + parity * half;
    double* next = args.record + (1 - parity) * half;
    halves = {current, next, now.skipped ? current : next};
    turn = {args.clock, now.clock, 0.0, now.skipped, args.advance};
    program = {args.ops, args.lanes, args.aux, args.rows, args.groups};
  }
  __syncthreads();
  run_lanes(program, rows, halves, turn);
}

// -- the kernels ---------------------------------------------------------------------------------

template <template <class> class Rule, bool kWide, int N>
__global__ void __launch_bounds__(kThreads, kWide ? kWideBlocks : kBlocks)
update_kernel(const __grid_constant__ Launch launch, const __grid_constant__ Gradients<N> grads) {
  if (blockIdx.x == 0) run_schedule(launch.args);
  else update_tensor<Rule, kWide>(launch, grads.at);
}

// The schedule alone, `steps` times: explicit mode. Both halves are written. With a block of its
// own on a multiprocessor it may take the registers that it wants.
__global__ void __launch_bounds__(kThreads, 1)
advance_kernel(const __grid_constant__ AdvanceArgs args) {
  const int64_t half = args.columns * args.groups;
  double* current = args.record + (args.clock[CLOCK] & 1) * half;
  const Program program{args.ops, args.lanes, args.aux, args.rows, args.groups};
  const Halves halves{current, args.record, args.record + half};
  const double metric = args.metric == nullptr ? 0.0 : *args.metric;
  const Turn turn{args.clock, args.clock[CLOCK], metric, false, COUNTED};
  __shared__ Tile tile;
  for (int64_t n = 0; n < args.steps; ++n) {
    Rows rows(args.ops, args.rows, tile);
    run_lanes(program, rows, halves, turn);
    __syncthreads();
    if (args.trace == nullptr) continue;
    for (int64_t i = threadIdx.x; i < half; i += kThreads) args.trace[n * half + i] = current[i];
    __syncthreads();
  }
}

// -- the host's part -----------------------------------------------------------------------------

template <class F>
const char* on_device(int64_t device, F call) {
  const OnDevice scope(device);
  const cudaError_t error = scope.error == cudaSuccess ? call() : scope.error;
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Every kernel that there is starts here.
template <class... P>
cudaError_t start(void (*kernel)(P...), int64_t blocks, void* stream, P&... parameters) {
  void* pointers[] = {&parameters...};
  return cudaLaunchKernel(entry_of(kernel), dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                          pointers, 0, static_cast<cudaStream_t>(stream));
}

#define FS_NUMBER(name) name##Number,
enum RuleNumber : int64_t { FS_CUDA_RULES(FS_NUMBER) kRules };

// Gradients whose kernel's parameters stay below 4 KB; one for more takes 32 KB at each launch.
constexpr int kFew = 480;
static_assert(sizeof(Launch) + sizeof(Gradients<kFew>) <= 4096, "more than a launch takes easily");
static_assert(sizeof(Launch) + sizeof(Gradients<kCudaGradients>) <= 32764, "more than CUDA takes");

template <template <class> class Rule, class F>
cudaError_t with_kernel_of(bool wide, bool few, F call) {
  if (wide) return call(update_kernel<Rule, true, kCudaGradients>);
  if (few) return call(update_kernel<Rule, false, kFew>);
  return call(update_kernel<Rule, false, kCudaGradients>);
}

// Calls with the kernel of a rule, with float64 or without, for few gradients or many.
template <class F>
cudaError_t with_kernel(int64_t rule, bool wide, bool few, F call) {
#define FS_CALL(name) \
  if (rule == name##Number) return with_kernel_of<name##Rule>(wide, few, call);
  FS_CUDA_RULES(FS_CALL)
  return cudaErrorInvalidValue;
}

template <int N>
cudaError_t start_update(void (*kernel)(Launch, Gradients<N>), const CudaUpdateArgs& args,
                         Launch& launch, const int64_t* grads, int64_t count) {
  Gradients<N> parameters;
  std::memcpy(parameters.at, grads, count * sizeof *grads);
  return start(kernel, args.chunk_count + 1, args.stream, launch, parameters);
}

// The launch's constants; true if something is float64.
bool set_kinds(const CudaUpdateArgs& args, Launch& launch) {
  bool wide = false;
  for (int64_t k = 0; k < args.kind_count; ++k) {
    const int64_t* kind = args.args.kinds + 3 * k;
    launch.kinds[k] = static_cast<uint8_t>(kind[0] | kind[1] << 2 | kind[2] << 4);
    wide = wide || kind[0] == FLOAT64 || kind[1] == FLOAT64 || kind[2] == FLOAT64;
  }
  return wide;
}

template <class Kernel>
cudaError_t load_kernel(Kernel* kernel) {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, kernel);
}

cudaError_t load_all() {
  cudaError_t error = load_kernel(advance_kernel);
  for (int64_t rule = 0; rule < kRules; ++rule)
    for (int variant = 0; variant < 4 && error == cudaSuccess; ++variant)
      error = with_kernel(rule, variant & 1, variant & 2, [](auto* k) { return load_kernel(k); });
  return error;
}

}  // namespace
}  // namespace fused_sched

// The names of fused_sched are taken in function by function: its sqrt beside CUDA's own would be
// ambiguous to CUDA's headers.

const char* cuda_update(const CudaUpdateArgs& args, const int64_t* grads, int64_t count) {
  using namespace fused_sched;
  if (count != 0 && count != args.args.tensors) return "not one gradient for each tensor";
  if (count > kCudaGradients || args.kind_count > kKinds) return "too many gradients or kinds";
  Launch launch{args.args, args.chunks, args.chunk_size, count == 0, {}};
  const bool wide = set_kinds(args, launch);
  return on_device(args.device, [&] {
    return with_kernel(args.args.rule, wide, count <= kFew, [&](auto* kernel) {
      return start_update(kernel, args, launch, grads, count);
    });
  });
}

const char* cuda_advance(const CudaAdvanceArgs& args) {
  using namespace fused_sched;
  AdvanceArgs parameters = args.args;
  return on_device(args.device, [&] { return start(advance_kernel, 1, args.stream, parameters); });
}

const char* cuda_load(int64_t device) {
  using namespace fused_sched;
  return on_device(device, load_all);
}

int64_t cuda_device() {
  int device;
  return cudaGetDevice(&device) == cudaSuccess ? device : -1;
}

// To ask a GPU that nothing uses would make a context there.
bool cuda_captures(int64_t device, void* stream) {
  using namespace fused_sched;
  if (!in_use(device)) return false;
  cudaStreamCaptureStatus status;
  const char* error = on_device(device, [&] {
    return cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
  });
  return error != nullptr || status != cudaStreamCaptureStatusNone;
}
