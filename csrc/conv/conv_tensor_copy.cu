// What convolutions on tensor cores copy: images filled up with channels, packed weights, and the
// gradient of the weight from its parts.
#include "conv/conv_tensor.cuh"
#include "core/ptx_convert.cuh"

namespace brasa::cuda {

/// Pieces of an image: `of_pixel` in all groups, `of_group` in one.
struct PieceOrder {
  int64_t count, group_channels;
  simt::Divisor of_group, of_pixel, pixels;
  bool planes;  ///< the image is C-ordered: neighbouring threads have neighbouring pixels
};

/// A thread writes one piece.
template <class T>
__global__ void __launch_bounds__(kThreads)
    fill_channels_kernel(const T* from, T* to, Layout5 layout, PieceOrder order, int64_t pixels,
                         int64_t of_pixel) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < order.count; i += stride) {
    int64_t image = i, piece, pixel;
    if (order.planes) {
      pixel = order.pixels.take_remainder(image), piece = order.of_pixel.take_remainder(image);
    } else {
      piece = order.of_pixel.take_remainder(image), pixel = order.pixels.take_remainder(image);
    }
    int64_t group = piece;
    const int64_t first = order.of_group.take_remainder(group) * kPiece<T>;
    const T* source = from + image * layout.image + pixel * layout.step[2] +
                      (group * order.group_channels + first) * layout.channel;
    T filled[kPiece<T>];
#pragma unroll
    for (int c = 0; c < kPiece<T>; ++c)
      filled[c] = first + c < order.group_channels ? source[c * layout.channel] : T{};
    simt::Pack<uint32_t, 4> words;  // of 16-bit elements the compiler would store one by one
    __builtin_memcpy(&words, filled, kPieceBytes);
    T* target = to + ((image * pixels + pixel) * of_pixel + piece) * kPiece<T>;
    simt::store_pack(reinterpret_cast<uint32_t*>(target), words);
  }
}

template <class T>
void fill_channels(simt::stream_t stream, const T* from, T* to, const Layout5& layout,
                   int64_t images, int64_t groups, int64_t of_group, int64_t filled) {
  const int64_t pixels = int64_t(layout.size[0]) * layout.size[1] * layout.size[2];
  const int64_t pieces = filled / kPiece<T>, count = images * pixels * groups * pieces;
  if (count == 0) return;
  const PieceOrder order{count,
                         of_group,
                         simt::Divisor(pieces),
                         simt::Divisor(groups * pieces),
                         simt::Divisor(pixels),
                         layout.channel != 1};
  simt::launch(
      {.grid = simt::blocks_for(count, kThreads), .block = dim3(kThreads), .stream = stream},
      fill_channels_kernel<T>, from, to, layout, order, pixels, groups * pieces);
}

constexpr int kSide = 32;  // of the squares that weights are packed in

/// A block packs squares of columns x channels of one tap: it reads along what lies closer together
/// and writes along the channels. blockIdx.y counts taps, blockIdx.z groups.
template <class T>
__global__ void __launch_bounds__(kThreads) pack_weights_kernel(WeightPacking<T> p, int64_t taps) {
  BRASA_SHARED(T, square, [kSide][kSide + 2]);
  const int lane = int(threadIdx.x) % kSide, line = int(threadIdx.x) / kSide;
  const int64_t across = (p.depth + kSide - 1) / kSide;
  const int64_t first_column = blockIdx.x / across * kSide;
  const int64_t first_channel = blockIdx.x % across * kSide;
  const bool by_columns = p.w_column < p.w_channel;
  for (int64_t z = blockIdx.z; z < p.groups; z += gridDim.z) {
    for (int64_t tap = blockIdx.y; tap < taps; tap += gridDim.y) {
      int64_t rest = tap, from = z * p.w_group;
      for (int d = 2; d >= 0; --d) {
        const Axis& axis = p.axis[d];
        from += (axis.kernel_first + rest % axis.taps * axis.kernel_step) * p.w_tap[d];
        rest /= axis.taps;
      }
      for (int r = line; r < kSide; r += kThreads / kSide) {
        const int i = by_columns ? lane : r, k = by_columns ? r : lane;
        const int64_t column = first_column + i, channel = first_channel + k;
        square[i][k] = column < p.columns && channel < p.channels
                           ? p.w[from + column * p.w_column + channel * p.w_channel]
                           : T{};
      }
      __syncthreads();
      for (int r = line; r < kSide; r += kThreads / kSide) {
        const int64_t column = first_column + r, channel = first_channel + lane;
        if (column < p.columns && channel < p.depth)
          p.to[((z * p.columns + column) * taps + tap) * p.depth + channel] = square[r][lane];
      }
      __syncthreads();
    }
  }
}

template <class T> void pack_weights(simt::stream_t stream, const WeightPacking<T>& p) {
  constexpr int64_t kMostTaps = 65535;
  const int64_t taps = p.axis[0].taps * p.axis[1].taps * p.axis[2].taps;
  if (taps == 0) return;
  const int64_t squares =
      simt::ceil_div<int64_t>(p.columns, kSide) * simt::ceil_div<int64_t>(p.depth, kSide);
  simt::launch({.grid = dim3(unsigned(squares), unsigned(taps < kMostTaps ? taps : kMostTaps),
                             grid_z(p.groups)),
                .block = dim3(kThreads),
                .stream = stream},
               pack_weights_kernel<T>, p, taps);
}

/// dw[group, column][channel][tap] = the sum over parts of [group][tap][channel][column].
template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_weight_kernel(const float* parts, int64_t splits, int64_t count, T* dw,
                         simt::Divisor columns, simt::Divisor channels, simt::Divisor taps,
                         int64_t group_out, int64_t group_in, int64_t all_taps) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    int64_t group = i;
    const int64_t column = columns.take_remainder(group);
    const int64_t channel = channels.take_remainder(group);
    const int64_t tap = taps.take_remainder(group);
    if (channel >= group_in) continue;
    float sum = 0;
#pragma unroll 4
    for (int64_t part = 0; part < splits; ++part) sum += parts[part * count + i];
    dw[((group * group_out + column) * group_in + channel) * all_taps + tap] = simt::narrow<T>(sum);
  }
}

template <class T>
void finish_weight(simt::stream_t stream, const float* parts, int64_t splits, T* dw,
                   const ConvParams& p, int64_t channels) {
  const int64_t count = p.groups * p.taps() * channels * p.group_out();
  simt::launch(
      {.grid = simt::blocks_for(count, kThreads), .block = dim3(kThreads), .stream = stream},
      finish_weight_kernel<T>, parts, splits, count, dw, simt::Divisor(p.group_out()),
      simt::Divisor(channels), simt::Divisor(p.taps()), p.group_out(), p.group_in(), p.taps());
}

#define BRASA_CONV_COPIES(T)                                                                     \
  template void fill_channels<T>(simt::stream_t, const T*, T*, const Layout5&, int64_t, int64_t, \
                                 int64_t, int64_t);                                              \
  template void pack_weights<T>(simt::stream_t, const WeightPacking<T>&);
BRASA_CONV_COPIES(float)
BRASA_CONV_COPIES(double)
BRASA_CONV_COPIES(float16)
BRASA_CONV_COPIES(bfloat16)

#define BRASA_FINISH_WEIGHT(T)                                                                 \
  template void finish_weight<T>(simt::stream_t, const float*, int64_t, T*, const ConvParams&, \
                                 int64_t);
BRASA_FINISH_WEIGHT(float)
BRASA_FINISH_WEIGHT(float16)
BRASA_FINISH_WEIGHT(bfloat16)

}  // namespace brasa::cuda
