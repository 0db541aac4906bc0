// Optimiser steps over all tensors of a model in one call, in place.
//
// With g = scale grad + weight_decay p (in float: one fma):
//
//   sgd       v = momentum v + (1 - dampening) g;  p -= lr (nesterov ? g + momentum v : v)
//   adam      m = beta1 m + (1 - beta1) g;  s = beta2 s + (1 - beta2) g^2
//             p -= lr / (1 - beta1^t) m / (sqrt(s) / sqrt(1 - beta2^t) + eps)
//             decoupled (AdamW): g has no weight decay, and p shrinks by 1 - lr weight_decay first
//   rmsprop   s = alpha s + (1 - alpha) g^2;  a = alpha a + (1 - alpha) g where centered, else 0
//             u = g / (sqrt(s - a^2) + eps);  b = momentum b + u where momentum;  p -= lr (b or u)
//   adagrad   s += g^2;  p -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)
//   adadelta  s = rho s + (1 - rho) g^2;  d = g sqrt(u + eps) / sqrt(s + eps)
//             u = rho u + (1 - rho) d^2;  p -= lr d
//
// Floor: one read of grad, one read and write of p and of each state; Adam moves 28 bytes per
// float32 parameter. The tensors are cut into chunks of 16 Ki elements, so that one large tensor
// spreads over threads and many small ones cost one parallel region. Elements are independent: no
// cut changes a bit. Measured: 80 % of what one array changed in place reaches; fetching the arrays
// ahead by hand changes nothing.
#pragma once

#include "core/dispatch.h"

namespace brasa {

constexpr int kStepStates = 3;
constexpr int64_t kStepChunk = 16 * 1024;

/// One tensor and its states. first_chunk: chunks of the tensors before it.
template <class T> struct StepTensor {
  T* param;
  const T* grad;
  T* state[kStepStates];
  int64_t size;
  int64_t first_chunk;
};

template <class T> struct StepList {
  const StepTensor<T>* tensors;  ///< in host memory
  int64_t count, chunks, elements;
};

// The numbers of a rule, doubles first: as many as kNumbers may be read from the device (see
// StepNumbers).
struct SgdParams {
  static constexpr int kNumbers = 5;
  double lr, momentum, dampening, weight_decay, scale;
  bool nesterov;
};
struct AdamParams {
  static constexpr int kNumbers = 8;
  double step_size;  ///< lr / (1 - beta1^t)
  double beta1, beta2, eps;
  double root_correction;  ///< 1 / sqrt(1 - beta2^t)
  double weight_decay;     ///< added to the gradient
  double decay;  ///< lr weight_decay where it is decoupled, else 0; 1 - decay would be rounded
  double scale;
};
struct RmspropParams {
  static constexpr int kNumbers = 6;
  double lr, alpha, eps, weight_decay, momentum, scale;
  bool centered;
};
struct AdagradParams {
  static constexpr int kNumbers = 4;
  double lr;  ///< of this step, decayed
  double weight_decay, eps, scale;
};
struct AdadeltaParams {
  static constexpr int kNumbers = 5;
  double lr, rho, eps, weight_decay, scale;
};

/// What the device knows of an optimiser whose gradients may overflow: whether one of this step
/// did, and how many steps were left out since the host looked.
struct StepGuard {
  int32_t overflow, skipped;
};

/// What lies in device memory; null where it does not, and on the CPU. Numbers that take the place
/// of those passed: all of a rule, in `rows` rows of which guard->skipped chooses one (the host
/// cannot tell how many steps were made, and sends the numbers of every count there may be), or its
/// scale, which wins. And whether to step at all.
struct StepNumbers {
  const double* all;
  int32_t rows;
  const double* scale;
  const StepGuard* guard;
};

/// The factor of a loss, the updates in a row without an overflow since it changed, and how it
/// changes: numbers that a graph and the host hand to each other.
struct ScaleState {
  double factor, clean, growth, backoff, interval;
};
/// Factors that float32 holds, with their inverses.
constexpr double kLeastScale = 0x1p-126, kLargestScale = 0x1p127;

}  // namespace brasa

/// state[0]: the momentum buffers; unused without momentum.
BRASA_KERNEL(sgd_step, StepList<T> list, SgdParams params, StepNumbers numbers)
/// state[0], [1]: the averages of the gradient and of its square.
BRASA_KERNEL(adam_step, StepList<T> list, AdamParams params, StepNumbers numbers)
/// state[0]: average of squares; then, each if it is wanted, the momentum buffer and the average
/// gradient.
BRASA_KERNEL(rmsprop_step, StepList<T> list, RmspropParams params, StepNumbers numbers)
/// state[0]: sum of squares.
BRASA_KERNEL(adagrad_step, StepList<T> list, AdagradParams params, StepNumbers numbers)
/// state[0], [1]: averages of the squares of gradients and of steps.
BRASA_KERNEL(adadelta_step, StepList<T> list, AdadeltaParams params, StepNumbers numbers)

/// param[i] *= scale, and found[0] = 1 where one was infinite or NaN: the gradients of a scaled
/// loss stand in `param`, and nothing else is used. A scale of 1 only looks. *scale_at, in device
/// memory, wins where it is not null.
BRASA_KERNEL(unscale_gradients, StepList<T> list, double scale, const double* scale_at,
             int32_t* found)
/// The factor shrinks where one of the guards tells of an overflow, and grows after `interval`
/// updates in a row without. The guards count what they left out, and are ready for the next step.
/// T is double.
BRASA_KERNEL(update_scale, ScaleState* state, StepGuard* guards, int64_t count)
