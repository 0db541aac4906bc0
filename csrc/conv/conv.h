// Convolution (cross-correlation) in one, two or three dimensions, its gradients, grouped and
// depthwise.
//
//   y[n, o, q] = activation(bias[o] + sum over taps k, channels c of w[o, c, k] x[n, c, i(q, k)] +
//   residual) i(q, k) = q * stride + k * dilation - pad_begin; outside x reads 0 dx[n, c, i] = sum
//   over (q, k) with i(q, k) = i and outputs o of w[o, c, k] dy[n, o, q] dw[o, c, k] = sum over n,
//   q of dy[n, o, q] x[n, c, i(q, k)];   db[o] = sum over n, q of dy[n, o, q]
//
// Algorithm on the CPU: implicit GEMM with channels innermost, never an im2col of the whole tensor.
// A tile of pixels x output channels lives in registers; the inner loop runs over the input
// channels of one tap, each pixel's through a pointer, so that strides and dilation cost nothing
// there. The image is cut where the taps that lie in it change: border pixels are problems of fewer
// taps, and padding is never multiplied (19 % of a 3x3 on 7x7). Against that a padded copy lost 5
// to 18 % with 3 and 16 channels and won nothing with one. Each thread packs the panels of
// weights that it uses (conv_panels.h), which the loop reads front to back; larger pieces at a
// time, or prefetching them, brought nothing; nor did writing a result beyond the caches past them.
// Backward data is the same loop over transposed weights; a stride s gives s^d dense problems, one
// per residue of the pixel's position, each cut at its borders. Backward weights keeps a tile of
// taps and input channels x output channels in registers and runs over pixels. Few input channels
// would leave lanes empty in backward data: conv_project.h, conv_fold.h. Layers of one tap and many
// channels are matrix products: conv_product.h. Depthwise layers have tiles of their own, of pixels
// of two rows (conv_depthwise.h). Images of one channel with few outputs have vectors over pixels
// (conv_narrow.h); there alone padding is multiplied, so a weight that is infinite or NaN shows at
// their borders and not at others'.
//
// Memory: y, dy and residual are channels-last. x and dx may be C-ordered. 1x1 layers read planes
// as they lie (conv_planes.h), depthwise ones convert a band of rows at a time; otherwise C order
// is staged in workspace, channels-last, by blocks transposed in registers; weight gradients stage
// few channels under padding too.
//
// Floor: 2 * taps * C/groups flops per output, taps in the padding left out; bytes of x, w and y
// once each. The direct loop reaches 75 to 97 % of the FMA peak from 16 channels on. Winograd would
// need fewer products for 3x3, but its error is relative to a whole tile: here it is to the
// products of each element.
// Of what is left, tiles of 1x1 layers reach 90 to 95 % on one thread (64 input channels 88: a tile
// then lasts 770 cycles), and two threads lose 2 to 4 % of that; a single panel of 24 of 32 columns
// gives a quarter away. One image with many channels waits for its weights: packed once
// (conv_pack.h) 512 channels of 3x3 on 7x7 take 0.64 of the time.
//
// Rounding: forward and dx are one FMA chain per element over taps ascending, then channels,
// starting at the bias; products round as matmul/ does. dw and db are sums over fixed blocks of
// pixels (core/order.h), blocks added in order.
#pragma once

#include "core/dispatch.h"
#include "core/epilogue.h"

namespace brasa {

/// Extents are depth, height, width; one- and two-dimensional ones have leading extents of 1.
struct ConvParams {
  int64_t batch, in_channels, out_channels, groups;
  int64_t in[3], out[3], kernel[3], stride[3], dilation[3], pad_begin[3], pad_end[3];
  bool x_channels_last;   ///< else x and dx are C-ordered
  bool packed_w = false;  ///< of the forward pass on the CPU: w is what conv_pack() wrote
  bool aligned = false;   ///< the arrays begin at multiples of 16 bytes (CUDA)
  MathMode math_mode = MathMode::ieee;  ///< of products of float32 (CUDA)

  constexpr int64_t in_pixels() const { return in[0] * in[1] * in[2]; }
  constexpr int64_t out_pixels() const { return out[0] * out[1] * out[2]; }
  constexpr int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  constexpr int64_t group_in() const { return in_channels / groups; }
  constexpr int64_t group_out() const { return out_channels / groups; }
  constexpr bool is_depthwise() const {
    return groups == in_channels && groups == out_channels && groups > 1;
  }
};

/// An activation whose derivative at v (laid out as y) multiplies dy; none where v is null.
template <class T> struct Slope {
  const T* v;
  Activation activation;
};

}  // namespace brasa

/// y (channels-last) from x and w (out_channels, in_channels / groups, taps in C order).
BRASA_KERNEL(conv_forward, const T* x, const T* w, T* y, const ConvParams& params,
             const Epilogue<T>& epilogue)
BRASA_FUNCTION(size_t, conv_forward_workspace, const ConvParams& params, int threads)

#if !defined(BRASA_FOR_CUDA)

/// Packs w once for all calls of conv_forward() with this instruction set, whatever their images,
/// and the elements that this takes. Of `params` channels, groups and kernel count.
BRASA_KERNEL(conv_pack, const T* w, T* packed, const ConvParams& params)
BRASA_FUNCTION(int64_t, conv_packed_elements, const ConvParams& params)

#endif

/// dx, laid out as x, from dy (channels-last).
BRASA_KERNEL(conv_backward_input, const T* dy, const T* w, T* dx, const ConvParams& params)
BRASA_FUNCTION(size_t, conv_backward_input_workspace, const ConvParams& params, int threads)

/// dw, laid out as w, and db; either may be null. dy is that of the activation's result.
BRASA_KERNEL(conv_backward_weight, const T* dy, const T* x, T* dw, T* db, const ConvParams& params,
             const Slope<T>& slope)
BRASA_FUNCTION(size_t, conv_backward_weight_workspace, const ConvParams& params, bool has_slope,
               int threads)

#if defined(BRASA_FOR_CUDA)

/// db in float32, of arrays of 16 bits.
BRASA_KERNEL(conv_wide_bias, const T* dy, float* db, const ConvParams& params)
BRASA_FUNCTION(size_t, conv_wide_bias_workspace, const ConvParams& params)

#endif
