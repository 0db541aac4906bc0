// The weight gradient of images of one channel with few output channels: LeNet's first layer.
//
// A vector of 6 output channels would leave most lanes empty, and so would one of 5 taps. So
// vectors run over the pixels of a row: dy's rows are split into planes, x is staged with its
// padding, and a tile of taps x outputs in registers gathers x[pixel + tap] * dy[pixel], each of 16
// virtual lanes a sum of its own (the same at every vector width), lanes added in a fixed tree at
// the end of a part. Measured against the tile of input channels x output channels: 2 x on
// LeNet's first layer.
#pragma once

#include "conv/conv_weight.h"

namespace brasa::cpu::BRASA_ISA {

/// Whether this is the algorithm for these shapes: it rounds differently from the general one.
bool is_narrow(const ConvParams& params);

template <class T>
void narrow_backward_weight(Context ctx, const T* dy, const T* x, T* dw, const ConvParams& params,
                            void* workspace);

template <class T> size_t narrow_workspace(const ConvParams& params, int threads);

}  // namespace brasa::cpu::BRASA_ISA
