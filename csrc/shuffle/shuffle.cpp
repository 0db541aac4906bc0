#include "shuffle/shuffle.h"

#include "conv/conv_stage.h"
#include "core/elementwise.h"

namespace brasa::cpu::BRASA_ISA {
namespace {

/// Two vectors.
template <class T> struct Pair {
  Vec<T> first, second;
};

/// Elements of even and of odd number of the 2 kLanes in a and b.
template <class T> BRASA_INLINE Pair<T> split(Vec<T> a, Vec<T> b) {
  if constexpr (kLanes<T> == 16)
    return {
        __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
        __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)};
  else if constexpr (kLanes<T> == 8)
    return {__builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14),
            __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15)};
  else if constexpr (kLanes<T> == 4)
    return {__builtin_shufflevector(a, b, 0, 2, 4, 6), __builtin_shufflevector(a, b, 1, 3, 5, 7)};
  else if constexpr (kLanes<T> == 2)
    return {__builtin_shufflevector(a, b, 0, 2), __builtin_shufflevector(a, b, 1, 3)};
  else
    return {a, b};
}

/// a0 b0 a1 b1 ...: the inverse.
template <class T> BRASA_INLINE Pair<T> join(Vec<T> a, Vec<T> b) {
  if constexpr (kLanes<T> == 1)
    return {a, b};
  else
    return {interleave_low<T>(a, b), interleave_high<T>(a, b)};
}

/// put_row for as many lanes as are live, also none.
template <bool kStream, class T> BRASA_INLINE void put_live(T* p, Vec<T> x, int64_t live) {
  if constexpr (kStream)
    stream(p, x);
  else
    store_live(p, x, live);
}

/// Elements ahead of its loads that a loop fetches.
template <class T> constexpr int64_t kAhead = kFetchBytes / int64_t(sizeof(T));

// Channels-last: one pixel of the small image ------------------------------------------------

/// The 4 sub-pixels of a pixel, 2 of them in each of two lines that are `line` apart.
template <bool kStream, class T>
BRASA_INLINE void split_pixel(const T* from, T* to, int64_t line, int64_t channels) {
  constexpr int64_t kWidth = kLanes<T>;
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int64_t live = channels - c;
    Vec<T> v[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      if (kStream) __builtin_prefetch(from + 4 * c + k * kWidth + kAhead<T>);
      v[k] = load_live(from + 4 * c + k * kWidth, 4 * live - k * kWidth);
    }
    const Pair<T> low = split<T>(v[0], v[1]), high = split<T>(v[2], v[3]);
    const Pair<T> left = split<T>(low.first, high.first), right = split<T>(low.second, high.second);
    put_live<kStream>(to + c, left.first, live);
    put_live<kStream>(to + channels + c, right.first, live);
    put_live<kStream>(to + line + c, left.second, live);
    put_live<kStream>(to + line + channels + c, right.second, live);
  }
}

/// The inverse.
template <bool kStream, class T>
BRASA_INLINE void join_pixel(const T* from, T* to, int64_t line, int64_t channels) {
  constexpr int64_t kWidth = kLanes<T>;
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int64_t live = channels - c;
    Vec<T> v[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const T* at = from + k / 2 * line + k % 2 * channels + c;
      if (kStream) __builtin_prefetch(at + kAhead<T>);
      v[k] = load_live(at, live);
    }
    const Pair<T> left = join<T>(v[0], v[2]), right = join<T>(v[1], v[3]);
    const Pair<T> low = join<T>(left.first, right.first);
    const Pair<T> high = join<T>(left.second, right.second);
    const Vec<T> joined[4] = {low.first, low.second, high.first, high.second};
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k)
      put_live<kStream>(to + 4 * c + k * kWidth, joined[k], 4 * live - k * kWidth);
  }
}

/// Where the r r sub-pixels of a pixel lie, one after the other.
struct SubPixels {
  int64_t factor, channels, line;
  int64_t column = 0, row = 0;
  int64_t next() {
    const int64_t at = row * line + column * channels;
    if (++column == factor) column = 0, ++row;
    return at;
  }
};

/// split_pixel of any factor: squares of kLanes channels x kLanes sub-pixels.
template <class T>
void split_pixel_by(int64_t r, const T* from, T* to, int64_t line, int64_t channels) {
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const int64_t live = channels - c;
    SubPixels places{r, channels, line};
    transpose_rows(from + c * r * r, r * r, smaller(live, kLanes<T>), r * r,
                   [&](int64_t, Vec<T> v) { store_live(to + places.next() + c, v, live); });
  }
}

template <class T>
void join_pixel_by(int64_t r, const T* from, T* to, int64_t line, int64_t channels) {
  constexpr int kWidth = kLanes<T>;
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int64_t live = channels - c;
    SubPixels places{r, channels, line};
    for (int64_t k = 0; k < r * r; k += kWidth) {
      Vec<T> v[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i)
        v[i] = k + i < r * r ? load_live(from + places.next() + c, live) : Vec<T>{};
      transpose<T>(v);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i)
        if (i < live) store_live(to + (c + i) * r * r + k, v[i], r * r - k);
    }
  }
}

