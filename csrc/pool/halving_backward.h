// Gradients of maxima over windows that halve an image (halving.h).
//
// The padded image is cut into pairs of rows and of columns: (2M, 2M + 1) x (2m, 2m + 1). Window
// (M, m) covers all four pixels of its pair; of 3x3 windows those before it cover some as well:
//
//   pixel (2M, 2m)          taps 8 of (M - 1, m - 1), 6 of (M - 1, m), 2 of (M, m - 1), 0 of (M, m)
//   pixel (2M, 2m + 1)      taps 7 of (M - 1, m), 1 of (M, m)
//   pixel (2M + 1, 2m)      taps 5 of (M, m - 1), 3 of (M, m)
//   pixel (2M + 1, 2m + 1)  tap 4 of (M, m)
//
// So every pixel gathers, in the windows' order; nothing is scattered and nothing cleared first.
#pragma once

#include "pool/halving.h"

namespace brasa::cpu::BRASA_ISA {

/// Pairs of columns that one vector of channels goes along before the next one does: the windows it
/// loads again at their begin are an eighth, and 4 KiB of 64 channels stay together.
constexpr int64_t kColumnPairs = 8;

/// Windows with their gradients: as many as a vector has lanes. `where` is negative for none.
template <class T> struct Gradients {
  Vec<T> dy;
  IntVec<T> where;

  /// The gradients of windows whose winner is this tap, 0 for others.
  __attribute__((always_inline)) Vec<T> at(int tap) const {
    return keep<T>(where == int_lanes<T>(tap), dy);
  }
};

/// The four pixels of a pair, from the windows (M - 1, m - 1), (M - 1, m), (M, m - 1), (M, m).
template <class T> struct Quad {
  Vec<T> pixel[2][2];
};
template <int kKernel, class T>
BRASA_INLINE Quad<T> gather_quad(Gradients<T> above_left, Gradients<T> above, Gradients<T> left,
                                 Gradients<T> own) {
  if constexpr (kKernel == 2)
    return {{{own.at(0), own.at(1)}, {own.at(2), own.at(3)}}};
  else
    return {{{above_left.at(8) + above.at(6) + left.at(2) + own.at(0), above.at(7) + own.at(1)},
             {left.at(5) + own.at(3), own.at(4)}}};
}

static inline int64_t pairs(const PoolAxis& a) {
  return (a.in + a.pad + 1) / 2;
}

// ---- C order ---------------------------------------------------------------------------------

/// The scratch of one chunk: two rows of windows and two rows of pixels, in the padded image.
template <class T> struct HalvingBuffers {
  static constexpr int64_t kLead = 16;  ///< before column 0 of windows: one is read there
  int64_t windows, pixels;              ///< lengths
  T* dy[2];
  T* where[2];
  T* dx[2];

  static int64_t window_length(const PoolAxis& w) { return kLead + round_up(pairs(w), 16); }
  static int64_t elements(const PoolAxis& w) {
    return 4 * window_length(w) + 2 * (round_up(2 * pairs(w), 32) + 16);
  }
  HalvingBuffers(const PoolAxis& w, T* memory)
      : windows(window_length(w)), pixels(round_up(2 * pairs(w), 32) + 16) {
    Scratch<T> scratch{memory};
    for (int i = 0; i < 2; ++i) {
      dy[i] = scratch.take(windows);
      where[i] = scratch.take(windows);
      dx[i] = scratch.take(pixels);
    }
  }

  void clear(int i) const {
    for (int64_t o = 0; o < windows; o += kLanes<T>) {
      store(dy[i] + o, Vec<T>{});
      store(where[i] + o, (Vec<T>)int_lanes<T>(-1));
    }
  }
  /// A row of n windows; `room` >= n elements are there to be read.
  template <class Offset>
  void load_row(int i, int64_t n, int64_t room, const T* from, const Offset* offsets) {
    for (int64_t o = 0; o < n; o += kLanes<T>) {
      const IntVec<T> found = load_offsets<T>(offsets + o, room - o);
      const IntVec<T> is_window = lane_numbers<T>() < int_lanes<T>(n - o);
      store(dy[i] + kLead + o, read_at_most(from + o, room - o));
      store(where[i] + kLead + o, (Vec<T>)(is_window ? found : int_lanes<T>(-1)));
    }
  }
  Gradients<T> windows_at(int i, int64_t m) const {
    return {load(dy[i] + kLead + m), bits(load(where[i] + kLead + m))};
  }
};

/// The rows 2M and 2M + 1 from the windows' rows M - 1 and M in the buffers above and own.
template <int kKernel, class T>
static void gather_row_pair(const HalvingBuffers<T>& b, int above, int own, int64_t pairs) {
  for (int64_t m = 0; m < pairs; m += kLanes<T>) {
    Quad<T> quad;
    if constexpr (kKernel == 2) {
      const Gradients<T> unused{};
      quad = gather_quad<2, T>(unused, unused, unused, b.windows_at(own, m));
    } else {
      quad = gather_quad<3, T>(b.windows_at(above, m - 1), b.windows_at(above, m),
                               b.windows_at(own, m - 1), b.windows_at(own, m));
    }
    for (int i = 0; i < 2; ++i) {
      store(b.dx[i] + 2 * m, zip_low(quad.pixel[i][0], quad.pixel[i][1]));
      store(b.dx[i] + 2 * m + kLanes<T>, zip_high(quad.pixel[i][0], quad.pixel[i][1]));
    }
  }
}

/// n elements to dx + at, and up to dx + end some more that are written later.
template <class T>
static void write_row(const T* from, int64_t n, bool streaming, T* dx, int64_t at, int64_t end) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const int64_t live = n - i < kLanes<T> ? n - i : kLanes<T>;
    put(streaming, dx + at + i, load(from + i), live, lanes_to_write<T>(at + i, live, end));
  }
}

