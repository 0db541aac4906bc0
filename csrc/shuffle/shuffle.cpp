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

/// The 2 or 4 parts of which `v` takes its elements in turn, and the inverse.
template <class T> BRASA_INLINE void split_all(Vec<T> (&v)[2]) {
  const Pair<T> both = split<T>(v[0], v[1]);
  v[0] = both.first, v[1] = both.second;
}
template <class T> BRASA_INLINE void split_all(Vec<T> (&v)[4]) {
  const Pair<T> low = split<T>(v[0], v[1]), high = split<T>(v[2], v[3]);
  const Pair<T> even = split<T>(low.first, high.first), odd = split<T>(low.second, high.second);
  v[0] = even.first, v[1] = odd.first, v[2] = even.second, v[3] = odd.second;
}
template <class T> BRASA_INLINE void join_all(Vec<T> (&v)[2]) {
  const Pair<T> both = join<T>(v[0], v[1]);
  v[0] = both.first, v[1] = both.second;
}
template <class T> BRASA_INLINE void join_all(Vec<T> (&v)[4]) {
  const Pair<T> even = join<T>(v[0], v[2]), odd = join<T>(v[1], v[3]);
  const Pair<T> low = join<T>(even.first, odd.first), high = join<T>(even.second, odd.second);
  v[0] = low.first, v[1] = low.second, v[2] = high.first, v[3] = high.second;
}

/// put_row for as many lanes as are live, also none.
template <bool kStream, class T> BRASA_INLINE void put_live(T* p, Vec<T> x, int64_t live) {
  if constexpr (kStream)
    stream(p, x);
  else
    store_live(p, x, live);
}

/// load_live; where results are streamed, with what comes later fetched.
template <bool kStream, class T> BRASA_INLINE Vec<T> take_live(const T* p, int64_t live) {
  if (kStream) __builtin_prefetch(p + kFetchBytes / int64_t(sizeof(T)));
  return load_live(p, live);
}

// 2 or 4 parts in turn: all of factor 2, and factor 4 in C order -----------------------------

/// to[part[k] + w] = from[kParts w + k] for w < width.
template <bool kStream, class T, int kParts>
BRASA_INLINE void split_parts(const T* from, T* to, const int64_t (&part)[kParts], int64_t width) {
  constexpr int64_t kWidth = kLanes<T>;
  for (int64_t w = 0; w < width; w += kWidth) {
    const int64_t live = width - w;
    Vec<T> v[kParts];
#pragma GCC unroll 4
    for (int k = 0; k < kParts; ++k)
      v[k] = take_live<kStream>(from + kParts * w + k * kWidth, kParts * live - k * kWidth);
    split_all<T>(v);
#pragma GCC unroll 4
    for (int k = 0; k < kParts; ++k) put_live<kStream>(to + part[k] + w, v[k], live);
  }
}

/// The inverse.
template <bool kStream, class T, int kParts>
BRASA_INLINE void join_parts(const T* from, T* to, const int64_t (&part)[kParts], int64_t width) {
  constexpr int64_t kWidth = kLanes<T>;
  for (int64_t w = 0; w < width; w += kWidth) {
    const int64_t live = width - w;
    Vec<T> v[kParts];
#pragma GCC unroll 4
    for (int k = 0; k < kParts; ++k) v[k] = take_live<kStream>(from + part[k] + w, live);
    join_all<T>(v);
#pragma GCC unroll 4
    for (int k = 0; k < kParts; ++k)
      put_live<kStream>(to + kParts * w + k * kWidth, v[k], kParts * live - k * kWidth);
  }
}

// Channels-last: one pixel of the small image, any factor ------------------------------------

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

/// Squares of kLanes channels x kLanes sub-pixels.
template <bool kStream, class T>
void split_pixel(int64_t r, const T* from, T* to, int64_t line, int64_t channels) {
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const int64_t live = channels - c;
    SubPixels places{r, channels, line};
    // The rows of a square are one stretch of memory: a third to a half of the time is its fetch.
    for (int64_t k = 0; kStream && k < r * r * kLanes<T>; k += kLanes<T>)
      __builtin_prefetch(from + c * r * r + k + kFetchBytes / int64_t(sizeof(T)));
    transpose_rows(from + c * r * r, r * r, smaller(live, kLanes<T>), r * r,
                   [&](int64_t, Vec<T> v) { put_live<kStream>(to + places.next() + c, v, live); });
  }
}

template <bool kStream, class T>
void join_pixel(int64_t r, const T* from, T* to, int64_t line, int64_t channels) {
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
        if (i < live) put_live<kStream>(to + (c + i) * r * r + k, v[i], r * r - k);
    }
  }
}

/// Most elements of a pixel of few channels, which are moved one by one: the places of all are
/// looked up in a table. (Squares would be mostly empty: 4 times as long for 3 channels.)
constexpr int64_t kFewElements = 128;

template <class T> bool few_channels(const ShuffleShape& s) {
  return s.channels < kLanes<T> / 2 && s.channels * s.factor * s.factor <= kFewElements;
}

