// The CUDA engine: one kernel per step. See Note [One launch] in fused_sched/kernels/update.py.
#include "cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <new>
#include <utility>

#include "cuda_device.h"
#include "rules.h"
#include "schedule.h"

#define FS_DEVICE __device__ __forceinline__

namespace fused_sched {
namespace {

constexpr int kThreads = 128;
constexpr int kWarp = 32;
constexpr int kBlocks = 8;      // on a multiprocessor at once: at most 64 registers a thread
constexpr int kWideBlocks = 4;  // with float64 params: 128
constexpr int kKinds = 64;      // (param, grad, state) of four types each

// What a launch's blocks share, but for the gradients: their number chooses the kernel.
struct Launch {
  UpdateArgs args;
  const int32_t* chunks;
  int64_t chunk_size;
  bool grads_in_table;
  uint8_t kinds[kKinds];  // DType of param, grad and state, two bits each
};

template <int N>
struct Gradients {
  int64_t at[N];
};

// -- storage -------------------------------------------------------------------------------------

// The i-th T of an array. From its address a compiler cannot see that it lies in global memory.
template <class T>
FS_DEVICE T& at(char* array, int i) {
  T* place = reinterpret_cast<T*>(array) + i;
  __builtin_assume(__isGlobal(place));
  return *place;
}

FS_DEVICE int size_of(int dtype) { return dtype == FLOAT64 ? 8 : (dtype == FLOAT32 ? 4 : 2); }

// Two elements of 16 bits, and one in the lower half.
FS_DEVICE float2 widen(uint32_t pair, int dtype) {
  if (dtype == BFLOAT16)
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  __half2 halves;
  memcpy(&halves, &pair, sizeof pair);
  return __half22float2(halves);
}

FS_DEVICE uint32_t narrow(float2 x, int dtype) {
  uint32_t pair;
  if (dtype == BFLOAT16) {
    const __nv_bfloat162 halves = __float22bfloat162_rn(x);
    memcpy(&pair, &halves, sizeof pair);
  } else {
    const __half2 halves = __float22half2_rn(x);
    memcpy(&pair, &halves, sizeof pair);
  }
  return pair;
}

template <class C>
FS_DEVICE C load(char* array, int dtype, int i) {
  if (dtype == FLOAT64) return static_cast<C>(at<double>(array, i));
  if (dtype == FLOAT32) return static_cast<C>(at<float>(array, i));
  return static_cast<C>(widen(at<uint16_t>(array, i), dtype).x);
}

template <class C>
FS_DEVICE void store(C x, char* array, int dtype, int i) {
  if (dtype == FLOAT64) {
    at<double>(array, i) = static_cast<double>(x);
  } else if (dtype == FLOAT32) {
    at<float>(array, i) = static_cast<float>(x);
  } else {
    const float2 low = make_float2(static_cast<float>(x), 0.0f);
    at<uint16_t>(array, i) = static_cast<uint16_t>(narrow(low, dtype));
  }
}

// W elements that one access moves: float32, or pairs of 16 bits.
template <int W, int kBytes>
struct alignas(W * kBytes) Pack {
  uint32_t words[W * kBytes / 4];

  FS_DEVICE float2 pair(int i, int dtype) const {
    if (kBytes == 2) return widen(words[i], dtype);
    return make_float2(__uint_as_float(words[2 * i]), __uint_as_float(words[2 * i + 1]));
  }

  FS_DEVICE void set_pair(int i, int dtype, float x, float y) {
    if (kBytes == 2) {
      words[i] = narrow(make_float2(x, y), dtype);
    } else {
      words[2 * i] = __float_as_uint(x);
      words[2 * i + 1] = __float_as_uint(y);
    }
  }
};

// -- one chunk -----------------------------------------------------------------------------------

// What the threads of a block share, by slot of the param table.
template <class R, class C>
struct Chunk {
  static constexpr int kArrays = 2 + R::kStates;

  alignas(R) char room[sizeof(R)];
  // Volatile: read where they are used, since in registers all of them would be too many.
  char* volatile array[kArrays];
  int dtype[3];  // of param, grad, state
  int count;     // elements
  bool unscales;
  C inverse_scale;

