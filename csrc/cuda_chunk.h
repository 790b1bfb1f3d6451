// One chunk of one tensor on a GPU: what a block of the update kernel does.
#pragma once

#include <new>
#include <utility>

#include "cuda_engine.h"
#include "cuda_storage.h"
#include "rules.h"

namespace fused_sched {

constexpr int kThreads = 128;
constexpr int kWarp = 32;
constexpr int kKinds = 64;  // (param, grad, state) of four types each

// What a launch's blocks share, but for the gradients: their number chooses the kernel.
struct Launch {
  UpdateArgs args;
  const int32_t* chunks;
  int64_t chunk_size;
  bool grads_in_table;
  uint8_t kinds[kKinds];  // DType of param, grad and state, two bits each
};

// Where a chunk's arrays lie, by slot of the param table; a block's threads share it.
template <int kStates>
struct Arrays {
  static constexpr int kCount = 2 + kStates;

  // Volatile: read where they are used, since in registers all of them would be too many. They
  // point at the first pack; `head` elements lie before it.
  char* volatile array[kCount];
  int dtype[3];  // of param, grad, state
  int count;     // elements from the first pack on
  int head;
  int log_width;         // a pack has 1 << log_width elements
  bool aligned[kCount];  // the array's packs are
  bool all_aligned;      // all are, and as wide as the types allow
  bool missing;  // there is no gradient

  FS_DEVICE int dtype_of(int slot) const { return dtype[slot < STATE0 ? slot : STATE0]; }
  // The last state may be missing: it counts as zero.
  FS_DEVICE bool has(int slot) const { return slot < kCount - 1 || array[slot] != nullptr; }
  FS_DEVICE bool is_packed() const {
    return dtype[PARAM] != FLOAT64 && dtype[GRAD] != FLOAT64 && dtype[STATE0] != FLOAT64;
  }
  FS_DEVICE bool has_float32() const {
    return dtype[PARAM] == FLOAT32 || dtype[GRAD] == FLOAT32 || dtype[STATE0] == FLOAT32;
  }
  FS_DEVICE int places() const { return is_packed() ? count >> log_width : 0; }
  // Whether the packs of an array have 16 bytes, not 8.
  FS_DEVICE bool full(int a) const { return log_width + log_size(dtype_of(a)) == 4; }

  // Everything depends on the tensor's number alone: the loads do not wait for each other.
  FS_DEVICE void set(const Launch& launch, const int64_t* grads, int64_t t, int64_t number) {
    const UpdateArgs& args = launch.args;
    int64_t address[kCount];
#pragma unroll
    for (int a = 0; a < kCount; ++a)
      address[a] = a == GRAD && !launch.grads_in_table ? grads[t]
                                                       : args.addresses[a * args.tensors + t];
    const int64_t numel = args.info[NUMEL * args.tensors + t];
    const int kind = launch.kinds[args.info[KIND * args.tensors + t]];
    const int64_t start = number * launch.chunk_size, left = numel - start;
    count = static_cast<int>(left < launch.chunk_size ? left : launch.chunk_size);
    missing = address[GRAD] == 0;
    for (int i = 0; i < 3; ++i) dtype[i] = kind >> (2 * i) & 3;
#pragma unroll
    for (int a = 0; a < kCount; ++a)
      if (address[a] != 0) address[a] += start << log_size(dtype_of(a));
    peel(address[PARAM], address[STATE0]);
#pragma unroll
    for (int a = 0; a < kCount; ++a) {
      if (address[a] != 0) address[a] += head << log_size(dtype_of(a));
      array[a] = reinterpret_cast<char*>(address[a]);
    }
    all_aligned = aligns(address, has_float32() ? 2 : 3);
    if (!all_aligned) aligns(address, 2);
  }

 private:
  // Whether packs of this width are aligned: of the widest type they have 16 bytes.
  FS_DEVICE bool aligns(const int64_t* address, int width) {
    log_width = width;
    bool all = true;
#pragma unroll
    for (int a = 0; a < kCount; ++a) {
      aligned[a] = (address[a] & (full(a) ? 15 : 7)) == 0;
      all = all && aligned[a];
    }
    return all;
  }

