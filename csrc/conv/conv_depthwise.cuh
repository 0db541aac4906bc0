// Depthwise convolutions on CUDA: one filter per channel, so nothing to multiply matrices for.
//
// Up to eight neighbouring threads have a piece of 16 bytes of the channels each, 128 bytes of a
// pixel together; a thread sums kRun neighbouring pixels of a row, and reads a row of the window
// once for all of them (3x3: 4.5 pieces per result in place of 9). A block's threads are neighbours
// along both axes, so that the rows they share come from L1. Kernels 3 and 5 wide have their taps
// in registers; others, and float64, read for each tap anew. Images are read as conv_image.cuh
// says.
//
// Floor: x and y once. A result of 3x3 takes 27 bytes of L1 in float32, half of what L1 gives while
// memory delivers its 8. Zeros of the padding are multiplied: a weight that is infinite or NaN
// shows at the borders.
#pragma once

#include "conv/conv_image.cuh"
#include "core/epilogue.cuh"
#include "core/ptx_convert.cuh"

namespace brasa::cuda {

constexpr int kRun = 4, kMostAlong = 8;  // pixels of a thread; threads along the channels

/// Threads along so many channels, a power of two: few channels leave more for the pixels.
template <class T> int threads_along(int64_t channels) {
  int along = 1;
  while (along < kMostAlong && along * kPiece<T> < channels) along *= 2;
  return along;
}

/// Lanes of a piece, widened.
template <class T> using Piece = Wide<T>[kPiece<T>];

template <class T> BRASA_DEVICE_FN void load_piece(const T* from, Piece<T>& to) {
  if constexpr (sizeof(T) == 2) {
    const auto words = simt::load_pack<4>(reinterpret_cast<const uint32_t*>(from));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[2 * i] = simt::widen(T{uint16_t(words[i])});
      to[2 * i + 1] = simt::widen(T{uint16_t(words[i] >> 16)});
    }
  } else {
    const auto pack = simt::load_pack<kPiece<T>>(from);
#pragma unroll
    for (int i = 0; i < kPiece<T>; ++i) to[i] = pack[i];
  }
}

/// The first `live` lanes; `packs` says that whole pieces may be written at once.
template <class T>
BRASA_DEVICE_FN void store_piece(T* to, const Piece<T>& from, int live, bool packs) {
  if (packs && live >= kPiece<T>) {
    if constexpr (sizeof(T) == 2) {
      simt::Pack<uint32_t, 4> words;
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = simt::narrow_pair<T>(from[2 * i], from[2 * i + 1]);
      simt::store_pack(reinterpret_cast<uint32_t*>(to), words);
    } else {
      simt::Pack<T, kPiece<T>> pack;
#pragma unroll
      for (int i = 0; i < kPiece<T>; ++i) pack[i] = from[i];
      simt::store_pack(to, pack);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kPiece<T>; ++i)
    if (i < live) to[i] = simt::narrow<T>(from[i]);
}

/// How the pixels of a grid are dealt to threads: rows of all images, in runs of kRun pixels.
struct RunGrid {
  Axis axis[3];
  simt::Divisor height, depth;
  int64_t rows, runs;  ///< of the grid; of a row

  RunGrid(const Axis* axes, int64_t batch)
      : height(axes[1].count),
        depth(axes[0].count),
        rows(batch * axes[0].count * axes[1].count),
        runs(simt::ceil_div<int64_t>(axes[2].count, kRun)) {
    for (int d = 0; d < 3; ++d) axis[d] = axes[d];
  }
  /// The image and the coordinates of a row.
  BRASA_DEVICE_FN void split(int64_t row, int64_t& image, int64_t (&q)[2]) const {
    image = row;
    q[1] = height.take_remainder(image), q[0] = depth.take_remainder(image);
  }
};

/// The pieces of an input row that a run of kRun pixels meets with kTaps taps, kStep apart.
template <class T, int kTaps, int kStep>
using Window = Wide<T>[(kRun - 1) * kStep + kTaps][kPiece<T>];

/// Reads a window from column `first` of a row of `width` pixels; zeros outside of it.
template <class T, int kTaps, int kStep>
BRASA_DEVICE_FN void load_window(const T* row, int64_t first, int width, int64_t step,
                                 Window<T, kTaps, kStep>& window) {
#pragma unroll
  for (int j = 0; j < (kRun - 1) * kStep + kTaps; ++j) {
    const int column = int(first) + j;
    if (unsigned(column) < unsigned(width)) {
      load_piece(row + column * step, window[j]);
    } else {
#pragma unroll
      for (int i = 0; i < kPiece<T>; ++i) window[j][i] = 0;
    }
  }
}

template <class T>
void depthwise_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                       const Epilogue<T>& epilogue);
template <class T>
void depthwise_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& p);
template <class T>
void depthwise_backward_weight(Context ctx, const T* dy, const T* x, T* dw, const ConvParams& p,
                               void* workspace);
template <class T> size_t depthwise_forward_workspace(const ConvParams& p);
template <class T> size_t depthwise_input_workspace(const ConvParams& p);
template <class T> size_t depthwise_weight_workspace(const ConvParams& p);

}  // namespace brasa::cuda