  FS_DEVICE const R& rule() const { return *reinterpret_cast<const R*>(room); }
  FS_DEVICE int dtype_of(int slot) const { return dtype[slot < STATE0 ? slot : STATE0]; }
  // The last state may be missing: it counts as zero.
  FS_DEVICE bool has(int slot) const { return slot < kArrays - 1 || array[slot] != nullptr; }
  FS_DEVICE bool keeps(int slot) const { return slot == GRAD ? unscales : has(slot); }

  // Whether packs can move it: every array is aligned, and none is float64.
  FS_DEVICE bool is_packed() const {
    uintptr_t bits = 0;
#pragma unroll
    for (int a = 0; a < kArrays; ++a) bits |= reinterpret_cast<uintptr_t>(array[a]);
    const bool wide = dtype[0] == FLOAT64 || dtype[1] == FLOAT64 || dtype[2] == FLOAT64;
    return bits % 16 == 0 && !wide;
  }
};

template <class R, class C, int... kState>
FS_DEVICE void apply(const R& rule, C* x, std::integer_sequence<int, kState...>) {
  rule.apply(x[PARAM], x[GRAD], x[STATE0 + kState]...);
}

// One element in the compute type, by slot.
template <class R, class C>
FS_DEVICE void update_element(const Chunk<R, C>& chunk, C* x) {
  x[GRAD] *= chunk.inverse_scale;
  apply(chunk.rule(), x, std::make_integer_sequence<int, R::kStates>());
}

// P, G, S: bytes of an element of param, grad and state. Returns how many elements it did.
template <class R, int P, int G, int S>
FS_DEVICE int update_packs(const Chunk<R, float>& chunk) {
  constexpr int W = P + G + S == 6 ? 8 : 4, kStates = R::kStates;
  const int whole = chunk.count / W * W;
  for (int i = threadIdx.x; i < whole / W; i += kThreads) {
    auto p = at<Pack<W, P>>(chunk.array[PARAM], i);
    auto g = at<Pack<W, G>>(chunk.array[GRAD], i);
    Pack<W, S> states[kStates];
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      states[s] = {};
      if (chunk.has(STATE0 + s)) states[s] = at<Pack<W, S>>(chunk.array[STATE0 + s], i);
    }
#pragma unroll
    for (int j = 0; j < W / 2; ++j) {
      float x[2 + kStates], y[2 + kStates];
      const auto take = [&](int slot, float2 pair) { x[slot] = pair.x, y[slot] = pair.y; };
      take(PARAM, p.pair(j, chunk.dtype[PARAM]));
      take(GRAD, g.pair(j, chunk.dtype[GRAD]));
#pragma unroll
      for (int s = 0; s < kStates; ++s) take(STATE0 + s, states[s].pair(j, chunk.dtype[STATE0]));
      update_element(chunk, x);
      update_element(chunk, y);
      p.set_pair(j, chunk.dtype[PARAM], x[PARAM], y[PARAM]);
      if (chunk.unscales) g.set_pair(j, chunk.dtype[GRAD], x[GRAD], y[GRAD]);
#pragma unroll
      for (int s = 0; s < kStates; ++s)
        states[s].set_pair(j, chunk.dtype[STATE0], x[STATE0 + s], y[STATE0 + s]);
    }
    at<Pack<W, P>>(chunk.array[PARAM], i) = p;
    if (chunk.unscales) at<Pack<W, G>>(chunk.array[GRAD], i) = g;
#pragma unroll
    for (int s = 0; s < kStates; ++s)
      if (chunk.has(STATE0 + s)) at<Pack<W, S>>(chunk.array[STATE0 + s], i) = states[s];
  }
  return whole;
}

// update_packs for the chunk's types, those of P, G ... so far.
template <class R, int... kBytes>
FS_DEVICE int update_packs_of_its_types(const Chunk<R, float>& chunk) {
  constexpr int next = sizeof...(kBytes);
  if constexpr (next == 3) return update_packs<R, kBytes...>(chunk);
  else if (chunk.dtype[next] == FLOAT32) return update_packs_of_its_types<R, kBytes..., 4>(chunk);
  else return update_packs_of_its_types<R, kBytes..., 2>(chunk);
}

// Any elements of any types from the first on, one by one.
template <class R, class C>
FS_DEVICE void update_rest(const Chunk<R, C>& chunk, int first) {
  constexpr int kArrays = Chunk<R, C>::kArrays;
  for (int i = first + threadIdx.x; i < chunk.count; i += kThreads) {
    C x[kArrays];
#pragma unroll
    for (int a = 0; a < kArrays; ++a)
      x[a] = chunk.has(a) ? load<C>(chunk.array[a], chunk.dtype_of(a), i) : C(0);
    update_element(chunk, x);
#pragma unroll
    for (int a = 0; a < kArrays; ++a)
      if (chunk.keeps(a)) store(x[a], chunk.array[a], chunk.dtype_of(a), i);
  }
}

// A chunk's place in its tensor, and what the param table says.
struct Place {
  int64_t tensor, number, grad, step;
  int kind;
};

template <class R, class C>
FS_DEVICE void set_rule(Chunk<R, C>& chunk, const UpdateArgs& args, const Place& place,
                        int64_t clock) {
  const int64_t half = (clock & 1) * args.columns * args.groups;
  const int64_t group = args.info[GROUP * args.tensors + place.tensor];
  new (chunk.room) R({args.record + half + group, args.groups}, place.step);
  chunk.unscales = args.scale != nullptr;
  chunk.inverse_scale = chunk.unscales ? static_cast<C>(1.0 / static_cast<double>(*args.scale)) : 1;
}

template <class R, class C>
FS_DEVICE void set_arrays(Chunk<R, C>& chunk, const Launch& launch, const Place& place) {
  const UpdateArgs& args = launch.args;
  const int64_t start = place.number * launch.chunk_size;
  const int64_t left = args.info[NUMEL * args.tensors + place.tensor] - start;
  chunk.count = static_cast<int>(left < launch.chunk_size ? left : launch.chunk_size);
  for (int i = 0; i < 3; ++i) chunk.dtype[i] = place.kind >> (2 * i) & 3;
#pragma unroll
  for (int a = 0; a < chunk.kArrays; ++a) {
    const int64_t slot = a * args.tensors + place.tensor;
    const int64_t address = a == GRAD ? place.grad : args.addresses[slot];
    char* array = reinterpret_cast<char*>(address);
    chunk.array[a] = address == 0 ? nullptr : array + start * size_of(chunk.dtype_of(a));
  }
}

template <template <class> class Rule, class C>
FS_DEVICE void update_chunk(const Launch& launch, const Place& place, int64_t clock) {
  __shared__ Chunk<Rule<C>, C> chunk;
  // Once a block: the rule's coefficients take float64.
  if (threadIdx.x == 0) set_rule(chunk, launch.args, place, clock);
  if (threadIdx.x == kWarp) set_arrays(chunk, launch, place);
  __syncthreads();
  int done = 0;
  if constexpr (sizeof(C) == sizeof(float)) {
    if (chunk.is_packed()) done = update_packs_of_its_types(chunk);
  }
  update_rest(chunk, done);
}

// Block i + 1 owns chunk i.
template <template <class> class Rule, bool kWide>
FS_DEVICE void update_tensor(const Launch& launch, const int64_t* grads, int64_t clock) {
  const UpdateArgs& args = launch.args;
  const int64_t i = blockIdx.x - 1, chunks = gridDim.x - 1;
  Place place{launch.chunks[i], launch.chunks[chunks + i], 0, 0, 0};
  const int64_t t = place.tensor;
  place.grad = launch.grads_in_table ? args.addresses[GRAD * args.tensors + t] : grads[t];
  int64_t* offset = args.offsets + args.info[PARAM_INDEX * args.tensors + t];
  if (place.grad == 0) {
    if (place.number == 0 && threadIdx.x == 0) ++*offset;  // its step stands still
    return;
  }
  place.step = clock - *offset + 1;
  place.kind = launch.kinds[args.info[KIND * args.tensors + t]];
  if (kWide && (place.kind & 3) == FLOAT64) update_chunk<Rule, double>(launch, place, clock);
  else update_chunk<Rule, float>(launch, place, clock);
}

// -- the kernels ---------------------------------------------------------------------------------

FS_DEVICE void run_lanes(const Program& program, const Halves& halves, int64_t* clock,
                         double metric, bool skipped, int64_t advance) {
  const int groups = static_cast<int>(program.groups);
  for (int first = 0; first < groups; first += kThreads) {
    const bool last = threadIdx.x == 0 && first + kThreads >= groups;
    run_lane(program, halves, clock, metric, skipped, advance, first + threadIdx.x, last);
  }
}

FS_DEVICE void run_schedule(const UpdateArgs& args, int64_t clock, bool skipped) {
  const int64_t half = args.columns * args.groups;
  double* current = args.record + (clock & 1) * half;
  double* next = args.record + (1 - (clock & 1)) * half;
  const Program program{args.ops, args.lanes, args.aux, args.rows, args.groups};
  run_lanes(program, {current, next, skipped ? current : next}, args.clock, 0.0, skipped,
            args.advance);
}

FS_DEVICE bool is_skipped(const UpdateArgs& args) {
  return args.found_inf != nullptr && *args.found_inf != 0.0f;
}

// The block that draws the last ticket publishes the next step. It reads once more what every block
// has read at its start: kept over the update it would take registers.
FS_DEVICE void finish(const UpdateArgs& args) {
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  auto* ticket = reinterpret_cast<unsigned long long*>(args.clock + TICKET);
  if (atomicAdd(ticket, 1) != gridDim.x - 1) return;
  *ticket = 0;
  args.clock[CLOCK] += !is_skipped(args);
}

template <template <class> class Rule, bool kWide, int N>
__global__ void __launch_bounds__(kThreads, kWide ? kWideBlocks : kBlocks)
update_kernel(const __grid_constant__ Launch launch, const __grid_constant__ Gradients<N> grads) {
  const int64_t clock = launch.args.clock[CLOCK];
  const bool skipped = is_skipped(launch.args);
  if (blockIdx.x == 0) run_schedule(launch.args, clock, skipped);
  else if (!skipped) update_tensor<Rule, kWide>(launch, grads.at, clock);
  finish(launch.args);
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
  for (int64_t n = 0; n < args.steps; ++n) {
    run_lanes(program, halves, args.clock, metric, false, COUNTED);
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
  return cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), pointers, 0,
                          static_cast<cudaStream_t>(stream));
}

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

