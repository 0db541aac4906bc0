// Softmax and log-softmax along any axis.
//
//   softmax       y_j = exp(x_j - max) / sum_k exp(x_k - max)      dx = y (dy - sum(y dy))
//   log_softmax   y_j = (x_j - max) - log sum_k exp(x_k - max)     dx = dy - exp(y) sum(dy)
//
// A dense array is seen as (outer, n, inner) around the axis. Every line of n elements is finished
// while it is in L1 or L2, so the floor is one read and one write of the array; exp costs about as
// much as the memory traffic of one core. A line longer than L2 is read twice more from L3.
//
// A maximum of one chain that let a NaN win (two comparisons, an or, a blend: 8 cycles a vector)
// took longer than the exponentials. It may ignore NaNs, whose exponential makes the sum a NaN, and
// has four chains. Each pass over exponentials fetches the next line. Both together: 4096 x 1000 in
// two thirds of the time, 16384 x 128 in 0.57. Tried and lost: fetching the next line backward.
// Contiguous lines of up to 512 go by twos, so that one is worked on while the lanes of the other
// are folded: 16384 x 128 from 314 us to 230, 16384 x 64 from 230 to 141. Gradients, bound by
// memory, lose a third at 128.
//
// Sums run over 16 virtual lanes, element j in lane j % 16, in ascending j, then the tree of
// LaneSum: the longest chain is n / 16 + 4. How lines map to vectors (along the line or across
// lines) changes speed, never bits. A line that is all -inf, or holds a NaN or +inf, gives NaN.
#pragma once

#include "core/dispatch.h"

namespace brasa {

/// Element (o, j, i) stands at ((o * n) + j) * inner + i; j runs along the axis.
struct AxisShape {
  int64_t outer, n, inner;
  int64_t lines() const { return outer * inner; }
  int64_t size() const { return outer * n * inner; }
};

}  // namespace brasa

BRASA_KERNEL(softmax_forward, const T* x, T* y, AxisShape shape)
BRASA_KERNEL(softmax_backward, const T* dy, const T* y, T* dx, AxisShape shape)
BRASA_KERNEL(log_softmax_forward, const T* x, T* y, AxisShape shape)
BRASA_KERNEL(log_softmax_backward, const T* dy, const T* y, T* dx, AxisShape shape)
