// Images and weights as kernels read them in pieces of 16 bytes: channels-last, with whole pieces
// of channels in each group. An image that lies otherwise is copied first, its channels filled up
// with zeros; weights always are.
#pragma once

#include "conv/conv_tile.cuh"
#include "core/half.h"
#include "matmul/gemm_mma.cuh"

namespace brasa::cuda {

template <class T> struct TensorImage {
  const T* data;
  Layout5 layout;
  int64_t channels;  ///< of a group, whole pieces
};

static inline int64_t whole(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

/// to (pixels of all images, groups, filled channels) = an image in either format.
template <class T>
void fill_channels(simt::stream_t stream, const T* from, T* to, const Layout5& layout,
                   int64_t images, int64_t groups, int64_t of_group, int64_t filled);

/// Whether an image is copied, and the channels of a group that kernels then see.
struct ImagePlan {
  bool copied;
  int64_t channels, elements;
};
template <class T>
ImagePlan plan_image(const ConvParams& p, int64_t groups, int64_t of_group, int64_t pixels,
                     bool channels_last) {
  const int64_t channels = whole(of_group, kPiece<T>);
  const bool copied = !channels_last || !p.aligned || channels != of_group;
  return {copied, channels, copied ? p.batch * pixels * groups * channels : 0};
}

/// The image, copied to `copy` where that is planned.
template <class T>
TensorImage<T> read_image(simt::stream_t stream, int64_t images, int64_t groups,
                          const ImagePlan& plan, const T* from, T* copy, int64_t of_group,
                          const int64_t* size, bool channels_last) {
  const Layout5 layout = layout_of_image(groups * of_group, size, channels_last);
  if (!plan.copied) return {from, layout, of_group};
  fill_channels(stream, from, copy, layout, images, groups, of_group, plan.channels);
  return {copy, layout_of_image(groups * plan.channels, size, true), plan.channels};
}

/// Weights of one grid: [group][column][tap][channel], `depth` channels of a tap, zeros behind the
/// `channels` that there are.
template <class T> struct WeightPacking {
  const T* w;
  T* to;
  int64_t groups, columns, channels, depth;
  int64_t w_group, w_column, w_channel, w_tap[3];
  Axis axis[3];

  void set_grid(const ConvParams& p, const Axis* axes) {
    for (int d = 0; d < 3; ++d) axis[d] = axes[d];
    w_tap[0] = p.kernel[1] * p.kernel[2], w_tap[1] = p.kernel[2], w_tap[2] = 1;
  }
};
template <class T> void pack_weights(simt::stream_t stream, const WeightPacking<T>& packing);

/// Calls f(axes) for the grid of every residue class of backward data.
template <class F> void for_classes(const ConvParams& p, const F& f) {
  for (int64_t d = 0; d < residues(p, 0); ++d)
    for (int64_t h = 0; h < residues(p, 1); ++h)
      for (int64_t k = 0; k < residues(p, 2); ++k) {
        const Axis axes[3] = {backward_axis(p, 0, d), backward_axis(p, 1, h),
                              backward_axis(p, 2, k)};
        f(axes);
      }
}

}  // namespace brasa::cuda
