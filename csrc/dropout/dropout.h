// Dropout over dense memory: y[i] = word i < threshold ? 0 : x[i] / (1 - p), with the random words
// of core/random.h. The backward pass is the same function of dy: the mask is drawn again, not
// kept.
//
// Floor: one read and one write; Philox costs about as much as that on one core (2 instructions a
// word with AVX-512), so two cores are close to memory bandwidth. A dropped element is 0, a NaN as
// well.
#pragma once

#include "core/dispatch.h"

namespace brasa {

struct DropoutParams {
  double p;  ///< probability of dropping an element, in [0, 1]
  uint64_t seed, offset;
};

}  // namespace brasa

/// x and y may be the same buffer.
BRASA_KERNEL(dropout_forward, const T* x, T* y, int64_t n, DropoutParams params)