/// Pairs of rows [begin, end), counted over all planes.
template <int kKernel, class T, class Offset>
void halve_planes_backward(const PoolParams& p, const T* dy, const Offset* offsets, T* dx,
                           int64_t begin, int64_t end, T* scratch) {
  const bool streaming = streams(dx, p.w.in, p.n * p.c * p.h.in * p.w.in * int64_t(sizeof(T)));
  HalvingBuffers<T> b(p.w, scratch);
  b.clear(0);
  b.clear(1);
  const int64_t row_pairs = pairs(p.h), windows = p.n * p.c * p.h.out * p.w.out;
  const auto row_of = [&](int64_t pair, int i) {  // of dx, limited to the image
    const int64_t ih = 2 * (pair % row_pairs) + i - p.h.pad;
    return pair / row_pairs * p.h.in + (ih < 0 ? 0 : ih < p.h.in ? ih : p.h.in);
  };
  const int64_t dx_end = row_of(end - 1, 2) * p.w.in;
  const auto load_row = [&](int buffer, int64_t plane, int64_t oh) {
    if (oh < 0 || oh >= p.h.out) return b.clear(buffer);
    const int64_t at = (plane * p.h.out + oh) * p.w.out;
    b.load_row(buffer, p.w.out, windows - at, dy + at, offsets + at);
  };
  for (int64_t pair = begin; pair < end; ++pair) {
    const int64_t plane = pair / row_pairs, m = pair % row_pairs;
    const int own = m & 1, above = 1 - own;
    if (kKernel == 3 && (pair == begin || m == 0)) load_row(above, plane, m - 1);
    load_row(own, plane, m);
    gather_row_pair<kKernel>(b, above, own, pairs(p.w));
    for (int i = 0; i < 2; ++i)
      if (row_of(pair, i) < row_of(pair, i + 1))
        write_row(b.dx[i] + p.w.pad, p.w.in, streaming, dx, row_of(pair, i) * p.w.in, dx_end);
  }
  if (streaming) finish_streaming();
}

