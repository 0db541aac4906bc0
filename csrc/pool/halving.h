// Windows that halve an image: 2x2 or 3x3, stride 2, the usual ones. Everything stays in registers.
//
// Columns are taken in pairs, two vectors at a time: their even and odd lanes are two taps of as
// many windows. The third tap of 3x3 is an odd lane of the pair before, carried from vector to
// vector.
#pragma once

#include "pool/lines.h"

namespace brasa::cpu::BRASA_ISA {

/// The kernel size that halves along both dimensions, 0 where the windows are others.
static inline int halving_kernel(const PoolParams& p) {
  const auto halves = [](const PoolAxis& a) {
    return !a.adaptive && a.stride == 2 && a.dilation == 1 &&
           (a.kernel == 3 ? a.pad <= 1 : a.kernel == 2 && a.pad == 0);
  };
  return halves(p.h) && halves(p.w) && p.h.kernel == p.w.kernel ? int(p.h.kernel) : 0;
}

/// Maxima of as many windows as a vector has lanes, and where they stand.
template <class T> struct Winners {
  Vec<T> value;
  IntVec<T> where;
};

/// The better of a and b, where b is the column behind a.
template <bool kKeep, class T> BRASA_INLINE Winners<T> better(Winners<T> a, Winners<T> b) {
  if constexpr (kKeep) {
    const IntVec<T> later = (b.value > a.value) | ((b.value == a.value) & (b.where < a.where)) |
                            ((b.value != b.value) & ((a.value == a.value) | (b.where > a.where)));
    return {later ? b.value : a.value, later ? b.where : a.where};
  } else {
    return {((b.value > a.value) | (b.value != b.value)) ? b.value : a.value, a.where};
  }
}

/// Of `rows` rows from p on, `step` apart, `live` lanes; padding in the others. The first row is
/// row `tap` of windows that are `kernel` wide.
template <bool kKeep, class T>
BRASA_INLINE Winners<T> column_winners(const T* p, int64_t rows, int64_t step, int64_t tap,
                                       int64_t kernel, int64_t live) {
  const Vec<T> padding = broadcast(T(-__builtin_inf()));
  if (live <= 0 || rows <= 0) return {padding, int_lanes<T>(kNoRow)};
  fetch_ahead(p, rows);
  Winners<T> best{read_at_most(p, live), int_lanes<T>(tap * kernel)};
  for (int64_t r = 1; r < rows; ++r) {
    fetch_ahead(p + r * step, rows - r);
    const Vec<T> value = read_at_most(p + r * step, live);
    const IntVec<T> later = (value > best.value) | (value != value);
    best.value = later ? value : best.value;
    if constexpr (kKeep) best.where = later ? int_lanes<T>((tap + r) * kernel) : best.where;
  }
  if (live >= kLanes<T>) return best;
  const IntVec<T> inside = lane_numbers<T>() < int_lanes<T>(live);
  return {inside ? best.value : padding, inside ? best.where : int_lanes<T>(kNoRow)};
}

/// Where a row of the result goes: `room` elements may be written, those behind the row are written
/// again later.
template <class T> struct ResultRow {
  T* y;
  int64_t room;
  bool streaming;
};

/// Whether x or y is too much for the caches.
template <class T> static bool streams_planes(const PoolParams& p, const T* y) {
  const int64_t elements = p.n * p.c * (p.h.in * p.w.in + p.h.out * p.w.out);
  return streams(y, p.w.out, elements * int64_t(sizeof(T)));
}

/// One row of the result. x is the first row of the windows in the image, `h` their extent there.
template <int kKernel, class T, class Offset>
BRASA_INLINE void halve_maxima(const PoolAxis& w, const T* x, Window h, ResultRow<T> to,
                               Offset* offsets) {
  constexpr bool kKeep = kKeeps<Offset>;
  constexpr int64_t kWidth = kLanes<T>;
  const auto column = [&](int64_t at) {
    return column_winners<kKeep>(x + at, h.count, w.in, h.tap, kKernel, w.in - at);
  };
  const auto behind = [](Winners<T> a, int taps) {
    return Winners<T>{a.value, a.where + int_lanes<T>(taps)};
  };
  const int64_t lead = kKernel == 3 ? 1 - w.pad : 0;  // columns before the first pair
  Winners<T> before{};
  if constexpr (kKernel == 3) {
    before = column_winners<kKeep>(x, h.count, w.in, h.tap, kKernel, lead);
    before = {broadcast(T(before.value[0])), int_lanes<T>(before.where[0])};
  }
  for (int64_t o = 0; o < w.out; o += kWidth) {
    const Winners<T> a = column(lead + 2 * o), b = column(lead + 2 * o + kWidth);
    const Winners<T> even{even_lanes(a.value, b.value), even_lanes(a.where, b.where)};
    const Winners<T> odd{odd_lanes(a.value, b.value), odd_lanes(a.where, b.where)};
    Winners<T> best;
    if constexpr (kKernel == 3) {
      const Winners<T> first{shift_in(before.value, odd.value), shift_in(before.where, odd.where)};
      best = better<kKeep>(better<kKeep>(first, behind(even, 1)), behind(odd, 2));
      before = odd;
    } else {
      best = better<kKeep>(even, behind(odd, 1));
    }
    const int64_t live = w.out - o < kWidth ? w.out - o : kWidth;
    const int64_t lanes = lanes_to_write<T>(o, live, to.room);
    put(to.streaming, to.y + o, best.value, live, lanes);
    if constexpr (kKeep) store_offsets<T>(offsets + o, best.where, lanes);
  }
}

/// Rows [begin, end) of the result, counted over all planes.
template <int kKernel, class T, class Offset>
void halve_planes(const PoolParams& p, const T* x, T* y, Offset* offsets, int64_t begin,
                  int64_t end) {
  const bool streaming = streams_planes(p, y);
  for (int64_t row = begin; row < end; ++row) {
    const Window h = window_of(p.h, row % p.h.out);
    const T* first = x + (row / p.h.out * p.h.in + h.first) * p.w.in;
    const int64_t at = row * p.w.out;
    halve_maxima<kKernel>(p.w, first, h, {y + at, (end - row) * p.w.out, streaming},
                          kKeeps<Offset> ? offsets + at : offsets);
  }
  if (streaming) finish_streaming();
}

/// The sums of `rows` rows from p on, `live` lanes; 0 in the others.
template <class T>
BRASA_INLINE Vec<T> column_sums(const T* p, int64_t rows, int64_t step, int64_t live) {
  Vec<T> sum{};
  if (live <= 0) return sum;
  for (int64_t r = 0; r < rows; ++r) {
    fetch_ahead(p + r * step, rows - r);
    sum += read_at_most(p + r * step, live);
  }
  return sum;
}

/// One row of means, as halve_maxima(). The divisors are those of the columns.
template <int kKernel, class T>
BRASA_INLINE void halve_means(const PoolAxis& w, const T* x, Window h, T row_divisor,
                              const T* divisors, ResultRow<T> to) {
  constexpr int64_t kWidth = kLanes<T>;
  const auto column = [&](int64_t at) { return column_sums(x + at, h.count, w.in, w.in - at); };
  const int64_t lead = kKernel == 3 ? 1 - w.pad : 0;
  Vec<T> before{};
  if constexpr (kKernel == 3) before = broadcast(T(column_sums(x, h.count, w.in, lead)[0]));
  for (int64_t o = 0; o < w.out; o += kWidth) {
    const Vec<T> a = column(lead + 2 * o), b = column(lead + 2 * o + kWidth);
    const Vec<T> even = even_lanes(a, b), odd = odd_lanes(a, b);
    Vec<T> total;
    if constexpr (kKernel == 3)
      total = shift_in(before, odd) + even + odd;
    else
      total = even + odd;
    before = odd;
    const Vec<T> divisor = broadcast(row_divisor) * load(divisors + o);
    const int64_t live = w.out - o < kWidth ? w.out - o : kWidth;
    put(to.streaming, to.y + o, total / divisor, live, lanes_to_write<T>(o, live, to.room));
  }
}

template <int kKernel, class T>
void halve_planes_to_means(const PoolParams& p, const T* x, T* y, int64_t begin, int64_t end,
                           T* divisors) {
  const bool streaming = streams_planes(p, y);
  fill_column_divisors(p, divisors, p.w.out + 16);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t oh = row % p.h.out;
    const Window h = window_of(p.h, oh);
    const T* first = x + (row / p.h.out * p.h.in + h.first) * p.w.in;
    halve_means<kKernel>(p.w, first, h, T(row_divisor(p, oh)), divisors,
                         {y + row * p.w.out, (end - row) * p.w.out, streaming});
  }
  if (streaming) finish_streaming();
}

