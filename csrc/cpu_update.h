// Every tensor of a launch on the CPU, by one rule: compiled once per rule and instruction set
// (FS_ISA names the variant).
//
// Every name of this file and its headers carries the variant: inline code of one instruction set
// must not be merged with another's at link time. For the same reason no template of the standard
// library is used here.
#pragma once

#define fused_sched FS_ISA
#include <atomic>
#include <cstring>
#include <new>
#include <type_traits>

#include "cpu.h"
#include "arithmetic.h"
#include "storage.h"

namespace fused_sched {
namespace {

constexpr int kBlock = 1024;        // elements of one block: its buffers stay in the L1 cache
constexpr int64_t kInline = 32768;  // elements up to which one thread is the quickest
constexpr int64_t kChunk = 65536;   // elements that a thread takes at a time

constexpr int kAhead = 8;           // cache lines of each array of the next tensor

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// A vector of elements through the rule; s: its states, as many as it has.
template <class V, class R>
inline void apply(const R& rule, V& p, V g, V* s) {
  static_assert(R::kStates <= 6, "more states than a rule may have");
  if constexpr (R::kStates == 0) rule.apply(p, g);
  if constexpr (R::kStates == 1) rule.apply(p, g, s[0]);
  if constexpr (R::kStates == 2) rule.apply(p, g, s[0], s[1]);
  if constexpr (R::kStates == 3) rule.apply(p, g, s[0], s[1], s[2]);
  if constexpr (R::kStates == 4) rule.apply(p, g, s[0], s[1], s[2], s[3]);
  if constexpr (R::kStates == 5) rule.apply(p, g, s[0], s[1], s[2], s[3], s[4]);
  if constexpr (R::kStates == 6) rule.apply(p, g, s[0], s[1], s[2], s[3], s[4], s[5]);
}

// The same from memory and back; a state without memory reads as zero.
template <class T, class R>
inline void update_vector(const R& rule, T* p, const T* g, T* const* states) {
  Vector<Compute<T>> param = load(p), s[R::kStates + 1] = {};
  for (int k = 0; k < R::kStates; ++k)
    if (states[k] != nullptr) s[k] = load(states[k]);
  apply(rule, param, load(g), s);
  store(param, p);
  for (int k = 0; k < R::kStates; ++k)
    if (states[k] != nullptr) store(s[k], states[k]);
}

// n elements; the last, incomplete vector in a copy, so that it is rounded like the others.
template <class T, class R>
void update_elements(const R rule, int64_t n, T* p, T* g, T* const (&states)[R::kStates + 1]) {
  constexpr int size = VectorOf<Compute<T>>::size, arrays = 2 + R::kStates;
  T* at[arrays] = {p, g};
  for (int s = 0; s < R::kStates; ++s) at[2 + s] = states[s];
  int64_t i = 0;
  for (; i + size <= n; i += size) {
    update_vector(rule, at[0], at[1], at + 2);
    for (T*& array : at)
      if (array != nullptr) array += size;
  }
  if (i == n) return;
  T room[arrays][size] = {};
  T* tail[arrays] = {};
  for (int a = 0; a < arrays; ++a) {
    if (at[a] == nullptr) continue;
    tail[a] = room[a];
    std::memcpy(tail[a], at[a], (n - i) * sizeof(T));
  }
  update_vector(rule, tail[0], tail[1], tail + 2);
  for (int a = 0; a < arrays; ++a)
    if (a != 1 && at[a] != nullptr) std::memcpy(at[a], tail[a], (n - i) * sizeof(T));
}

// A rule with its coefficients.
template <class R>
inline R make_rule(const Numbers& h, const Numbers& carried, int64_t step) {
  if constexpr (R::kRecurrences == 0) return R(h, step);
  else return R(h, carried, step);
}

// The same, computed anew only for another group or step, or another param's recurrences.
template <class R>
class Cached {
 public:
  const R& at(const Numbers& h, const Numbers& carried, int64_t step) {
    const double* own = R::kRecurrences == 0 ? nullptr : carried.first;
    if (h.first != h_ || own != carried_ || step != step_)
      new (room_) R(make_rule<R>(h, carried, step));
    h_ = h.first;
    carried_ = own;
    step_ = step;
    return *reinterpret_cast<const R*>(room_);
  }