/// Gradients of means over 2x2 windows, as halve_planes_backward(): both rows of a pair get every
/// quotient twice.
template <class T>
void halve_means_backward(const PoolParams& p, const T* dy, T* dx, int64_t begin, int64_t end,
                          T* memory) {
  const bool streaming = streams(dx, p.w.in, p.n * p.c * p.h.in * p.w.in * int64_t(sizeof(T)));
  const int64_t row_pairs = pairs(p.h), length = 2 * round_up(pairs(p.w), 16);
  Scratch<T> scratch{memory};
  T *const line = scratch.take(length), *const divisors = scratch.take(p.w.out + 16);
  fill_column_divisors(p, divisors, p.w.out + 16);
  for (int64_t pair = begin; pair < end; ++pair) {
    const int64_t plane = pair / row_pairs, m = pair % row_pairs;
    fill(line, length, T(0));
    const T* from = dy + (plane * p.h.out + m) * p.w.out;
    for (int64_t o = 0; m < p.h.out && o < p.w.out; o += kLanes<T>) {
      fetch_ahead(from + o, 0);
      const int64_t live = p.w.out - o < kLanes<T> ? p.w.out - o : kLanes<T>;
      const Vec<T> divisor = broadcast(T(row_divisor(p, m))) * load(divisors + o);
      const Vec<T> quotient = Vec<T>{} + read(from + o, live) / divisor;
      store(line + 2 * o, zip_low(quotient, quotient));
      store(line + 2 * o + kLanes<T>, zip_high(quotient, quotient));
    }
    const int64_t first = plane * p.h.in + 2 * m, rows = 2 * m + 1 < p.h.in ? 2 : 1;
    for (int64_t row = first; row < first + rows; ++row)
      write_row(line, p.w.in, streaming, dx, row * p.w.in, (first + rows) * p.w.in);
  }
  if (streaming) finish_streaming();
}

// ---- channels-last ---------------------------------------------------------------------------

/// A pair of rows and of columns: its four pixels and the windows that gather_quad() wants, null
/// where there is none.
template <class T> struct PixelPair {
  const T* window[4];
  T* pixel[2][2];
  int64_t row_end[2];  ///< of the rows in dx

  PixelPair(const PoolParams& p, const T* dy, T* dx, int64_t n, int64_t row, int64_t column) {
    for (int k = 0; k < 4; ++k) {
      const int64_t oh = row - (k < 2), ow = column - (k % 2 == 0);
      const bool there = oh >= 0 && oh < p.h.out && ow >= 0 && ow < p.w.out;
      window[k] = there ? dy + ((n * p.h.out + oh) * p.w.out + ow) * p.c : nullptr;
    }
    for (int i = 0; i < 2; ++i) {
      const int64_t ih = 2 * row + i - p.h.pad, first = (n * p.h.in + ih) * p.w.in * p.c;
      row_end[i] = first + p.w.in * p.c;
      for (int j = 0; j < 2; ++j) {
        const int64_t iw = 2 * column + j - p.w.pad;
        const bool there = ih >= 0 && ih < p.h.in && iw >= 0 && iw < p.w.in;
        pixel[i][j] = there ? dx + first + iw * p.c : nullptr;
      }
    }
  }
};

/// A vector of channels of neighbouring pairs of columns, all of whose windows and pixels exist:
/// what is the left window of a pair was the own one of the pair before, and is not loaded again.
template <class T, class Offset>
static void gather_columns(const PoolParams& p, int64_t columns, const T* own,
                           const Offset* own_offsets, T* row0, T* row1, bool streaming) {
  constexpr int64_t kWidth = kLanes<T>;
  const int64_t up = p.w.out * p.c;
  const auto window = [=](int64_t at) -> Gradients<T> {
    return {load(own + at), load_offsets<T>(own_offsets + at, kWidth)};
  };
  Gradients<T> left = window(-p.c), above_left = window(-p.c - up);
  for (int64_t k = 0; k < columns; ++k) {
    const Gradients<T> here = window(k * p.c), above = window(k * p.c - up);
    __builtin_prefetch(own + k * p.c + kFetchBytes / sizeof(T));
    const Quad<T> quad = gather_quad<3, T>(above_left, above, left, here);
    for (int64_t j = 0; j < 2; ++j) {
      const int64_t at = (2 * k + j) * p.c;
      put(streaming, row0 + at, quad.pixel[0][j], kWidth, kWidth);
      put(streaming, row1 + at, quad.pixel[1][j], kWidth, kWidth);
    }
    left = here;
    above_left = above;
  }
}

