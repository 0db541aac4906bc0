// The tiles of depthwise layers: a few pixels of one row, or of two rows that share what they read,
// times a vector of channels. Sums stay in registers over all taps; an element of x is loaded once
// for all the taps and pixels of its row that it meets, in both rows.
//
// A tile of 2 x 7 pixels x 3x3 taps loads 36 + 18 vectors for 126 fma(), and reads a line of x 2.6
// times from L2 (one row: 3.9 times, which is L2's limit before it is that of fma()).
#pragma once

#include "conv/conv_tile.h"
#include "core/tiles.h"

namespace brasa::cpu::BRASA_ISA {

/// Where the blocks of kLanes channels begin in a pixel, the last one at `last` or before it.
template <class T> struct ChannelBlocks {
  int64_t channels, step, last;

  int64_t first(int64_t block) const { return smaller(block * step, last); }
  int64_t live(int64_t block) const { return smaller(kLanes<T>, channels - first(block)); }
};

/// The last block ends with the last channel: vectors are whole where there are kLanes channels.
template <class T> static ChannelBlocks<T> whole_blocks(int64_t channels) {
  return {channels, kLanes<T>, larger(0, channels - kLanes<T>)};
}
/// No channel is in two blocks: different threads may finish them.
template <class T> static ChannelBlocks<T> disjoint_blocks(int64_t channels) {
  return {channels, kLanes<T>, channels};
}

/// Rows of x whose pointers are kept at a time.
constexpr int kMetRows = 16;

/// A row of x that one or two rows of pixels meet: its pixel 0, and the weights of its taps for the
/// first block of channels, null where that row of pixels does not meet it.
template <class T> struct MetRow {
  const T* x;
  const T* w[2];
};

/// One or two rows of pixels, and what they meet.
template <class T> struct RowPair {
  int64_t count;
  MetRow<T> met[kMetRows];
  T* out[2];       ///< pixel 0; the second is null where there is one row
  bool resume;     ///< the sums go on from what `out` holds
  const T* ahead;  ///< what the next rows of pixels read, fetched meanwhile
  int64_t ahead_size;
};

/// What all rows of pixels of one class have in common.
template <class T> struct DepthwiseRow {
  Axis axis;      ///< along the row
  int64_t width;  ///< of x
  int64_t x_step, out_step;
  int64_t begin, end;  ///< blocks of channels
  int64_t x_begin;     ///< the block that x has first
  ChannelBlocks<T> x_blocks, out_blocks;
  int64_t tap_step;    ///< from one tap's weights to the next one's
  const T* start;      ///< what the sums begin at
  int64_t block_step;  ///< from one block's weights to the next one's, and from start to start
};

/// sum[row][pixel] += x times the weights at w[row] over one row of taps, for kRows rows from
/// kFirst on; reads [low, high) lie in the image.
template <class T, int kPixels, int kTaps, int kStep, int kFirst, int kRows, bool kWhole>
BRASA_INLINE void add_taps(const T* x, int64_t step, const T* const* w, int64_t block,
                           int64_t tap_step, int64_t low, int64_t high, Vec<T> (&sum)[2][kPixels]) {
  constexpr int kReads = (kPixels - 1) * kStep + kTaps;
  Vec<T> weight[kRows][kTaps];
#pragma GCC unroll 2
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 8
    for (int k = 0; k < kTaps; ++k) weight[row][k] = load(w[kFirst + row] + block + k * tap_step);
#pragma GCC unroll 32
  for (int n = 0; n < kReads; ++n) {
    if (!kWhole && (n < low || n >= high)) continue;
    const Vec<T> value = load(x + n * step);
#pragma GCC unroll 2
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 8
      for (int i = 0; i < kPixels; ++i) {
        const int k = n - i * kStep;
        if (k >= 0 && k < kTaps)
          sum[kFirst + row][i] = fma(value, weight[row][k], sum[kFirst + row][i]);
      }
  }
}

template <class T, int kPixels>
BRASA_INLINE void store_sums(const Vec<T>* sum, T* out, int64_t step, int64_t live) {
  if (__builtin_expect(live >= kLanes<T>, 1)) {
#pragma GCC unroll 8
    for (int i = 0; i < kPixels; ++i) store(out + i * step, sum[i]);
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kPixels; ++i) store_partial(out + i * step, sum[i], live);
  }
}