// Calls with the kernel of a rule, with float64 params or without, for few gradients or many.
template <class F>
cudaError_t with_kernel(int64_t rule, bool wide, bool few, F call) {
  if (rule == SGD) return with_kernel_of<SgdRule>(wide, few, call);
  if (rule == ADAM) return with_kernel_of<AdamRule>(wide, few, call);
  return cudaErrorInvalidValue;
}

template <int N>
cudaError_t start_update(void (*kernel)(Launch, Gradients<N>), const CudaUpdateArgs& args,
                         Launch& launch, const int64_t* grads, int64_t count) {
  Gradients<N> parameters;
  std::memcpy(parameters.at, grads, count * sizeof *grads);
  return start(kernel, args.chunk_count + 1, args.stream, launch, parameters);
}

// The launch's constants; true if a param is float64.
bool set_kinds(const CudaUpdateArgs& args, Launch& launch) {
  bool wide = false;
  for (int64_t k = 0; k < args.kind_count; ++k) {
    const int64_t* kind = args.args.kinds + 3 * k;
    launch.kinds[k] = static_cast<uint8_t>(kind[0] | kind[1] << 2 | kind[2] << 4);
    wide = wide || kind[0] == FLOAT64;
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
  for (int64_t rule : {SGD, ADAM})
    for (int variant = 0; variant < 4 && error == cudaSuccess; ++variant)
      error = with_kernel(rule, variant & 1, variant & 2, [](auto* k) { return load_kernel(k); });
  return error;
}

}  // namespace
}  // namespace fused_sched

using namespace fused_sched;

const char* cuda_update(const CudaUpdateArgs& args, const int64_t* grads, int64_t count) {
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
  AdvanceArgs parameters = args.args;
  return on_device(args.device, [&] { return start(advance_kernel, 1, args.stream, parameters); });
}

const char* cuda_load(int64_t device) { return on_device(device, load_all); }

int64_t cuda_device() {
  int device;
  return cudaGetDevice(&device) == cudaSuccess ? device : -1;
}

// To ask a GPU that nothing uses would make a context there.
bool cuda_captures(int64_t device, void* stream) {
  if (!in_use(device)) return false;
  cudaStreamCaptureStatus status;
  const char* error = on_device(device, [&] {
    return cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
  });
  return error != nullptr || status != cudaStreamCaptureStatusNone;
}
