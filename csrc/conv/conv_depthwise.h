// Depthwise convolution: one filter per channel. Bound by bandwidth, so vectors run over channels
// and a few neighbouring pixels share each weight; nothing is packed but the weights, taps
// outermost.
#pragma once

#include "conv/conv_stage.h"
#include "core/epilogue.h"

namespace brasa::cpu::BRASA_ISA {

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
template <class T> size_t depthwise_workspace(const ConvParams& params);

}  // namespace brasa::cpu::BRASA_ISA
