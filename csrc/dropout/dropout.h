// Dropout over dense memory: y[i] = word i < threshold ? 0 : x[i] / (1 - p), with the random words
// of core/random.h. The backward pass is the same function of dy: the mask is drawn again, not
// kept.
//
// Floor: one read and one write. Philox takes 61 instructions for 32 words with AVX-512; four
// blocks of them side by side take 14 cycles per 16 words, two thirds of what the copy alone takes
// on one core, so two cores are close to memory bandwidth where arrays exceed the caches. A dropped
// element is 0, a NaN as well.
#pragma once

#include "core/dispatch.h"

namespace brasa {

struct DropoutParams {
  double p;  ///< probability of dropping an element, in [0, 1]
  Word seed, offset;
};

}  // namespace brasa

/// x and y may be the same buffer.
BRASA_KERNEL(dropout_forward, const T* x, T* y, int64_t n, DropoutParams params)
