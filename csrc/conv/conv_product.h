// Convolutions of one tap without padding, which are matrix products of pixels x channels:
//
//   y = x w^T,  dx = dy w,  dw = dy^T x,
//
// by the kernels of matmul/. Against the gather these pack a strip of weights in the cache of the
// thread that uses it, or read it as it lies, for as many pixels as there are. Measured against it:
// 8 images of 7x7 with 832 channels 3 to 5 % faster forward, 8 to 10 % for dx, 10 to 30 % for
// weights; 2048 -> 512 channels 5, 9 and 64 %. The gather is as good or better forward for larger
// images of few weights, whose transposition the product would repeat, and with few channels on
// either side. Blocks of pixels (conv_weight.h) are better for weights where there are many pixels,
// which are K there (56x56: 150 against 400 GFLOP/s). Strides are taken out of x by a copy first,
// and put into dx after.
#pragma once

#include "conv/conv_plan.h"

namespace brasa::cpu::BRASA_ISA {

/// Whether these are computed as products, which round by core/order.h's blocks of K.
bool is_product_forward(const ConvParams& params);
bool is_product_input(const ConvParams& params);
bool is_product_weight(const ConvParams& params);

/// Whether layers of such weights may be products forward, and what they read if these are packed
/// once.
bool may_be_product(const ConvParams& params);
template <class T> int64_t packed_product_elements(const ConvParams& params);
template <class T> void pack_product(Context ctx, const T* w, T* packed, const ConvParams& params);

template <class T>
void product_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& params,
                     const Epilogue<T>& epilogue);
template <class T> size_t product_forward_workspace(const ConvParams& params, int threads);

/// dx is channels-last.
template <class T>
void product_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& params,
                            void* workspace);
template <class T> size_t product_input_workspace(const ConvParams& params, int threads);

template <class T>
void product_backward_weight(Context ctx, const T* dy, const T* x, T* dw, const ConvParams& params,
                             void* workspace);
template <class T> size_t product_weight_workspace(const ConvParams& params, int threads);

}  // namespace brasa::cpu::BRASA_ISA
