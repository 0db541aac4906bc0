// Images of one channel with few output channels: LeNet's first layer, forward and weight gradient.
//
// A vector of 6 output channels would leave most lanes empty, and so would one of 5 taps. So
// vectors run over the pixels of a row, and x is staged with its padding, a block of rows at a time
// that stays in L1.
//
// Forward: a tile of outputs x two vectors of pixels goes through all taps; what it sums is
// interleaved in registers, since y has the channels innermost. Each element is the chain of the
// general algorithm, but padding is multiplied. Measured against the tile of pixels x output
// channels, on LeNet's first layer: 2.6 x.
//
// Gradients of weight and bias: dy's rows, times the activation's derivative, are split into
// planes, and a tile of taps x outputs gathers x[pixel + tap] * dy[pixel], each of 16 virtual lanes
// a sum of its own (the same at every vector width), lanes added in a fixed tree at the end of a
// part. Measured against the tile of input channels x output channels: 2 x on LeNet's first layer.
#pragma once

#include "conv/conv_weight.h"

namespace brasa::cpu::BRASA_ISA {

/// Whether this is the algorithm for these shapes: gradients round differently from the general
/// one.
bool is_narrow(const ConvParams& params);

template <class T>
void narrow_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& params,
                    const Epilogue<T>& epilogue);

template <class T> size_t narrow_forward_workspace(const ConvParams& params, int threads);

/// dw and db; either may be null.
template <class T>
void narrow_backward_weight(Context ctx, const T* dy, const T* x, T* dw, T* db,
                            const ConvParams& params, const Slope<T>& slope, void* workspace);

template <class T> size_t narrow_workspace(const ConvParams& params, int threads);

}  // namespace brasa::cpu::BRASA_ISA
