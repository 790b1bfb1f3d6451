// The update rules: what happens to one element, in the compute type C, whatever the storage.
// V is C, or a vector of it: then it happens to several elements at once.
//
// The C++ statement of fused_sched/kernels/rules.py, with the same symbols.
#pragma once

#include <cmath>
#include <cstdint>

#include "layout.h"
#ifndef __CUDACC__
#include "vector.h"
#endif

namespace fused_sched {

// A group's values of this step: column c at h[c * groups].
struct Hyper {
  const double* h;
  int64_t groups;
  FS_INLINE double operator[](int column) const { return h[column * groups]; }
};

// 1 - beta ** step; beta = 0 has log -inf and gives 1.
FS_INLINE double bias_correction(double log_beta, int64_t step) {
  return -expm1(static_cast<double>(step) * log_beta);
}

FS_INLINE float root(float x) { return sqrtf(x); }
FS_INLINE double root(double x) { return sqrt(x); }

template <class C>
struct SgdRule {
  static constexpr int kStates = 1;

  C lr, weight_decay, momentum, undamped, nesterov, sign;
  bool first;

  FS_INLINE SgdRule(const Hyper& h, int64_t step)
      : lr(static_cast<C>(h[SGD_LR])), weight_decay(static_cast<C>(h[SGD_WEIGHT_DECAY])),
        momentum(static_cast<C>(h[SGD_MOMENTUM])),
        undamped(static_cast<C>(1.0 - h[SGD_DAMPENING])),
        nesterov(static_cast<C>(h[SGD_NESTEROV])),
        sign(static_cast<C>(1.0 - 2.0 * h[SGD_MAXIMIZE])), first(step == 1) {}

  // b = mu b + (1 - tau) g, or g at the first step; p -= lr b (nesterov: g + mu b).
  template <class V>
  FS_INLINE void apply(V& p, V g, V& b) const {
    g = g * sign;
    g = weight_decay != 0 ? g + weight_decay * p : g;
    const V next = first ? g : momentum * b + undamped * g;
    const V moving = nesterov != 0 ? g + momentum * next : next;
    b = momentum != 0 ? next : b;
    p = p - lr * (momentum != 0 ? moving : g);
  }
};

template <class C>
struct AdamRule {
  static constexpr int kStates = 3;

  C step_size, eps, weight, beta2, one_minus_beta2, decay, l2, sign;
  bool amsgrad;

  // lr root / bc1 and eps root, with root = sqrt(bc2) here and not at each element:
  // m / (sqrt(v) / root + eps) is m root / (sqrt(v) + eps root).
  FS_INLINE AdamRule(const Hyper& h, int64_t step) {
    const double lr = h[ADAM_LR], weight_decay = h[ADAM_WEIGHT_DECAY];
    const double decoupled = h[ADAM_DECOUPLED_WEIGHT_DECAY], beta1 = h[ADAM_BETA1];
    const double bc1 = bias_correction(h[ADAM_LOG_BETA1], step);
    const double root_bc2 = sqrt(bias_correction(h[ADAM_LOG_BETA2], step));
    step_size = static_cast<C>(lr * root_bc2 / bc1);
    eps = static_cast<C>(h[ADAM_EPS] * root_bc2);
    weight = static_cast<C>(beta1 > 0.5 ? 1.0 - beta1 : -beta1);
    beta2 = static_cast<C>(h[ADAM_BETA2]);
    one_minus_beta2 = static_cast<C>(1.0 - h[ADAM_BETA2]);
    decay = static_cast<C>(1.0 - lr * weight_decay * decoupled);
    l2 = static_cast<C>(weight_decay * (1.0 - decoupled));
    sign = static_cast<C>(1.0 - 2.0 * h[ADAM_MAXIMIZE]);
    amsgrad = h[ADAM_AMSGRAD] != 0.0;
  }

  // m += (1 - b1)(g - m); v = b2 v + (1 - b2) g^2; p -= lr / bc1 * m / (sqrt(v / bc2) + eps).
  template <class V>
  FS_INLINE void apply(V& p, V g, V& m, V& v) const {
    moments(p, g, m, v);
    move(p, m, v);
  }

  // The same with amsgrad: the largest v so far takes v's place.
  template <class V>
  FS_INLINE void apply(V& p, V g, V& m, V& v, V& largest) const {
    moments(p, g, m, v);
    largest = (v > largest) | (v != v) ? v : largest;
    move(p, m, amsgrad ? largest : v);
  }

 private:
  template <class V>
  FS_INLINE void moments(V& p, V g, V& m, V& v) const {
    g = g * sign;
    g = l2 != 0 ? g + l2 * p : g;
    p = p * decay;
    // torch.lerp: from the nearer end, m + (1 - b1)(g - m) or g - b1 (g - m), so that b1 = 0 is g.
    m = (weight > 0 ? m : g) + weight * (g - m);
    v = beta2 * v + one_minus_beta2 * g * g;
  }

  template <class V>
  FS_INLINE void move(V& p, V m, V second) const {
    p = p - step_size * m / (root(second) + eps);
  }
};

}  // namespace fused_sched
