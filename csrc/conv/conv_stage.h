// Staging: an array copied into workspace, channels-last, with zeros around each image, so that a
// gather reads it without asking where the border is.
#pragma once

#include "conv/conv_plan.h"
#include "core/parallel.h"
#include "core/tiles.h"

namespace brasa::cpu::BRASA_ISA {

/// What of an image a gather asks for along each axis: [low, high].
struct Reach {
  int64_t low[3], high[3];
};

/// A padded copy is made only while it is at most so many times the array.
constexpr int64_t kMaxStagedGrowth = 3;

/// Decides how `in` is read, and takes the memory of a staged copy. Few channels are padded in it;
/// many only with `pad_many`, and then only if they must be copied anyway.
template <class T>
static Source<T> plan_source(Arena& arena, const T* in, bool channels_last, int64_t batch,
                             int64_t channels, int64_t group_channels, const int64_t* size,
                             const Reach& reach, T*& staged, bool pad_many = true) {
  Source<T> source{in, 0, {}, {size[0], size[1], size[2]}, true};
  int64_t extent[3] = {size[0], size[1], size[2]}, before[3] = {};
  double growth = 1;
  for (int d = 0; d < 3; ++d) {
    before[d] = larger(0, -reach.low[d]);
    extent[d] += before[d] + larger(0, reach.high[d] - size[d] + 1);
    if (extent[d] != size[d]) source.covers = false;
    growth *= double(extent[d]) / double(larger(size[d], 1));
  }
  const bool pad = !source.covers && growth <= double(kMaxStagedGrowth) &&
                   (group_channels < kConvFewChannels || (pad_many && !channels_last));
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
  constexpr int64_t kColumns = 16;  // a cache line of float32 from every channel
  for (int64_t w0 = 0; w0 < width; w0 += kColumns) {
    const int64_t end = smaller(w0 + kColumns, width);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t w = w0; w < end; ++w) to[w * channels + c] = from[c * plane + w];
  }
}

/// to[c * plane + w] = from[w * channels + c] for w < width.
template <class T>
static void separate_row(const T* from, int64_t plane, int64_t channels, int64_t width, T* to) {
  constexpr int64_t kColumns = 16;
  for (int64_t w0 = 0; w0 < width; w0 += kColumns) {
    const int64_t end = smaller(w0 + kColumns, width);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t w = w0; w < end; ++w) to[c * plane + w] = from[w * channels + c];
  }
}

template <class T> static void zero_fill(T* p, int64_t n) {
  if (n > 0) __builtin_memset(p, 0, size_t(n) * sizeof(T));
}

/// Rows of about 16 Ki elements per chunk.
static inline int64_t row_grain(int64_t row_elements) {
  return larger(1, 16 * 1024 / larger(1, row_elements));
}

/// Fills the staged copy that `source` describes from `in`.
template <class T>
static void fill_staged(Context ctx, const Source<T>& source, T* staged, const T* in,
                        bool channels_last, int64_t batch, int64_t channels) {
  const int64_t* size = source.size;
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
  const int64_t pixels = size[0] * size[1] * size[2];
  parallel_for(ctx, batch * size[0] * size[1], row_grain(size[2] * channels),
               [&](int64_t begin, int64_t end) {
                 for (int64_t row = begin; row < end; ++row) {
                   const int64_t n = row / (size[0] * size[1]),
                                 first = row % (size[0] * size[1]) * size[2];
                   separate_row(from + (n * pixels + first) * channels, pixels, channels, size[2],
                                out + n * pixels * channels + first);
                 }
               });
}

}  // namespace brasa::cpu::BRASA_ISA
