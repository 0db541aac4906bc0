// Depthwise convolution: one filter per channel. Vectors run over channels; nothing is packed but
// the weights, by blocks of one vector of channels: what the sums begin at, then the taps.
//
// Forward and backward data sum tiles of neighbouring pixels in two rows (conv_depthwise_tile.h):
// an element of x is loaded once for all the taps and pixels that it meets there. Residues of a
// strided gradient go band by band, so that dy is read while in cache. C-ordered x is converted in
// bands of rows (conv_depthwise_bands.h): 16 x 64 x 112 x 112 takes a quarter longer than
// channels-last.
//
// Floor: 2 * taps flops and 8 bytes per element at stride 1: 4.5 cycles per vector of 16 for 3x3.
// From L3 and DRAM bandwidth decides; from 256 channels on, pixels lie a power of two apart and
// share sets of L1, which then holds 12 of the 36 lines of a tile.
//
// Tried and lost: one row (35 % slower from L2), tiles of 4 pixels at stride 1 (10 %), 7 at stride
// 2 (15 % at 14x14), fetching the lines of y ahead, copying channels-last x of fewer than 1024
// channels (with 32 half as fast), bands of 96 KiB (30 %).

#pragma once

#include "conv/conv_stage.h"
#include "core/epilogue.h"
#include "core/order.h"

namespace brasa::cpu::BRASA_ISA {

/// An array as it lies, channels-last.
template <class T>
static Source<T> plain_source(const T* data, int64_t channels, const int64_t* size) {
  const int64_t row = size[2] * channels;
  return {data,
          size[0] * size[1] * row,
          {size[1] * row, row, channels},
          {size[0], size[1], size[2]},
          false};
}

/// Parts that the rows of dy are dealt to for the weight gradient.
static inline int64_t depthwise_parts(const ConvParams& p) {
  return smaller(order::kConvParts, p.batch * p.out[0] * p.out[1]);
}

template <class T>
void depthwise_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& params,
                       const Epilogue<T>& epilogue);
template <class T>
void depthwise_backward_input(Context ctx, const T* dy, const T* w, T* dx,
                              const ConvParams& params);
template <class T>
void depthwise_backward_weight(Context ctx, const T* dy, const T* x, T* dw,
                               const ConvParams& params, void* workspace);

/// Bytes of workspace of any of the three.
template <class T> size_t depthwise_workspace(const ConvParams& params, int threads);

}  // namespace brasa::cpu::BRASA_ISA
