#include "core/device.cuh"
#include "core/half.h"
#include "shuffle/shuffle.h"

namespace brasa::cuda {

constexpr int kThreads = 256;

/// Extents and layout of an array of images.
struct Images {
  int64_t channels, rows, columns;
  bool channels_last;
};

struct Element {
  int64_t image, channel, row, column;
};

BRASA_DEVICE_FN Element element_at(const Images& a, int64_t i) {
  if (a.channels_last) {
    const int64_t pixel = i / a.channels, line = pixel / a.columns;
    return {line / a.rows, i % a.channels, line % a.rows, pixel % a.columns};
  }
  const int64_t line = i / a.columns, plane = line / a.rows;
  return {plane / a.channels, plane % a.channels, line % a.rows, i % a.columns};
}

BRASA_DEVICE_FN int64_t offset_of(const Images& a, const Element& e) {
  if (a.channels_last)
    return ((e.image * a.rows + e.row) * a.columns + e.column) * a.channels + e.channel;
  return ((e.image * a.channels + e.channel) * a.rows + e.row) * a.columns + e.column;
}

/// Where in the small image an element of the large one lies, and the other way round.
BRASA_DEVICE_FN Element in_small(const Element& e, int64_t r) {
  return {e.image, (e.channel * r + e.row % r) * r + e.column % r, e.row / r, e.column / r};
}
BRASA_DEVICE_FN Element in_large(const Element& e, int64_t r) {
  return {e.image, e.channel / (r * r), e.row * r + e.channel / r % r,
          e.column * r + e.channel % r};
}

/// A thread writes every gridDim.x kThreads-th element of y, so that writes are coalesced.
template <class T, bool kShuffle>
__global__ void __launch_bounds__(kThreads)
    pixel_shuffle_kernel(const T* x, T* y, int64_t n, Images from, Images to, int64_t factor) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    const Element e = element_at(to, i);
    y[i] = x[offset_of(from, kShuffle ? in_small(e, factor) : in_large(e, factor))];
  }
}

// ----------------------------------------------------------------------------------------
// launchers

template <class T, bool kShuffle>
void launch_shuffle(Context ctx, const T* x, T* y, const ShuffleShape& s) {
  const int64_t r = s.factor, n = s.batch * s.channels * s.height * s.width * r * r;
  if (n == 0) return;
  const Images small{s.channels * r * r, s.height, s.width, s.channels_last};
  const Images large{s.channels, s.height * r, s.width * r, s.channels_last};
  simt::launch({.grid = simt::blocks_for(n, kThreads),
                .block = dim3(kThreads),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               pixel_shuffle_kernel<T, kShuffle>, x, y, n, kShuffle ? small : large,
               kShuffle ? large : small, r);
}

template <class T> void pixel_shuffle(Context ctx, const T* x, T* y, const ShuffleShape& shape) {
  launch_shuffle<T, true>(ctx, x, y, shape);
}

template <class T> void pixel_unshuffle(Context ctx, const T* x, T* y, const ShuffleShape& shape) {
  launch_shuffle<T, false>(ctx, x, y, shape);
}

BRASA_INSTANTIATE(pixel_shuffle, float, double, float16, bfloat16)
BRASA_INSTANTIATE(pixel_unshuffle, float, double, float16, bfloat16)

}  // namespace brasa::cuda