 private:
  const double* h_ = nullptr;
  const double* carried_ = nullptr;
  int64_t step_ = 0;
  alignas(R) char room_[sizeof(R)];
};

template <template <class> class Rule>
struct Rules {
  Cached<Rule<float>> narrow;
  Cached<Rule<double>> wide;
  Cached<Rule<float>>& of(float) { return narrow; }
  Cached<Rule<double>>& of(double) { return wide; }
};

// One launch: what its threads share.
template <template <class> class Rule>
class Launch {
 public:
  explicit Launch(const UpdateArgs& args)
      : args_(args), clock_(args.clock[CLOCK]), ends_(args.ends) {
    int64_t total = 0;
    for (int64_t t = 0; t < args.tensors; ++t) {
      if constexpr (kRecurrences > 0) carry_on(t);
      if (address(GRAD, t) == 0) {
        ++args.offsets[fact(PARAM_INDEX, t)];  // no gradient: its step stands still
      } else {
        total += fact(NUMEL, t);
      }
      ends_[t] = total;
    }
    total_ = total;
  }

  void run(const Threads& threads) {
    if (total_ <= kInline || threads.count == 1) {
      Rules<Rule> rules;
      update(0, total_, rules);
      return;
    }
    // The threads draw chunks: a neighbour's load on one core does not hold up the others. What
    // fits into the caches is split evenly, one chunk each.
    const int64_t even = (total_ / threads.count / kBlock + 1) * kBlock;
    chunk_ = even < 16 * kChunk ? even : kChunk;
    threads.parallel_for(0, threads.count, 1, [](int64_t begin, int64_t end, void* self) {
      for (int64_t i = begin; i < end; ++i) static_cast<Launch*>(self)->draw();
    }, this);
  }

 private:
  static constexpr int kRecurrences = Rule<double>::kRecurrences;

  int64_t address(int slot, int64_t t) const { return args_.addresses[slot * args_.tensors + t]; }
  int64_t fact(int word, int64_t t) const { return args_.info[word * args_.tensors + t]; }

  // The step that a tensor makes now, counted from 1.
  int64_t step(int64_t t) const { return clock_ - args_.offsets[fact(PARAM_INDEX, t)] + 1; }

  // The hyperparameters of a tensor's group.
  Numbers hyper(int64_t t) const {
    const int64_t half = (clock_ & 1) * args_.columns * args_.groups;
    return {args_.record + half + fact(GROUP, t), args_.groups};
  }

  // A tensor's recurrences of this launch, or the place of the next one's.
  double* recurrences(int64_t t, int64_t clock) const {
    const int64_t half = (clock & 1) * kRecurrences * args_.params;
    return args_.recurrences + half + fact(PARAM_INDEX, t);
  }

  Numbers carried(int64_t t) const { return {recurrences(t, clock_), args_.params}; }

  // Writes a tensor's recurrences for the next launch; without a gradient its own stay as they are.
  void carry_on(int64_t t) {
    double* next = recurrences(t, clock_ + 1);
    const Numbers now = carried(t);
    const auto rule = make_rule<Rule<double>>(hyper(t), now, step(t));
    const int kept = address(GRAD, t) == 0 ? kRecurrences - Rule<double>::kOfGroup : 0;
    for (int k = 0; k < kRecurrences; ++k) next[k * args_.params] = k < kept ? now[k] : rule.next[k];
  }

  void draw() {
    Rules<Rule> rules;
    for (int64_t at; (at = next_.fetch_add(chunk_)) < total_;)
      update(at, smaller(at + chunk_, total_), rules);
  }

  // The first tensor that ends behind an element.
  int64_t tensor_at(int64_t element) const {
    int64_t low = 0, high = args_.tensors;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (ends_[middle] <= element) low = middle + 1; else high = middle;
    }
    return low;
  }

