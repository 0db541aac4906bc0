// Staging: an array copied into workspace, channels-last, with zeros around each image, so that a
// gather reads it without asking where the border is.
#pragma once

#include "conv/conv_join.h"
#include "conv/conv_transpose.h"
#include "core/parallel.h"
#include "core/tiles.h"

namespace brasa::cpu::BRASA_ISA {

/// What of an image a gather asks for along each axis: [low, high].
struct Reach {
  int64_t low[3], high[3];
};

/// A padded copy is made only while it is at most so many times the array.
constexpr int64_t kMaxStagedGrowth = 3;

/// Decides how `in` is read, and takes the memory of a staged copy. With `may_pad` the copy has its
/// padding in memory, and few channels are copied for its sake alone.
template <class T>
static Source<T> plan_source(Arena& arena, const T* in, bool channels_last, int64_t batch,
                             int64_t channels, int64_t group_channels, const int64_t* size,
                             const Reach& reach, T*& staged, bool may_pad = true) {
  Source<T> source{in, 0, {}, {size[0], size[1], size[2]}, true};
  int64_t extent[3] = {size[0], size[1], size[2]}, before[3] = {};
  double growth = 1;
  for (int d = 0; d < 3; ++d) {
    before[d] = larger(0, -reach.low[d]);
    extent[d] += before[d] + larger(0, reach.high[d] - size[d] + 1);
    if (extent[d] != size[d]) source.covers = false;
    growth *= double(extent[d]) / double(larger(size[d], 1));
  }
  const bool pad = may_pad && !source.covers && growth <= double(kMaxStagedGrowth) &&
                   (!channels_last || group_channels < kConvFewChannels);
  for (int d = 0; d < 3; ++d)
    if (!pad) extent[d] = size[d], before[d] = 0;
  source.step[2] = channels;
  source.step[1] = extent[2] * channels;
  source.step[0] = extent[1] * source.step[1];
  source.image = extent[0] * source.step[0];
  staged = nullptr;
  if (pad || !channels_last) {
    staged = arena.take<T>(batch * source.image);
    source.covers |= pad;
    if (staged) source.data = staged + source.offset(before[0], before[1], before[2]);
  }
  return source;
}

/// to[w * channels + c] = from[c * plane + w] for w < width.
template <class T>
static void interleave_row(const T* from, int64_t plane, int64_t channels, int64_t width, T* to) {
  if (channels <= kJoinedChannels) return join_planes<T>(from, plane, channels, width, to);
  // What is left over of a row begins early, in whole vectors.
  const int64_t whole = width < kLanes<T> ? width : width / kLanes<T> * kLanes<T>;
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const auto convert = [&](int64_t first, int64_t count) {
      transpose_rows(from + c * plane + first, plane, smaller(kLanes<T>, channels - c), count,
                     [&](int64_t w, Vec<T> pixel) {
                       store_live(to + (first + w) * channels + c, pixel, channels - c);
                     });
    };
    convert(0, whole);
    if (whole < width) convert(width - kLanes<T>, kLanes<T>);
  }
}

/// to[c * plane + w] = from[w * channels + c] for w < width.
template <class T>
static void separate_row(const T* from, int64_t plane, int64_t channels, int64_t width, T* to) {
  for (int64_t c = 0; c < channels; c += kLanes<T>)
    for (int64_t w = 0; w < width; w += kLanes<T>)
      transpose_rows(from + w * channels + c, channels, smaller(kLanes<T>, width - w),
                     smaller(kLanes<T>, channels - c), [&](int64_t j, Vec<T> columns) {
                       store_live(to + (c + j) * plane + w, columns, width - w);
                     });
}

template <class T> static void zero_fill(T* p, int64_t n) {
  if (n > 0) __builtin_memset(p, 0, size_t(n) * sizeof(T));
}

/// Rows of about 16 Ki elements per chunk.
static inline int64_t row_grain(int64_t row_elements) {
  return larger(1, 16 * 1024 / larger(1, row_elements));
}

/// Pixels of an image that are converted together: enough of every channel for the prefetcher.
constexpr int64_t kConvertedPixels = 256;

/// Channels-last `out` from the C-ordered `from`, with `interleave`, or C-ordered from
/// channels-last.
template <class T>
static void convert_images(Context ctx, const T* from, T* out, int64_t batch, int64_t channels,
                           int64_t pixels, bool interleave) {
  const int64_t pieces = ceil_div(pixels, kConvertedPixels);
  parallel_for(ctx, batch * pieces, row_grain(kConvertedPixels * channels),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t image = i / pieces * pixels * channels,
                                 first = i % pieces * kConvertedPixels,
                                 width = smaller(kConvertedPixels, pixels - first);
                   const int64_t plain = image + first, inner = image + first * channels;
                   if (interleave)
                     interleave_row(from + plain, pixels, channels, width, out + inner);
                   else
                     separate_row(from + inner, pixels, channels, width, out + plain);
                 }
               });
}

/// Fills the staged copy that `source` describes from `in`.
template <class T>
static void fill_staged(Context ctx, const Source<T>& source, T* staged, const T* in,
                        bool channels_last, int64_t batch, int64_t channels) {
  const int64_t* size = source.size;
  if (source.data == staged && source.image == size[0] * size[1] * size[2] * channels)
    return convert_images(ctx, in, staged, batch, channels, size[0] * size[1] * size[2], true);
  const int64_t extent[3] = {source.image / source.step[0], source.step[0] / source.step[1],
                             source.step[1] / source.step[2]};
  const int64_t start = source.data - staged;  // of pixel 0: its padding follows from the steps
  const int64_t front = start / source.step[0], top = start % source.step[0] / source.step[1],
                left = start % source.step[1] / source.step[2];
  const int64_t pixels = size[0] * size[1] * size[2];
  parallel_for(
      ctx, batch * extent[0] * extent[1], row_grain(source.step[1]),
      [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const int64_t n = row / (extent[0] * extent[1]);
          const int64_t d = row / extent[1] % extent[0] - front, h = row % extent[1] - top;
          T* to = staged + row * source.step[1];
          if (d < 0 || d >= size[0] || h < 0 || h >= size[1]) {
            zero_fill(to, source.step[1]);
            continue;
          }
          zero_fill(to, left * channels);
          const int64_t first = (d * size[1] + h) * size[2];
          T* pixel = to + left * channels;
          if (channels_last || channels == 1) {
            __builtin_memcpy(pixel, in + (n * pixels + first) * channels,
                             size_t(size[2] * channels) * sizeof(T));
          } else {
            interleave_row(in + n * pixels * channels + first, pixels, channels, size[2], pixel);
          }
          zero_fill(pixel + size[2] * channels, source.step[1] - (left + size[2]) * channels);
        }
      });
}

/// C-ordered `out` from the channels-last copy `from`.
template <class T>
static void separate_channels(Context ctx, const T* from, T* out, int64_t batch, int64_t channels,
                              const int64_t* size) {
  convert_images(ctx, from, out, batch, channels, size[0] * size[1] * size[2], false);
}

}  // namespace brasa::cpu::BRASA_ISA
