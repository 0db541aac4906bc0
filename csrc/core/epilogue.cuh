// The epilogue on the device: activation(result + bias + residual). A thread finishes its sums in
// registers: relu for all of them side by side, other activations one by one in a rolled loop
// (`activate_registers`), for a copy of all 17 for each of many registers was most of a kernel.
#pragma once

#include "core/device.cuh"
#include "core/epilogue.h"
#include "core/ptx_convert.cuh"

namespace brasa::cuda {

/// v + bias + residual, also written where the backward pass wants it. `offset` is that of the
/// element in the result.
template <class T>
BRASA_DEVICE_FN Wide<T> before_activation(const Epilogue<T>& e, Wide<T> v, int64_t column,
                                          int64_t offset) {
  if (e.bias) v += simt::widen(e.bias[column]);
  if (sizeof(T) == 2 && e.wide_bias) v += e.wide_bias[column];
  if (e.residual) v += simt::widen(e.residual[offset]);
  if (e.pre_activation) e.pre_activation[offset] = simt::narrow<T>(v);
  return v;
}

/// each(f) calls f(element) for every element that is to be replaced by its activation.
template <class T, class Each>
BRASA_DEVICE_FN void activate_each(const Activation& activation, const Each& each) {
  const T alpha = T(activation.alpha), beta = T(activation.beta);
  switch (activation.kind) {
#define BRASA_CASE(name, type, needs, default_alpha, default_beta)            \
  case ActivationKind::name:                                                  \
    each([=](T& element) { element = type::forward(element, alpha, beta); }); \
    break;
    BRASA_ACTIVATIONS(BRASA_CASE)
#undef BRASA_CASE
    default:
      break;
  }
}

/// v[i] = activation(v[i]).
template <class T, int kCount>
BRASA_DEVICE_FN void activate_registers(const Activation& activation, T (&v)[kCount]) {
  if (activation.kind == ActivationKind::none) return;
  if (activation.kind == ActivationKind::relu) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = Relu::forward(v[i], T(0), T(0));
    return;
  }
#pragma unroll 1
  for (int turn = 0; turn < kCount; ++turn) {
    T one{};
#pragma unroll
    for (int i = 0; i < kCount; ++i)  // registers have no address: one is taken
      if (i == turn) one = v[i];
    activate_each<T>(activation, [&](const auto& activate) { activate(one); });
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (i == turn) v[i] = one;
  }
}

/// An activation that a kernel finds out at run time, in place of a struct of core/activations.h.
struct AnyActivation {};

}  // namespace brasa::cuda