  // Elements begin ... end of the tensors laid end to end.
  void update(int64_t begin, int64_t end, Rules<Rule>& rules) const {
    for (int64_t t = tensor_at(begin); begin < end; ++t) {
      fetch_ahead(t + 1);
      const int64_t first = t == 0 ? 0 : ends_[t - 1];
      const int64_t stop = smaller(end, ends_[t]);
      if (stop > begin) {
        const int64_t* kind = args_.kinds + 3 * fact(KIND, t);
        if (kind[0] == FLOAT64) update_tensor<double>(t, kind, begin - first, stop - first, rules);
        else update_tensor<float>(t, kind, begin - first, stop - first, rules);
      }
      begin = stop;
    }
  }

  // The start of a tensor's arrays, while the one before is computed: the processor's own prefetch
  // does not cross the border of a page.
  void fetch_ahead(int64_t t) const {
    if (t >= args_.tensors || address(GRAD, t) == 0) return;
    for (int slot = PARAM; slot < STATE0 + Rule<float>::kStates; ++slot) {
      const char* start = reinterpret_cast<const char*>(address(slot, t));
      if (start == nullptr) continue;
      for (int line = 0; line < kAhead; ++line) __builtin_prefetch(start + 64 * line, 1);
    }
  }

  template <class C>
  void update_tensor(int64_t t, const int64_t* kind, int64_t begin, int64_t end,
                     Rules<Rule>& rules) const {
    const Rule<C>& rule = rules.of(C()).at(hyper(t), carried(t), step(t));
    if (kind[0] == kind[1] && kind[0] == kind[2] && args_.scale == nullptr) {
      with_type(kind[0], [&](auto type) { update_in_place<decltype(type)>(rule, t, begin, end); });
    } else {
      update_in_blocks(rule, t, kind, begin, end);
    }
  }

  // One storage type for all: from memory into registers and back.
  template <class T, class R>
  void update_in_place(const R& rule, int64_t t, int64_t begin, int64_t end) const {
    if constexpr (std::is_same_v<R, Rule<Compute<T>>>) {
      const auto at = [&](int slot) {
        const int64_t where = address(slot, t);
        return where == 0 ? nullptr : reinterpret_cast<T*>(where) + begin;
      };
      T* states[R::kStates + 1];
      for (int s = 0; s < R::kStates; ++s) states[s] = at(STATE0 + s);
      update_elements<T>(rule, end - begin, at(PARAM), at(GRAD), states);
    }
  }

  // Storage types of their own, or gradients to unscale: through buffers of the compute type.
  template <class C>
  void update_in_blocks(const Rule<C>& rule, int64_t t, const int64_t* kind, int64_t begin,
                        int64_t end) const {
    alignas(64) C buffers[2 + Rule<C>::kStates][kBlock];
    for (int64_t at = begin; at < end; at += kBlock) {
      const int n = static_cast<int>(smaller(kBlock, end - at));
      Block<C> p(kind[0], address(PARAM, t), at, n, buffers[0]);
      Block<C> g(kind[1], address(GRAD, t), at, n, buffers[1]);
      if (args_.scale != nullptr) unscale(g, n);
      Block<C> states[Rule<C>::kStates + 1];
      C* data[Rule<C>::kStates + 1];
      for (int s = 0; s < Rule<C>::kStates; ++s) {
        const int64_t where = address(STATE0 + s, t);
        if (where != 0) states[s] = Block<C>(kind[2], where, at, n, buffers[2 + s]);
        data[s] = states[s].data;
      }
      update_elements<C>(rule, n, p.data, g.data, data);
      p.keep();
      for (const Block<C>& state : states) state.keep();
    }
  }

  template <class C>
  void unscale(const Block<C>& g, int n) const {
    const C inverse = static_cast<C>(1.0 / static_cast<double>(*args_.scale));
    for (int i = 0; i < n; ++i) g.data[i] *= inverse;
    g.keep();
  }

  const UpdateArgs& args_;
  const int64_t clock_;
  int64_t* const ends_;  // elements up to the end of each tensor
  int64_t total_;
  int64_t chunk_ = 0;
  std::atomic<int64_t> next_{0};
};

}  // namespace
}  // namespace fused_sched