/// The pairs of an axis all of whose windows and pixels exist are [1, end).
static inline int64_t inner_pairs_end(const PoolAxis& a) {
  const int64_t whole = (a.in + a.pad) / 2;
  return whole < a.out ? whole : a.out;
}

/// Pairs of columns [begin, end) of a pair of rows of image n.
template <int kKernel, class T, class Offset>
static void gather_pairs(const PoolParams& p, const T* dy, const Offset* offsets, T* dx, int64_t n,
                         int64_t row, int64_t begin, int64_t end, int64_t c_begin, int64_t c_end,
                         bool streaming) {
  const T* dy_end = dy + p.n * p.h.out * p.w.out * p.c;
  const bool whole = c_begin == 0 && c_end == p.c;
  // Is what follows a pixel's channels written later? Of column 0 that is column 1.
  const bool later[2] = {whole && p.c <= kLanes<T>, whole};
  for (int64_t column = begin; column < end; ++column) {
    const PixelPair<T> at(p, dy, dx, n, row, column);
    for (int64_t c = c_begin; c < c_end; c += kLanes<T>) {
      const int64_t live = c_end - c < kLanes<T> ? c_end - c : kLanes<T>;
      const auto window = [&](int k) -> Gradients<T> {
        if ((kKernel == 2 && k < 3) || !at.window[k]) return {Vec<T>{}, int_lanes<T>(-1)};
        const T* from = at.window[k] + c;
        const int64_t room = dy_end - from < kLanes<T> ? live : kLanes<T>;
        return {read(from, room), load_offsets<T>(offsets + (from - dy), room)};
      };
      const Quad<T> quad = gather_quad<kKernel>(window(0), window(1), window(2), window(3));
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j)
          if (T* to = at.pixel[i][j]; to)
            put(streaming, to + c, quad.pixel[i][j], live,
                lanes_to_write<T>(to + c - dx, live, later[j] ? at.row_end[i] : 0));
    }
  }
}

/// The pair of rows `pair`, counted over all images, of channels [c_begin, c_end).
template <int kKernel, class T, class Offset>
void halve_pixels_backward(const PoolParams& p, const T* dy, const Offset* offsets, T* dx,
                           int64_t pair, int64_t c_begin, int64_t c_end) {
  const int64_t n = pair / pairs(p.h), row = pair % pairs(p.h);
  const bool streaming = streams(dx, p.c, p.n * p.c * p.h.in * p.w.in * int64_t(sizeof(T)));
  const auto gather = [&](int64_t begin, int64_t end) {
    gather_pairs<kKernel>(p, dy, offsets, dx, n, row, begin, end, c_begin, c_end, streaming);
  };
  const bool inner_row = row >= 1 && row < inner_pairs_end(p.h);
  if (kKernel == 3 && inner_row && (c_end - c_begin) % kLanes<T> == 0) {
    const int64_t end = inner_pairs_end(p.w);
    gather(0, 1);
    for (int64_t column = 1; column < end; column += kColumnPairs) {
      const int64_t columns = end - column < kColumnPairs ? end - column : kColumnPairs;
      const int64_t window = ((n * p.h.out + row) * p.w.out + column) * p.c;
      T* pixel = dx + ((n * p.h.in + 2 * row - p.h.pad) * p.w.in + 2 * column - p.w.pad) * p.c;
      for (int64_t c = c_begin; c < c_end; c += kLanes<T>)
        gather_columns(p, columns, dy + window + c, offsets + window + c, pixel + c,
                       pixel + p.w.in * p.c + c, streaming);
    }
    gather(end > 1 ? end : 1, pairs(p.w));
  } else {
    gather(0, pairs(p.w));
  }
  if (streaming) finish_streaming();
}