  // The packs begin where the state's are aligned, or the param's: of the arrays that are written,
  // most. A view into a bucket, as gradients are, has its own alignment.
  FS_DEVICE void peel(int64_t param, int64_t state) {
    const int64_t lead = state != 0 ? state : param;
    head = 0;
    if (is_packed()) head = static_cast<int>(-lead & 15) >> log_size(dtype[state != 0 ? 2 : 0]);
    head = head < count ? head : count;
    count -= head;
  }
};

// A group's coefficients at a tensor's step.
template <class R, class C>
struct Coefficients {
  static_assert(R::kRecurrences == 0, "rules that carry numbers on are Triton's");
  alignas(R) char room[sizeof(R)];
  C inverse_scale;

  FS_DEVICE void set(const UpdateArgs& args, int64_t group, int64_t clock, int64_t step) {
    const int64_t half = (clock & 1) * args.columns * args.groups;
    new (room) R({args.record + half + group, args.groups}, step);
    inverse_scale = 1;
    if (args.scale != nullptr)
      inverse_scale = static_cast<C>(1.0 / static_cast<double>(*args.scale));
  }

  FS_DEVICE const R& rule() const { return *reinterpret_cast<const R*>(room); }

  // One element in the compute type, by slot.
  FS_DEVICE void apply(C* x) const {
    x[GRAD] *= inverse_scale;
    apply(x, std::make_integer_sequence<int, R::kStates>());
  }

 private:
  template <int... kState>
  FS_DEVICE void apply(C* x, std::integer_sequence<int, kState...>) const {
    rule().apply(x[PARAM], x[GRAD], x[STATE0 + kState]...);
  }
};

// -- elements ------------------------------------------------------------------------------------

template <class R, class C, int N>
FS_DEVICE void update_elements(const Arrays<R::kStates>& arrays, const Coefficients<R, C>& with,
                               bool unscales, int i, int stride, int end) {
  constexpr int kCount = Arrays<R::kStates>::kCount;
  uint64_t bits[kCount][N];
#pragma unroll
  for (int a = 0; a < kCount; ++a)
    load_bits<N>(arrays.array[a], arrays.dtype_of(a), i, stride, arrays.has(a) ? end : i, bits[a]);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int k = i + n * stride;
    C x[kCount];
#pragma unroll
    for (int a = 0; a < kCount; ++a) x[a] = from_bits<C>(bits[a][n], arrays.dtype_of(a));
    with.apply(x);
#pragma unroll
    for (int a = 0; a < kCount; ++a) {
      const bool kept = a == GRAD ? unscales : arrays.has(a);
      if (kept && k < end) store(x[a], arrays.array[a], arrays.dtype_of(a), k);
    }
  }
}

// Where something is float64: a warp takes neighbouring elements, a thread several at a time.
template <class R, class C>
FS_DEVICE void update_scattered(const Arrays<R::kStates>& arrays, const Coefficients<R, C>& with,
                                bool unscales) {
  constexpr int N = 2;
  for (int i = threadIdx.x; i < arrays.count; i += N * kThreads)
    update_elements<R, C, N>(arrays, with, unscales, i, kThreads, arrays.count);
}

// What lies before the first pack and behind the last one.
template <class R>
FS_DEVICE void update_edges(const Arrays<R::kStates>& arrays, const Coefficients<R, float>& with,
                            bool unscales) {
  const int j = static_cast<int>(threadIdx.x) - arrays.head;
  const int i = j < 0 ? j : (arrays.places() << arrays.log_width) + j;
  if (i < arrays.count) update_elements<R, float, 1>(arrays, with, unscales, i, 0, arrays.count);
}

// -- packs ---------------------------------------------------------------------------------------

// A thread's packs of every array at one place.
template <int kStates>
using Packs = Pack[2 + kStates];

// Places of a thread at a time, so that it has 64 bytes in flight also where the last state is
// missing: 64 KB on a multiprocessor with its 8 blocks.
template <class R>
constexpr int kPlaces = 1 + R::kStates >= 4 ? 1 : 2;

// The packs at place i where all are aligned, whatever their types.
template <class R>
FS_DEVICE void load_place(const Arrays<R::kStates>& arrays, int i, Packs<R::kStates>& packs) {
  if (i >= arrays.places()) return;
#pragma unroll
  for (int a = 0; a < 2 + R::kStates; ++a) {
    packs[a] = arrays.has(a) ? load_pack(arrays.array[a], i, arrays.full(a)) : Pack{};
  }
}