/// Channels-last images of fewer channels than lanes: a vector holds several windows' channels, and
/// its even and odd columns are gathered from two vectors of the rows' maxima.
template <class T> struct NarrowWindows {
  int64_t count;  ///< windows in a vector
  IntVec<T> even, odd;

  static bool fits(const PoolParams& p) {
    return halving_kernel(p) == 2 && p.channels_last && p.c > 0 && p.c < kLanes<T>;
  }
  explicit NarrowWindows(int64_t c) : count(kLanes<T> / c) {
    for (int64_t i = 0; i < kLanes<T>; ++i) {
      even[i] = (i / c * 2 * c + i % c) % (2 * kLanes<T>);  // of lanes that count, it is less
      odd[i] = (i / c * 2 * c + c + i % c) % (2 * kLanes<T>);
    }
  }
};

/// One row of the result, counted over all images.
template <class T, class Offset>
void halve_narrow(const PoolParams& p, const NarrowWindows<T>& windows, const T* x, T* y,
                  Offset* offsets, int64_t row) {
  constexpr bool kKeep = kKeeps<Offset>;
  const Window h = window_of(p.h, row % p.h.out);
  const int64_t length = p.w.in * p.c, end = p.w.out * p.c, first = row * end;
  const T* from = x + (row / p.h.out * p.h.in + h.first) * length;
  for (int64_t o = 0; o < end; o += windows.count * p.c) {
    const auto columns = [&](int64_t at) {
      return column_winners<kKeep>(from + at, h.count, length, h.tap, 2, length - at);
    };
    const Winners<T> a = columns(2 * o), b = columns(2 * o + kLanes<T>);
    const Winners<T> even{permute(a.value, b.value, windows.even),
                          permute(a.where, b.where, windows.even)};
    const Winners<T> odd{permute(a.value, b.value, windows.odd),
                         permute(a.where, b.where, windows.odd) + int_lanes<T>(1)};
    const Winners<T> best = better<kKeep>(even, odd);
    const int64_t lanes = lanes_to_write<T>(o, end - o, end);
    write(y + first + o, best.value, lanes);
    if constexpr (kKeep) store_offsets<T>(offsets + first + o, best.where, lanes);
  }
}

}  // namespace brasa::cpu::BRASA_ISA
