// What the convolution's CUDA kernels share: where elements are read, and the tile product.
//
// A product over tiles in shared memory reads an element whose place is the sum of what its row and
// what its depth contribute, in image coordinates and in memory: both are worked out once per tile,
// and the inner loads only add and compare.
#pragma once

#include "conv/conv.h"
#include "conv/conv_axis.h"
#include "core/device.cuh"

namespace brasa::cuda {

constexpr int kThreads = 256;
constexpr int kSide = 16, kPer = 4, kTile = kSide * kPer;  // 16 x 16 threads, 4 x 4 results each
constexpr int kDepth = 16;                                 // of a round of shared memory
constexpr int kLoads = kTile * kDepth / kThreads;
constexpr int64_t kFewChannels = 8;  // groups of fewer output channels have the direct kernels

/// An image array: steps in elements.
struct Layout5 {
  int64_t image, channel, step[3], size[3];
};

static inline Layout5 layout_of_image(int64_t channels, const int64_t* size, bool channels_last) {
  const int64_t unit = channels_last ? channels : 1, pixels = size[0] * size[1] * size[2];
  return {channels * pixels,
          channels_last ? 1 : pixels,
          {size[1] * size[2] * unit, size[2] * unit, unit},
          {size[0], size[1], size[2]}};
}

/// What a row or a step of the depth contributes to a position in the image and to the offset
/// there.
struct Place {
  int64_t at[3], offset;
};

BRASA_DEVICE_FN bool inside(const Layout5& layout, const Place& a, const Place& b) {
  bool yes = true;
#pragma unroll
  for (int d = 0; d < 3; ++d) {
    const int64_t at = a.at[d] + b.at[d];
    yes = yes && at >= 0 && at < layout.size[d];
  }
  return yes;
}

/// The q-th coordinates of pixel `index` of a grid of these counts; returns the image.
BRASA_DEVICE_FN int64_t split_pixel(int64_t index, const Axis* axis, int64_t* q) {
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    q[d] = index % axis[d].count;
    index /= axis[d].count;
  }
  return index;
}

BRASA_DEVICE_FN Place place_pixel(const Axis* axis, const Layout5& layout, int64_t index) {
  int64_t q[3];
  Place place;
  place.offset = split_pixel(index, axis, q) * layout.image;
#pragma unroll
  for (int d = 0; d < 3; ++d) {
    place.at[d] = q[d] * axis[d].in_step + axis[d].in_first;
    place.offset += place.at[d] * layout.step[d];
  }
  return place;
}

/// Depth `index` = (tap, channel): where it reads, and with `kernel` which element of the kernel it
/// is.
BRASA_DEVICE_FN Place place_tap(const Axis* axis, const Layout5& layout, int64_t channels,
                                int64_t index, int64_t* kernel, int64_t& channel) {
  channel = index % channels;
  int64_t tap = index / channels;
  Place place;
  place.offset = channel * layout.channel;
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    const int64_t j = tap % axis[d].taps;
    tap /= axis[d].taps;
    kernel[d] = axis[d].kernel_first + j * axis[d].kernel_step;
    place.at[d] = j * axis[d].tap_step;
    place.offset += place.at[d] * layout.step[d];
  }
  return place;
}

template <class T> using SharedTile = T[kDepth][kTile + simt::kPackLanes<T>];

/// sum += left x right over the kDepth steps in shared memory.
template <class T>
BRASA_DEVICE_FN void multiply_tile(const SharedTile<T>& left, const SharedTile<T>& right,
                                   T (&sum)[kPer][kPer]) {
  const int row = int(threadIdx.x) / kSide * kPer, column = int(threadIdx.x) % kSide * kPer;
#pragma unroll 4
  for (int p = 0; p < kDepth; ++p) {
    T a[kPer], b[kPer];
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      a[i] = left[p][row + i];
      b[i] = right[p][column + i];
    }
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
#pragma unroll
      for (int j = 0; j < kPer; ++j) sum[i][j] += a[i] * b[j];
    }
  }
}

static inline simt::stream_t stream_of(Context ctx) {
  return static_cast<simt::stream_t>(ctx.stream);
}

static inline unsigned grid_z(int64_t groups) {
  return unsigned(groups < 65535 ? groups : 65535);
}

}  // namespace brasa::cuda
