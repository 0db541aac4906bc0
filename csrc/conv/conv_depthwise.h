// Depthwise convolution: one filter per channel. Bound by bandwidth, so vectors run over channels
// and a few neighbouring pixels share each weight and, where taps are neighbours too, each element
// of x; nothing is packed but the weights, taps outermost.
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
