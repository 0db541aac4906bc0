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

/// The weights of one grid as a product reads them: [group][column][tap][channel], `depth` channels
/// of a tap, zeros behind those that there are; `pitch` elements from column to column.
template <class T> struct PackedGrid {
  Axis axis[3];
  T* to;
  int64_t depth, pitch;

  int64_t taps() const { return axis[0].taps * axis[1].taps * axis[2].taps; }
};

/// Weights (`w_column` and `w_channel` elements apart, a kernel's taps side by side) and the grids
/// that they are packed for: of one residue class each, so that each has taps of its own.
template <class T> struct WeightPacking {
  static constexpr int kMostGrids = 8;  // of a launch
  const T* w;
  int64_t groups, columns, channels;
  int64_t w_group, w_column, w_channel, kernel[3];
  int count;
  PackedGrid<T> grid[kMostGrids];

  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};
template <class T> void pack_weights(simt::stream_t stream, const WeightPacking<T>& packing);

/// Packs the weights of one grid behind another's, those of some grids in one launch.
template <class T> class GridPacker {
 public:
  GridPacker(simt::stream_t stream, const WeightPacking<T>& packing, T* to)
      : stream_(stream), packing_(packing), first_(to), next_(to) {}

  PackedGrid<T> add(const Axis* axes, int64_t depth) {
    if (packing_.count == packing_.kMostGrids) flush();
    return packing_.grid[packing_.count++] = place(axes, depth);
  }
  void flush() {
    if (packing_.count > 0) pack_weights(stream_, packing_);
    packing_.count = 0;
  }
  /// Where the weights of the grids that were added lie, one after another from the first on.
  void rewind() { next_ = first_; }
  PackedGrid<T> place(const Axis* axes, int64_t depth) {
    PackedGrid<T> grid{{axes[0], axes[1], axes[2]}, next_, depth, 0};
    grid.pitch = grid.taps() * depth;
    next_ += packing_.groups * packing_.columns * grid.pitch;
    return grid;
  }

 private:
  simt::stream_t stream_;
  WeightPacking<T> packing_;
  T *first_, *next_;
};

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
