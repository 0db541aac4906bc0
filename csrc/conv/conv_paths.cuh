// The ways that convolutions take on CUDA, for conv.cu: products of matrices (matmul/), tensor
// cores (conv_tensor.cuh), depthwise ones (conv_depthwise.cuh), and the kernels of conv_gather.cu;
// gradients of the bias, which are the same for all.
#pragma once

#include "conv/conv_tile.cuh"
#include "core/ptx_convert.cuh"

namespace brasa::cuda {

/// A kernel of one tap over a channels-last image, pixel by pixel: y = x w^T, dx = dy w, dw = dy^T
/// x.
static inline bool is_product(const ConvParams& p) {
  bool same = p.groups == 1 && p.x_channels_last && p.taps() == 1;
  for (int d = 0; d < 3; ++d)
    same = same && p.stride[d] == 1 && p.pad_begin[d] == 0 && p.pad_end[d] == 0;
  return same;
}

template <class T>
void gather_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                    const Epilogue<T>& epilogue);
template <class T>
void gather_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& p);
template <class T> size_t gather_forward_workspace(const ConvParams& p);
template <class T> size_t gather_input_workspace(const ConvParams& p);

/// db = the sums of dy over all pixels, by way of so many elements of parts.
template <class T, class U>
void backward_bias(Context ctx, const T* dy, U* db, Wide<T>* parts, const ConvParams& p);
template <class T> int64_t bias_parts(const ConvParams& p);

}  // namespace brasa::cuda