template <bool kShuffle, class T> void move_few(const T* from, T* to, const ShuffleShape& s) {
  const int64_t r = s.factor, count = s.channels * r * r, line = s.width * r * s.channels;
  int64_t place[kFewElements];
  for (int64_t c = 0; c < s.channels; ++c) {
    SubPixels places{r, s.channels, line};
    for (int64_t k = 0; k < r * r; ++k) place[c * r * r + k] = places.next() + c;
  }
  for (int64_t w = 0; w < s.width; ++w) {
    const int64_t small = w * count, large = w * r * s.channels;
    for (int64_t e = 0; e < count; ++e) {
      if (kShuffle)
        to[large + place[e]] = from[small + e];
      else
        to[small + e] = from[large + place[e]];
    }
  }
}

// Both directions, over all rows --------------------------------------------------------------

/// A line of pixels of the small image.
template <bool kStream, bool kShuffle, class T>
void move_pixels(const T* from, T* to, const ShuffleShape& s) {
  const int64_t r = s.factor, channels = s.channels, line = s.width * r * channels;
  if (few_channels<T>(s)) return move_few<kShuffle>(from, to, s);
  const int64_t part[4] = {0, channels, line, line + channels};
  for (int64_t w = 0; w < s.width; ++w) {
    const int64_t small = w * channels * r * r, large = w * channels * r;
    const T* const x = from + (kShuffle ? small : large);
    T* const y = to + (kShuffle ? large : small);
    if (r == 2)
      (kShuffle ? split_parts<kStream, T, 4> : join_parts<kStream, T, 4>)(x, y, part, channels);
    else
      (kShuffle ? split_pixel<kStream, T> : join_pixel<kStream, T>)(r, x, y, line, channels);
  }
}

/// A row of the large image in C order: r rows of the small one in turn.
template <bool kStream, bool kShuffle, class T>
void move_row(const T* from, T* to, const ShuffleShape& s) {
  const int64_t plane = s.height * s.width, two[2] = {0, plane};
  const int64_t four[4] = {0, plane, 2 * plane, 3 * plane};
  if (s.factor == 2)
    (kShuffle ? join_parts<kStream, T, 2> : split_parts<kStream, T, 2>)(from, to, two, s.width);
  else if (s.factor == 4)
    (kShuffle ? join_parts<kStream, T, 4> : split_parts<kStream, T, 4>)(from, to, four, s.width);
  else if (kShuffle)
    interleave_row(from, plane, s.factor, s.width, to);
  else
    separate_row(from, plane, s.factor, s.width, to);
}

/// The lines begin to end of all planes of the small image, in C order.
template <bool kStream, bool kShuffle, class T>
void move_plane_lines(const T* from, T* to, const ShuffleShape& s, int64_t begin, int64_t end) {
  const int64_t r = s.factor, step = r * s.height * s.width;
  int64_t plane = begin / s.height, h = begin % s.height;
  for (int64_t line = begin; line < end; ++line) {
    for (int64_t i = 0; i < r; ++i) {
      const int64_t small = (plane * r + i) * step + h * s.width,
                    large = (line * r + i) * s.width * r;
      move_row<kStream, kShuffle>(from + (kShuffle ? small : large),
                                  to + (kShuffle ? large : small), s);
    }
    if (++h == s.height) h = 0, ++plane;
  }
}

template <bool kStream, bool kShuffle, class T>
void move_images(Context ctx, const T* x, T* y, const ShuffleShape& s) {
  const int64_t lines = s.batch * s.height * (s.channels_last ? 1 : s.channels);
  const int64_t line = s.width * s.factor * s.factor * (s.channels_last ? s.channels : 1);
  parallel_for(ctx, lines, row_grain(line), [=, &s](int64_t begin, int64_t end) {
    if (!s.channels_last) move_plane_lines<kStream, kShuffle>(x, y, s, begin, end);
    for (int64_t i = begin; s.channels_last && i < end; ++i)
      move_pixels<kStream, kShuffle>(x + i * line, y + i * line, s);
    if (kStream) finish_streaming();
  });
}

/// Whether y is streamed: in C order where parts are joined or split, and channels-last, as long as
/// all that is written at once are whole vectors.
template <bool kShuffle, class T> bool streams(const T* y, int64_t n, const ShuffleShape& s) {
  const int64_t r = s.factor;
  if (!s.channels_last) return (r == 2 || r == 4) && streams_rows(y, n, s.width);
  return !few_channels<T>(s) && streams_rows(y, n, kShuffle || r == 2 ? s.channels : r * r);
}

template <bool kShuffle, class T>
void move_all(Context ctx, const T* x, T* y, const ShuffleShape& s) {
  const int64_t n = s.batch * s.channels * s.height * s.width * s.factor * s.factor;
  if (n == 0) return;
  (streams<kShuffle>(y, n, s) ? move_images<true, kShuffle, T>
                              : move_images<false, kShuffle, T>)(ctx, x, y, s);
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