// C order: one row of the large image ---------------------------------------------------------

/// to[2 w + j] = from[j plane + w].
template <bool kStream, class T> void join_row(const T* from, int64_t plane, int64_t width, T* to) {
  constexpr int64_t kWidth = kLanes<T>;
  for (int64_t w = 0; w < width; w += kWidth) {
    const int64_t live = width - w;
    if (kStream) {
      __builtin_prefetch(from + w + kAhead<T>);
      __builtin_prefetch(from + plane + w + kAhead<T>);
    }
    const Pair<T> both = join<T>(load_live(from + w, live), load_live(from + plane + w, live));
    put_live<kStream>(to + 2 * w, both.first, 2 * live);
    put_live<kStream>(to + 2 * w + kWidth, both.second, 2 * live - kWidth);
  }
}

/// The inverse.
template <bool kStream, class T>
void split_row(const T* from, int64_t plane, int64_t width, T* to) {
  constexpr int64_t kWidth = kLanes<T>;
  for (int64_t w = 0; w < width; w += kWidth) {
    const int64_t live = width - w;
    const T* at = from + 2 * w;
    if (kStream) {
      __builtin_prefetch(at + kAhead<T>);
      __builtin_prefetch(at + kWidth + kAhead<T>);
    }
    const Pair<T> both =
        split<T>(load_live(at, 2 * live), load_live(at + kWidth, 2 * live - kWidth));
    put_live<kStream>(to + w, both.first, live);
    put_live<kStream>(to + plane + w, both.second, live);
  }
}

// Both directions, over all rows --------------------------------------------------------------

/// A line of pixels of the small image; `small` and `large` are its first elements.
template <bool kStream, bool kShuffle, class T>
void move_pixels(const T* from, T* to, const ShuffleShape& s) {
  const int64_t r = s.factor, line = s.width * r * s.channels;
  const int64_t small = s.channels * r * r, large = s.channels * r;
  for (int64_t w = 0; w < s.width; ++w) {
    const T* const x = from + w * (kShuffle ? small : large);
    T* const y = to + w * (kShuffle ? large : small);
    if (r == 2)
      (kShuffle ? split_pixel<kStream, T> : join_pixel<kStream, T>)(x, y, line, s.channels);
    else
      (kShuffle ? split_pixel_by<T> : join_pixel_by<T>)(r, x, y, line, s.channels);
  }
}

/// A row of the large image.
template <bool kStream, bool kShuffle, class T>
void move_row(const T* from, T* to, const ShuffleShape& s) {
  const int64_t plane = s.height * s.width;
  if (s.factor == 2)
    (kShuffle ? join_row<kStream, T> : split_row<kStream, T>)(from, plane, s.width, to);
  else if (kShuffle)
    interleave_row(from, plane, s.factor, s.width, to);
  else
    separate_row(from, plane, s.factor, s.width, to);
}

template <bool kStream, bool kShuffle, class T>
void move_images(Context ctx, const T* x, T* y, const ShuffleShape& s) {
  const int64_t r = s.factor;
  // Lines of small pixels, r rows of the large image; or single rows of the large image.
  const int64_t rows = s.channels_last ? s.batch * s.height : s.batch * s.channels * s.height * r;
  const int64_t row = s.width * r * (s.channels_last ? r * s.channels : 1);
  parallel_for(ctx, rows, row_grain(row), [=, &s](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (s.channels_last) {
        move_pixels<kStream, kShuffle>(x + i * row, y + i * row, s);
        continue;
      }
      const int64_t line = i / r, image = line / s.height;
      const int64_t small = ((image * r + i % r) * r * s.height + line % s.height) * s.width;
      const int64_t large = i * row;
      move_row<kStream, kShuffle>(x + (kShuffle ? small : large), y + (kShuffle ? large : small),
                                  s);
    }
    if (kStream) finish_streaming();
  });
}

template <bool kShuffle, class T>
void move_all(Context ctx, const T* x, T* y, const ShuffleShape& s) {
  const int64_t n = s.batch * s.channels * s.height * s.width * s.factor * s.factor;
  if (n == 0) return;
  const bool streaming =
      s.factor == 2 && streams_rows(y, n, s.channels_last ? s.channels : s.width);
  (streaming ? move_images<true, kShuffle, T> : move_images<false, kShuffle, T>)(ctx, x, y, s);
}

}  // namespace

template <class T> void pixel_shuffle(Context ctx, const T* x, T* y, const ShuffleShape& shape) {
  move_all<true>(ctx, x, y, shape);
}

template <class T> void pixel_unshuffle(Context ctx, const T* x, T* y, const ShuffleShape& shape) {
  move_all<false>(ctx, x, y, shape);
}

BRASA_INSTANTIATE(pixel_shuffle, float, double)
BRASA_INSTANTIATE(pixel_unshuffle, float, double)

}  // namespace brasa::cpu::BRASA_ISA
