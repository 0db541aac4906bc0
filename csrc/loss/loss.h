// Cross-entropy of logits against classes or probabilities.
//
// With m = max_c x_c, L = log sum_c exp(x_c - m) and -log p_c = (m - x_c) + L, a position's loss is
//
//   classes         (1 - s) w_t (-log p_t) + s / C sum_c w_c (-log p_c)
//   probabilities   sum_c w_c q_c (-log p_c),   q_c = (1 - s) target_c + s / C
//
// with class weights w (1 without them) and label smoothing s. Every term is at least 0, so nothing
// cancels; log(softmax) would be -inf where the softmax underflows. m and L are kept apart for the
// backward pass: their sum would lose as many bits as |m| has above 1.
//
//   classes         dx_c = g (((1 - s) w_t + s / C W) p_c - s / C w_c - [c = t] (1 - s) w_t),  W =
//   sum w probabilities   dx_c = g (S p_c - w_c q_c), S = sum w q
//
// g is the gradient of the position's loss, divided by the divisor of the mean: the sum of the w_t
// used (classes) or the number of positions (probabilities). A position whose class is
// `ignore_index` has loss, weight and gradient 0; one whose class is out of range has loss NaN,
// weight and gradient 0.
//
// Floor: one read of the logits forward; one read and one write backward. Lines are walked as in
// softmax. The losses of positions are added in float64, in 16 lanes: one thread does it, there is
// one loss for C logits. The longest chain is softmax's, n / 16 + 4.
#pragma once

#include "core/dispatch.h"
#include "core/half.h"
#include "softmax/softmax.h"

namespace brasa {

/// Class indices, one per position, in the order (N, spatial...). One of the pointers is null, or
/// both.
struct ClassIndices {
  const int64_t* wide;
  const int32_t* narrow;
};

enum class Reduction : int32_t { none, sum, mean };

template <class T> struct CrossEntropyParams {
  AxisShape shape;               ///< of the logits around the class axis
  ClassIndices classes;          ///< absent where `probabilities` is there
  const Wide<T>* probabilities;  ///< laid out as the logits, or null
  const Wide<T>* weight;         ///< one per class, or null
  int64_t ignore_index;
  double label_smoothing;
  Reduction reduction;
};

}  // namespace brasa

/// Beside logits of 16 bits everything but their gradient is float32. losses: one per position; or,
/// where there is a reduction, one in all, and `divisor` what the sum was divided by. statistics:
/// maxima, then logs of sums, of all positions.
BRASA_KERNEL(cross_entropy_forward, const T* logits, CrossEntropyParams<T> params, Wide<T>* losses,
             Wide<T>* statistics, Wide<T>* divisor)
BRASA_FUNCTION(size_t, cross_entropy_workspace, const CrossEntropyParams<T>& params)

/// dy: one per position, or one in all where there is a reduction.
BRASA_KERNEL(cross_entropy_backward, const Wide<T>* dy, const T* logits,
             CrossEntropyParams<T> params, const Wide<T>* statistics, const Wide<T>* divisor,
             T* dlogits)
