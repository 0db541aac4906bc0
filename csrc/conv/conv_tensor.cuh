// Convolutions on tensor cores, in 16 bits or in tf32, for conv.cu and conv_weight.cu.
//
// Forward and each residue class of backward data are a product of (pixels) x (taps, channels) by
// (taps, channels) x (output channels), the gradient of the weight one of (taps, channels) x
// (pixels) by (pixels) x (output channels). The main loops are those of matmul/ (gemm_mma.cuh): of
// them only the loading of the left operand differs, whose lines are gathered from an image,
// padding as zeros that are not read.
//
// An image of three channels in 16 bits costs 8/3 of its products, for its channels are filled up
// to a piece (conv_image.cuh), all of them on tensor cores; Hopper has a better way (conv_few.cuh),
// and makes the residue classes of backward data at once (conv_classes.cu). Weights are packed
// column by column, each (taps, channels). Sums are float32's; parts of a depth are added in order.
#pragma once

#include "conv/conv_image.cuh"
#include "matmul/gemm_mma.cuh"
#include "matmul/gemm_store.cuh"

namespace brasa::cuda {

/// The left operand: pixels of a grid x its taps and channels.
template <class T> struct PixelOperand {
  TensorImage<T> image;
  Grid grid;
  int64_t pixels;
};

/// The right operand: a matrix for each group, contiguous along the depth for forward and data, and
/// along its extent for the gradient of the weight.
template <class T> struct ConvMatrix {
  const T* data;
  int64_t stride, group;
};

/// Where pixels of a grid begin in an image.
struct PixelRows {
  simt::Divisor pixels[3];
  int64_t first, image, step[3];

  PixelRows(const Grid& grid, const Layout5& layout) : first(0), image(layout.image) {
    for (int d = 0; d < 3; ++d) {
      pixels[d] = grid.pixels[d];
      first += grid.axis[d].out_first * layout.step[d];
      step[d] = grid.axis[d].out_step * layout.step[d];
    }
  }
  /// Rows of `width` elements, one behind the other.
  explicit PixelRows(int64_t width)
      : pixels{simt::Divisor(1), simt::Divisor(1), simt::Divisor(1)},
        first(0),
        image(width),
        step{} {}

  /// Of rows that lie one behind the other, else 0.
  int64_t pitch() const {
    const int64_t width = step[2];
    const bool whole = first == 0 && step[1] == width * pixels[2].divisor() &&
                       step[0] == step[1] * pixels[1].divisor() &&
                       image == step[0] * pixels[0].divisor();
    return whole ? width : 0;
  }
  BRASA_DEVICE_FN int64_t operator()(int64_t row) const {
    int64_t at = first;
#pragma unroll
    for (int d = 2; d >= 0; --d) at += pixels[d].take_remainder(row) * step[d];
    return at + row * image;
  }
};

/// How the depth is cut.
struct ConvCut {
  int64_t depth, splits, split_depth;
};

enum class ConvTile : int8_t { large, tall, small, wgmma_narrow, wgmma, wgmma_wide };
struct ConvPlan {
  ConvTile tile;
  int64_t channels;  ///< of a tap in the depth: the image's, or more
  ConvCut cut;

  bool is_walked() const { return tile >= ConvTile::wgmma_narrow; }
};

/// Forward and data: finished results, or parts of them.
template <class T>
void launch_pixels(simt::stream_t stream, const ConvPlan& plan, int64_t groups,
                   const PixelOperand<T>& left, const ConvMatrix<T>& right,
                   const Results<T, PixelRows>& results);

/// The gradient of the weight: parts, each [group][tap, channel][output channel].
template <class T>
void launch_weight(simt::stream_t stream, const ConvPlan& plan, int64_t groups,
                   const PixelOperand<T>& left, const ConvMatrix<T>& right, const PartSums& parts);

/// The same by Hopper's copy engine, which walks two-dimensional images of one group.
template <class T>
void launch_walked_pixels(simt::stream_t stream, const ConvPlan& plan, const PixelOperand<T>& left,
                          const ConvMatrix<T>& right, const Results<T, PixelRows>& results);
template <class T>
void launch_walked_weight(simt::stream_t stream, const ConvPlan& plan, const PixelOperand<T>& left,
                          const ConvMatrix<T>& right, const PartSums& parts);

/// The residue classes of backward data that are two-dimensional, those of most taps first; a class
/// has its taps from `first_tap` on of all classes' weights.
constexpr int kMostClasses = 4;
struct ConvClass {
  Axis axis[3];
  int64_t first_tap;

  int64_t taps() const { return axis[0].taps * axis[1].taps * axis[2].taps; }
};
struct ConvClasses {
  int count;
  ConvClass of[kMostClasses];
};

/// dx, of `columns` channels, all classes at once by Hopper's copy engine; `right` has the weights
/// of all classes side by side.
template <class T>
void launch_classes(simt::stream_t stream, ConvTile tile, const ConvClasses& classes,
                    const TensorImage<T>& image, int64_t images, const ConvMatrix<T>& right, T* dx,
                    const Layout5& layout, int64_t columns);

/// dw, laid out as the weight, from parts.
template <class T>
void finish_weight(simt::stream_t stream, const float* parts, int64_t splits, T* dw,
                   const ConvParams& p, int64_t channels);

/// Whether a convolution of T goes to tensor cores: not where its groups would leave them empty.
template <class T> bool on_tensor_cores(const ConvParams& p) {
  constexpr int64_t kLeastChannels = 16;
  const bool full =
      p.groups == 1 || (p.group_in() >= kLeastChannels && p.group_out() >= kLeastChannels);
  return full && (sizeof(T) == 2 || (sizeof(T) == 4 && p.math_mode == MathMode::tf32));
}

template <class T>
void tensor_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                    const Epilogue<T>& epilogue);
template <class T>
void tensor_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& p);
template <class T>
void tensor_backward_weight(Context ctx, const T* dy, const T* x, T* dw, const ConvParams& p,
                            void* workspace);
template <class T> size_t tensor_forward_workspace(const ConvParams& p);
template <class T> size_t tensor_input_workspace(const ConvParams& p);
template <class T> size_t tensor_weight_workspace(const ConvParams& p);

}  // namespace brasa::cuda