// The chunk's packs of one set of types: P, G, S are bytes of an element of param, grad and state.
template <class R, bool kAligned, int P, int G, int S>
struct PackLoop {
  // Where not all are aligned, few elements at a time: their pieces take registers.
  static constexpr int W = kAligned && P + G + S == 6 ? 8 : 4;
  static constexpr int kStates = R::kStates, kCount = 2 + kStates;

  const Arrays<kStates>& arrays;
  const Coefficients<R, float>& with;
  const bool unscales;

  FS_DEVICE int places() const { return arrays.count >> (W == 8 ? 3 : 2); }
  FS_DEVICE static constexpr int bytes(int a) { return a == PARAM ? P : (a == GRAD ? G : S); }

  FS_DEVICE Pack take(int a, int i) const {
    if (kAligned || arrays.aligned[a]) return load_pack(arrays.array[a], i, W * bytes(a) == 16);
    return bytes(a) == 2 ? load_pieces<W, 2>(arrays.array[a], i)
                         : load_pieces<W, 4>(arrays.array[a], i);
  }

  FS_DEVICE void put(int a, int i, const Pack& pack) const {
    if (kAligned || arrays.aligned[a]) store_pack(pack, arrays.array[a], i, W * bytes(a) == 16);
    else if (bytes(a) == 2) store_pieces<W, 2>(pack, arrays.array[a], i);
    else store_pieces<W, 4>(pack, arrays.array[a], i);
  }

  FS_DEVICE void load(int i, Packs<kStates>& packs) const {
    if (i >= places()) return;
#pragma unroll
    for (int a = 0; a < kCount; ++a)
      packs[a] = arrays.has(a) ? take(a, i) : Pack{};
  }

  FS_DEVICE void update(int i, Packs<kStates>& packs) const {
    if (i >= places()) return;
#pragma unroll
    for (int j = 0; j < W / 2; ++j) {
      float x[kCount], y[kCount];
#pragma unroll
      for (int a = 0; a < kCount; ++a) {
        const float2 pair = packs[a].pair(j, bytes(a), arrays.dtype_of(a));
        x[a] = pair.x, y[a] = pair.y;
      }
      with.apply(x);
      with.apply(y);
#pragma unroll
      for (int a = 0; a < kCount; ++a)
        if (a != GRAD || unscales)
          packs[a].set_pair(j, bytes(a), arrays.dtype_of(a), x[a], y[a]);
    }
    asm volatile("" ::: "memory");  // the addresses to store to are read now, not before
#pragma unroll
    for (int a = 0; a < kCount; ++a)
      if (a == GRAD ? unscales : arrays.has(a)) put(a, i, packs[a]);
  }

  // The first places are loaded. Each place's next loads start before the other place is computed.
  FS_DEVICE void run(Packs<kStates> (&packs)[kPlaces<R>]) const {
    constexpr int kStep = kPlaces<R> * kThreads;
#pragma unroll 1
    for (int i = threadIdx.x; i < places(); i += kStep) {
#pragma unroll
      for (int n = 0; n < kPlaces<R>; ++n) {
        update(i + n * kThreads, packs[n]);
        load(i + n * kThreads + kStep, packs[n]);
      }
    }
  }
};

// PackLoop for the chunk's types, those of P, G ... so far.
template <class R, bool kAligned, int... kBytes>
FS_DEVICE void run_packs(const Arrays<R::kStates>& arrays, const Coefficients<R, float>& with,
                         bool unscales, Packs<R::kStates> (&packs)[kPlaces<R>]) {
  constexpr int next = sizeof...(kBytes);
  if constexpr (next == 3) {
    const PackLoop<R, kAligned, kBytes...> loop{arrays, with, unscales};
    if (!kAligned) {
#pragma unroll
      for (int n = 0; n < kPlaces<R>; ++n) loop.load(threadIdx.x + n * kThreads, packs[n]);
    }
    loop.run(packs);
  } else if (arrays.dtype[next] == FLOAT32) {
    run_packs<R, kAligned, kBytes..., 4>(arrays, with, unscales, packs);
  } else {
    run_packs<R, kAligned, kBytes..., 2>(arrays, with, unscales, packs);
  }
}

}  // namespace fused_sched
