// Convolutions over images of up to four channels in 16 bits, on Hopper: the first layers of
// networks for pictures.
//
// A pixel of three channels is 6 bytes, and even filled up to a piece of 16 it leaves five eighths
// of the products zeros and makes a load of every tap. So the image is copied with four channels,
// some rows interleaved: a pixel then has its channels of these rows, and neighbouring pixels make
// a line of 128 bytes, which is a window of rows x pixels: 2 x 8 where rows are taken in strides of
// 2, else 4 x 4. Places in the copy are such windows, which overlap. Over them the convolution is
// one of 64 channels and few taps: 7x7 in strides of 2 has four lines for its 147 products, 3x3 one
// for its 27. The kernels of conv_wgmma.cu and the copy engine then do the rest.
//
// 3 to 64 channels of 7x7 in strides of 2 (64 x 224 x 224) took 454 us forward and 440 us for the
// weight's gradient on an H100, most of it for loads of 16 bytes from L2 (49 for each pixel);
// memory asks for 41.
#pragma once

#include "conv/conv_tensor.cuh"

namespace brasa::cuda {

struct FewChannels {
  bool used;
  int rows, pixels;         ///< of a line
  int64_t height, width;    ///< of the copy: groups of rows, pixels
  ConvParams over_windows;  ///< what is left to do

  int64_t elements() const { return over_windows.batch * height * width * rows * 4; }
  int64_t depth() const { return over_windows.taps() * over_windows.in_channels; }
  Layout5 layout() const {
    const int64_t pixel = rows * 4, row = width * pixel, image = height * row;
    return {image, 1, {image, row, pixel}, {1, int(over_windows.in[1]), int(over_windows.in[2])}};
  }
};

/// Images of few channels, and outputs in whole pieces, on two dimensions.
template <class T> bool has_few_channels(const ConvParams& p) {
  constexpr int64_t kMostChannels = 4, kLeastColumns = 32;
  return sizeof(T) == 2 && p.groups == 1 && p.in_channels <= kMostChannels && p.aligned &&
         p.out_channels > kLeastColumns && p.out_channels % kPiece<T> == 0 && p.batch > 0 &&
         p.in[0] == 1 && p.kernel[0] == 1 && p.out[0] == 1 && p.pad_begin[0] == 0 &&
         p.dilation[1] == 1 && p.dilation[2] == 1;
}

template <class T> FewChannels few_channels(const ConvParams& p) {
  FewChannels few{};
  few.used = has_few_channels<T>(p);
  if (!few.used) return few;
  const int64_t step = p.stride[1];
  few.used = step == 1 || step == 2 || step == 4;
  few.rows = step == 2 ? 2 : 4;
  few.pixels = int(kLine<T> / (4 * few.rows));
  ConvParams& q = few.over_windows = p;
  q.in_channels = kLine<T>, q.x_channels_last = true;
  q.kernel[1] = simt::ceil_div<int64_t>(p.kernel[1], few.rows);
  q.kernel[2] = simt::ceil_div<int64_t>(p.kernel[2], few.pixels);
  q.stride[1] = 1, q.dilation[1] = few.used ? few.rows / step : 1, q.dilation[2] = few.pixels;
  for (int d = 1; d < 3; ++d) q.pad_begin[d] = q.pad_end[d] = 0;
  few.height = p.out[1] + (q.kernel[1] - 1) * q.dilation[1];
  few.width = (p.out[2] - 1) * p.stride[2] + q.kernel[2] * few.pixels;
  q.in[1] = few.height, q.in[2] = few.width - few.pixels + 1;
  return few;
}

/// Backward data, whose residue classes have few columns each: one product over the taps of all of
/// them, in which a place of dy makes the pixels of every class, four channels each.
struct FewInputs {
  bool used;
  Axis axis[3];     ///< over dy
  int64_t columns;  ///< of a place

  int64_t taps() const { return axis[1].taps * axis[2].taps; }
};
template <class T> FewInputs few_inputs(const ConvParams& p) {
  constexpr int64_t kMostColumns = 64;
  FewInputs few{};
  few.columns = larger(kPiece<T>, 4 * p.stride[1] * p.stride[2]);
  few.used = has_few_channels<T>(p) && few.columns <= kMostColumns;
  few.axis[0] = {0, 1, 1, 1, 0, 1, 1, 0, 1};
  for (int d = 1; d < 3; ++d) {
    int64_t first = 0, end = 0;
    for (int64_t r = 0; r < residues(p, d); ++r) {
      const Axis axis = backward_axis(p, d, r);
      if (axis.taps == 0) continue;
      first = end > first ? smaller(first, axis.in_first) : axis.in_first;
      end = larger(end > first ? end : axis.in_first, axis.in_first + axis.taps);
    }
    few.used = few.used && end > first;
    few.axis[d] = {0, 1, ceil_div(p.in[d], p.stride[d]), 1, first, 1, end - first, 0, 1};
  }
  return few;
}

/// The copy of x.
template <class T>
void fold_image(simt::stream_t stream, const ConvParams& p, const FewChannels& few, const T* x,
                T* to);
/// The weights, [column][line].
template <class T>
void fold_weights(simt::stream_t stream, const ConvParams& p, const FewChannels& few, const T* w,
                  T* to);
/// dw from parts, [line][column] each.
template <class T>
void unfold_weights(simt::stream_t stream, const ConvParams& p, const FewChannels& few,
                    const float* parts, int64_t splits, T* dw);
/// The weights of backward data, [column][tap][`depth` channels].
template <class T>
void fold_input_weights(simt::stream_t stream, const ConvParams& p, const FewInputs& few,
                        int64_t depth, const T* w, T* to);
/// dx from the columns of all places.
template <class T>
void unfold_input(simt::stream_t stream, const ConvParams& p, const FewInputs& few,
                  const T* columns, T* dx);

}  // namespace brasa::cuda
