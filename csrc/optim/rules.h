// The update rules, written once for vectors (CPU) and single numbers (CUDA). A rule holds its
// constants as T; applied, it changes p and the states it uses, all of the value type V.
#pragma once

#include "optim/optim.h"

#if defined(BRASA_ISA)
#include "core/vmath.h"
#define BRASA_RULE_FN inline __attribute__((always_inline))
#define BRASA_RULE_INIT constexpr
namespace brasa::cpu::BRASA_ISA {
template <class V, class T> BRASA_INLINE V all(T c) {
  return broadcast(c);
}
#else
#include "core/vmath.cuh"
#define BRASA_RULE_FN BRASA_DEVICE_FN
#define BRASA_RULE_INIT BRASA_HOST_DEVICE_FN  // kernels that read their numbers make rules too
namespace brasa::cuda {
template <class V, class T> BRASA_DEVICE_FN V all(T c) {
  return c;
}
#endif

template <class T, bool kMomentum> struct Sgd {
  static constexpr int kStates = kMomentum ? 1 : 0;
  T minus_lr, momentum, kept, weight_decay, scale;
  bool nesterov;
  BRASA_RULE_INIT explicit Sgd(const SgdParams& p)
      : minus_lr(T(-p.lr)),
        momentum(T(p.momentum)),
        kept(T(1 - p.dampening)),
        weight_decay(T(p.weight_decay)),
        scale(T(p.scale)),
        nesterov(p.nesterov) {}

  template <class V> BRASA_RULE_FN void apply(V& p, V grad, V* s) const {
    V g = fma(all<V>(weight_decay), p, all<V>(scale) * grad);
    if constexpr (kMomentum) {
      s[0] = fma(all<V>(momentum), s[0], all<V>(kept) * g);
      g = nesterov ? fma(all<V>(momentum), s[0], g) : s[0];
    }
    p = fma(all<V>(minus_lr), g, p);
  }
};

template <class T> struct Adam {
  static constexpr int kStates = 2;
  T minus_step, beta1, rest1, beta2, rest2, eps, root_correction, weight_decay, minus_decay, scale;
  BRASA_RULE_INIT explicit Adam(const AdamParams& p)
      : minus_step(T(-p.step_size)),
        beta1(T(p.beta1)),
        rest1(T(1 - p.beta1)),
        beta2(T(p.beta2)),
        rest2(T(1 - p.beta2)),
        eps(T(p.eps)),
        root_correction(T(p.root_correction)),
        weight_decay(T(p.weight_decay)),
        minus_decay(T(-p.decay)),
        scale(T(p.scale)) {}

  template <class V> BRASA_RULE_FN void apply(V& p, V grad, V* s) const {
    const V g = fma(all<V>(weight_decay), p, all<V>(scale) * grad);
    s[0] = fma(all<V>(beta1), s[0], all<V>(rest1) * g);
    s[1] = fma(all<V>(beta2), s[1], all<V>(rest2) * g * g);
    const V below = fma(vsqrt(s[1]), all<V>(root_correction), all<V>(eps));
    p = fma(all<V>(minus_step), s[0] / below, fma(all<V>(minus_decay), p, p));
  }
};

template <class T, bool kMomentum, bool kCentered> struct Rmsprop {
  static constexpr int kStates = 1 + kMomentum + kCentered, kAverage = kStates - 1;
  T minus_lr, alpha, rest, eps, weight_decay, momentum, scale;
  BRASA_RULE_INIT explicit Rmsprop(const RmspropParams& p)
      : minus_lr(T(-p.lr)),
        alpha(T(p.alpha)),
        rest(T(1 - p.alpha)),
        eps(T(p.eps)),
        weight_decay(T(p.weight_decay)),
        momentum(T(p.momentum)),
        scale(T(p.scale)) {}

  template <class V> BRASA_RULE_FN void apply(V& p, V grad, V* s) const {
    const V g = fma(all<V>(weight_decay), p, all<V>(scale) * grad);
    s[0] = fma(all<V>(alpha), s[0], all<V>(rest) * g * g);
    V variance = s[0];
    if constexpr (kCentered) {
      s[kAverage] = fma(all<V>(alpha), s[kAverage], all<V>(rest) * g);
      variance = fma(-s[kAverage], s[kAverage], variance);
      variance = variance < V{} ? V{} : variance;  // rounding may leave less than nothing
    }
    V u = g / (vsqrt(variance) + all<V>(eps));
    if constexpr (kMomentum) u = s[1] = fma(all<V>(momentum), s[1], u);
    p = fma(all<V>(minus_lr), u, p);
  }
};

template <class T> struct Adagrad {
  static constexpr int kStates = 1;
  T minus_lr, weight_decay, eps, scale;
  BRASA_RULE_INIT explicit Adagrad(const AdagradParams& p)
      : minus_lr(T(-p.lr)), weight_decay(T(p.weight_decay)), eps(T(p.eps)), scale(T(p.scale)) {}

  template <class V> BRASA_RULE_FN void apply(V& p, V grad, V* s) const {
    const V g = fma(all<V>(weight_decay), p, all<V>(scale) * grad);
    s[0] = fma(g, g, s[0]);
    p = fma(all<V>(minus_lr), g / (vsqrt(s[0]) + all<V>(eps)), p);
  }
};

template <class T> struct Adadelta {
  static constexpr int kStates = 2;
  T minus_lr, rho, rest, eps, weight_decay, scale;
  BRASA_RULE_INIT explicit Adadelta(const AdadeltaParams& p)
      : minus_lr(T(-p.lr)),
        rho(T(p.rho)),
        rest(T(1 - p.rho)),
        eps(T(p.eps)),
        weight_decay(T(p.weight_decay)),
        scale(T(p.scale)) {}

  template <class V> BRASA_RULE_FN void apply(V& p, V grad, V* s) const {
    const V g = fma(all<V>(weight_decay), p, all<V>(scale) * grad);
    s[0] = fma(all<V>(rho), s[0], all<V>(rest) * g * g);
    const V d = vsqrt(s[1] + all<V>(eps)) / vsqrt(s[0] + all<V>(eps)) * g;
    s[1] = fma(all<V>(rho), s[1], all<V>(rest) * d * d);
    p = fma(all<V>(minus_lr), d, p);
  }
};

/// Calls f(rule) with the rule of these parameters.
template <class T, class F> void with_rule(const SgdParams& p, const F& f) {
  if (p.momentum != 0)
    f(Sgd<T, true>(p));
  else
    f(Sgd<T, false>(p));
}
template <class T, class F> void with_rule(const AdamParams& p, const F& f) {
  f(Adam<T>(p));
}
template <class T, class F> void with_rule(const RmspropParams& p, const F& f) {
  if (p.centered && p.momentum != 0)
    f(Rmsprop<T, true, true>(p));
  else if (p.centered)
    f(Rmsprop<T, false, true>(p));
  else if (p.momentum != 0)
    f(Rmsprop<T, true, false>(p));
  else
    f(Rmsprop<T, false, false>(p));
}
template <class T, class F> void with_rule(const AdagradParams& p, const F& f) {
  f(Adagrad<T>(p));
}
template <class T, class F> void with_rule(const AdadeltaParams& p, const F& f) {
  f(Adadelta<T>(p));
}

/// One update of the factor of a loss; see update_scale.
BRASA_RULE_FN ScaleState next_scale(ScaleState s, StepGuard* guards, int64_t count) {
  bool overflow = false;
  for (int64_t i = 0; i < count; ++i) {
    overflow = overflow || guards[i].overflow != 0;
    guards[i].skipped += guards[i].overflow != 0;
    guards[i].overflow = 0;
  }
  s.clean = overflow ? 0 : s.clean + 1;
  if (overflow) {
    s.factor *= s.backoff;
    if (s.factor < kLeastScale) s.factor = kLeastScale;
  } else if (s.clean == s.interval) {
    s.factor *= s.growth;
    if (s.factor > kLargestScale) s.factor = kLargestScale;
    s.clean = 0;
  }
  return s;
}

#if defined(BRASA_ISA)
}  // namespace brasa::cpu::BRASA_ISA
#else
}  // namespace brasa::cuda
#endif