/// The pixels from q on of one block of channels.
template <class T, int kPixels, int kTaps, int kStep, bool kWhole>
BRASA_INLINE void sum_tile(const DepthwiseRow<T>& g, const RowPair<T>& rows, int64_t q,
                           int64_t block, int64_t low, int64_t high) {
  const int64_t at = (q * kStep + g.axis.in_first) * g.x_step + g.x_blocks.first(block - g.x_begin);
  const int64_t to = q * g.out_step + g.out_blocks.first(block), live = g.out_blocks.live(block);
  const int64_t weights = block * g.block_step, step = g.x_step;
  const Vec<T> start = load(g.start + weights);
  Vec<T> sum[2][kPixels];
#pragma GCC unroll 2
  for (int row = 0; row < 2; ++row)
#pragma GCC unroll 8
    for (int i = 0; i < kPixels; ++i) sum[row][i] = start;
  if (__builtin_expect(rows.resume, 0)) {
#pragma GCC unroll 2
    for (int row = 0; row < 2; ++row)
#pragma GCC unroll 8
      for (int i = 0; i < kPixels; ++i)
        if (rows.out[row]) sum[row][i] = load_live(rows.out[row] + to + i * g.out_step, live);
  }
  for (int64_t r = 0; r < rows.count; ++r) {
    const MetRow<T>& met = rows.met[r];
    const auto add = [&]<int kFirst, int kRows>() {
      add_taps<T, kPixels, kTaps, kStep, kFirst, kRows, kWhole>(met.x + at, step, met.w, weights,
                                                                g.tap_step, low, high, sum);
    };
    if (!met.w[1])
      add.template operator()<0, 1>();
    else if (!met.w[0])
      add.template operator()<1, 1>();
    else
      add.template operator()<0, 2>();
  }
  store_sums<T, kPixels>(sum[0], rows.out[0] + to, g.out_step, live);
  if (rows.out[1]) store_sums<T, kPixels>(sum[1], rows.out[1] + to, g.out_step, live);
}

/// All pixels, in tiles of kPixels of which the last begins early where they do not come out even.
template <class T, int kPixels, int kTaps, int kStep>
static void sum_rows(const DepthwiseRow<T>& g, const RowPair<T>& rows) {
  constexpr int64_t kReads = (kPixels - 1) * kStep + kTaps;
  const T* ahead = rows.ahead;
  const int64_t tiles = ceil_div(g.axis.count, kPixels);
  const int64_t ahead_step = rows.ahead_size / (tiles * (g.end - g.begin));
  for (int64_t tile = 0; tile < g.axis.count; tile += kPixels) {
    const int64_t q = smaller(tile, g.axis.count - kPixels), at = q * kStep + g.axis.in_first;
    const int64_t low = larger(0, -at), high = smaller(kReads, g.width - at);
    for (int64_t block = g.begin; block < g.end; ++block) {
      for (const T* end = ahead + ahead_step; ahead < end; ahead += 64 / sizeof(T))
        __builtin_prefetch(ahead, 0, 2);
      if (low == 0 && high == kReads)
        sum_tile<T, kPixels, kTaps, kStep, true>(g, rows, q, block, low, high);
      else
        sum_tile<T, kPixels, kTaps, kStep, false>(g, rows, q, block, low, high);
    }
  }
}

/// One row of pixels with taps anywhere, pixel by pixel.
template <class T> static void sum_any_row(const DepthwiseRow<T>& g, const RowPair<T>& rows) {
  const Axis& axis = g.axis;
  for (int64_t q = 0; q < axis.count; ++q) {
    const TapRange taps(axis, g.width, q);
    for (int64_t block = g.begin; block < g.end; ++block) {
      const int64_t live = g.out_blocks.live(block);
      T* out = rows.out[0] + q * g.out_step + g.out_blocks.first(block);
      Vec<T> sum = rows.resume ? load_live(out, live) : load(g.start + block * g.block_step);
      for (int64_t r = 0; r < rows.count; ++r) {
        const T* x = rows.met[r].x + (q * axis.in_step + axis.in_first) * g.x_step +
                     g.x_blocks.first(block - g.x_begin);
        const T* w = rows.met[r].w[0] + block * g.block_step;
        for (int64_t k = taps.first; k < taps.last; ++k)
          sum =
              fma(load_live(x + k * axis.tap_step * g.x_step, live), load(w + k * g.tap_step), sum);
      }
      store_live(out, sum, live);
    }
  }
}

template <class T> using RowSum = void (*)(const DepthwiseRow<T>&, const RowPair<T>&);

template <class T, int kTaps, int kStep> static RowSum<T> pick_pixels(int64_t pixels) {
  // With stride 2 longer tiles read more lines than L1 holds at large steps (15 % at 14x14, 5 to 15
  // % from 28x28 on).
  constexpr int kShort = 4, kLong = kStep == 1 ? kDepthwisePixels : kShort;
  if constexpr (kLong > kShort)
    if (pixels >= kLong && ceil_div(pixels, kLong) * kLong <= ceil_div(pixels, kShort) * kShort)
      return &sum_rows<T, kLong, kTaps, kStep>;
  return pixels >= kShort ? &sum_rows<T, kShort, kTaps, kStep> : &sum_rows<T, 1, kTaps, kStep>;
}

/// The tiles for these taps, which read whole vectors of x, or null.
template <class T> static RowSum<T> pick_row_sum(const Axis& axis) {
  if (axis.taps > 1 && axis.tap_step != 1) return nullptr;
  const int64_t pixels = axis.count;
  if (axis.in_step == 1) {
    return axis.taps == 1   ? pick_pixels<T, 1, 1>(pixels)
           : axis.taps == 2 ? pick_pixels<T, 2, 1>(pixels)
           : axis.taps == 3 ? pick_pixels<T, 3, 1>(pixels)
           : axis.taps == 5 ? pick_pixels<T, 5, 1>(pixels)
                            : nullptr;
  }
  return axis.in_step != 2 ? nullptr
         : axis.taps == 3  ? pick_pixels<T, 3, 2>(pixels)
         : axis.taps == 5  ? pick_pixels<T, 5, 2>(pixels)
                           : nullptr;
}

}  // namespace brasa::cpu::BRASA_ISA
