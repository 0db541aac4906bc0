// Backward data for few input channels: first layers of networks.
//
// A tile of pixels x dx's channels would leave most lanes empty. So each pixel of dy is first
// projected on all taps and channels at once,
//   z[q][k, c] = sum over outputs o of dy[q, o] w[o, c, k],
// a product whose columns fill the vectors, and each pixel of dx then adds the entries of z that
// fall on it, taps in order. Rows of z are kept in a ring as long as a row of dx still needs them,
// in L2. Measured against the gather: LeNet's 6 channels 8x, ResNet's 3 channels 4x faster.
//
// With few outputs the adding takes longer than the products (LeNet's first layer: 7 % of the
// peak). Vectors over the pixels of a row of dx, dy staged as planes, would be 2.2 to 3 x as fast
// there, 1.4 x for 1 or 3 channels of 3x3 to 16 outputs and 1.1 x for 5x20 to 32; 3x3 to 64 outputs
// take twice as long so, because of the transposing of dy.
#pragma once

#include "conv/conv_plan.h"

namespace brasa::cpu::BRASA_ISA {

/// Whether this is the algorithm for these shapes: it rounds differently from the gather.
bool is_projected(const ConvParams& params);

/// dx is channels-last.
template <class T>
void project_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& params,
                            void* workspace);

template <class T> size_t project_workspace(const ConvParams& params, int threads);

}  // namespace brasa::cpu::BRASA_ISA