// ---- channels-last, fewer channels than lanes ------------------------------------------------

/// dx over 2x2 windows, as a row of numbers: number q comes from window number o(q) = q / 2c * c +
/// q % c and is in its column q / c % 2. A vector of q needs a vector of windows and a permutation;
/// after `period` vectors they are the same again.
template <class T> struct NarrowPlan {
  static constexpr int64_t kWidth = kLanes<T>;
  struct Step {
    int64_t base;  ///< the first window
    IntVec<T> lane, column;
  };
  int64_t period;
  Step steps[2 * kWidth];

  /// Windows of c < kWidth channels: then a vector's windows span at most a vector.
  static bool fits(const PoolParams& p, int kernel) {
    return kernel == 2 && p.channels_last && p.c > 0 && p.c < kWidth;
  }
  explicit NarrowPlan(int64_t c) : period(2 * c) {
    while (period % 2 == 0 && period * kWidth / 2 % (2 * c) == 0) period /= 2;
    for (int64_t k = 0; k < period; ++k) {
      Step& step = steps[k];
      step.base = window_of_number(k * kWidth, c);
      for (int64_t q = k * kWidth; q < (k + 1) * kWidth; ++q)
        if (window_of_number(q, c) < step.base) step.base = window_of_number(q, c);
      for (int64_t l = 0; l < kWidth; ++l) {
        const int64_t q = k * kWidth + l;
        step.lane[l] = window_of_number(q, c) - step.base;
        step.column[l] = q / c % 2;
      }
    }
  }
  static int64_t window_of_number(int64_t q, int64_t c) { return q / (2 * c) * c + q % c; }
};

/// The pair of rows `pair`, counted over all images.
template <class T, class Offset>
void halve_narrow_backward(const PoolParams& p, const NarrowPlan<T>& plan, const T* dy,
                           const Offset* offsets, T* dx, int64_t pair) {
  constexpr int64_t kWidth = kLanes<T>;
  const int64_t n = pair / pairs(p.h), row = pair % pairs(p.h);
  const int64_t length = p.w.in * p.c, covered = row < p.h.out ? 2 * p.w.out * p.c : 0;
  const int64_t first = (n * p.h.out + row) * p.w.out * p.c;
  const int64_t windows = p.n * p.h.out * p.w.out * p.c;
  T* to = dx + (n * p.h.in + 2 * row) * length;
  int64_t k = 0, turn = first;
  for (int64_t q = 0; q < length; q += kWidth) {
    Gradients<T> found{Vec<T>{}, int_lanes<T>(-1)};
    IntVec<T> column{};
    if (q < covered) {
      const typename NarrowPlan<T>::Step& step = plan.steps[k];
      const int64_t at = turn + step.base;
      column = step.column;
      found.dy = permute_one(read_at_most(dy + at, windows - at), step.lane);
      found.where = permute_one(load_offsets<T>(offsets + at, windows - at), step.lane);
      if (covered - q < kWidth)
        found.where =
            lane_numbers<T>() < int_lanes<T>(covered - q) ? found.where : int_lanes<T>(-1);
    }
    if (++k == plan.period) {
      k = 0;
      turn += plan.period * kWidth / 2;
    }
    const int64_t live = length - q < kWidth ? length - q : kWidth;
    write(to + q, keep<T>(found.where == column, found.dy), live);
    if (2 * row + 1 < p.h.in)
      write(to + length + q, keep<T>(found.where == column + int_lanes<T>(2), found.dy), live);
  }
}

}  // namespace brasa::cpu::BRASA_ISA
