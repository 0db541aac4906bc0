// Gradients of weight and bias on the CPU: the cut into parts and blocks, and what is read how.
//
// Each tile of (tap, input channels) x output channels stays in registers while a block of pixels
// goes by; a thread takes all its tiles through one block before the next, so that the block is
// read from L2. Without the blocks, 1x1 layers fall to a third of the speed. What threads are
// handed is a part of the pixels and a share of its units: a unit is a tap x a panel of output
// channels x about 24 input channels, so that layers of any shape split evenly.
//
// x is read as it lies. Where it is C-ordered, or few channels stand in padding, each thread copies
// the rows that a block meets, padded, into memory of its own: a copy of the whole array first
// costs 10 to 15 % of such layers (it stays in memory, the block in L2), and is left to
// three-dimensional images and to many channels in C order.
//
// Measured: copying a panel of a block of dy for its tiles, fetching the sums when a tile begins
// and transposing the panels back in registers (by elements it took a fifth of 512 x 512 3x3) bring
// 3x3 layers of 128 channels and more from 400 to 470 GFLOP/s. Fetching the next block with every
// pixel makes 256 -> 64 1x1 on 56x56 half again as fast, whose arrays are in DRAM, and costs 3 %
// where they are in L3. Lost: fetching it in one go per tile (up to 12 %), copying no panel where
// x has few channels (10 % of 128 -> 512), blocks of 128 Ki elements where one follows another
// (10 % of 256 -> 64: two do not fit into L2), of 64 Ki where one is all (5 %).
#pragma once

#include "conv/conv_stage.h"
#include "conv/conv_tile.h"
#include "conv/conv_weight_tile.h"
#include "core/order.h"

namespace brasa::cpu::BRASA_ISA {

/// The rows of dy, counted over images: parts, and the length of blocks.
struct RowCut {
  int64_t rows, parts, per_block;

  /// Blocks of about `block_elements`; a part of up to `whole` elements is one block.
  RowCut(const ConvParams& p, int64_t block_elements, int64_t whole = 0)
      : rows(p.batch * p.out[0] * p.out[1]) {
    const int64_t x_rows = smaller(p.stride[1], p.kernel[1]),
                  x_width = smaller(p.in[2], p.out[2] * smaller(p.stride[2], p.kernel[2]));
    const int64_t row_elements =
        p.out[2] * p.out_channels + smaller(x_rows, p.in[1]) * x_width * p.in_channels;
    const int64_t weights = p.out_channels * p.group_in() * p.taps();
    parts = smaller(order::kConvParts, order::kConvPartElements / weights);
    parts = larger(1, smaller(parts, smaller(rows, rows * p.out[2] / order::kConvPartPixels)));
    const int64_t least = smaller(ceil_div(order::kConvBlockPixels, p.out[2]), rows);
    if (ceil_div(rows, parts) * row_elements <= whole) block_elements = whole;
    per_block =
        smaller(order::kConvBlockRows, larger(larger(1, least), block_elements / row_elements));
  }
  int64_t first(int64_t part) const { return rows * part / parts; }
};

/// The cut of weight gradients, and of a bias gradient alone.
static inline RowCut cut_rows(const ConvParams& p) {
  return RowCut(p, order::kConvBlockElements, order::kConvWholeElements);
}

/// How a thread stages the rows of x that a block of dy meets: every pixel any tap asks for, zeros
/// outside of x, each image's rows apart.
struct BlockStage {
  bool used;
  int64_t reach;  ///< rows of x that one row of dy meets
  int64_t pitch;  ///< of a row, in elements
  int64_t elements;

  /// Two-dimensional images alone; not where padding is most of what would be staged, nor without
  /// need unless `always`.
  BlockStage(const ConvParams& p, const Axis* axis, int64_t per_block, bool always = false) {
    const int64_t width = axis[2].highest() - axis[2].lowest() + 1;
    const int64_t height = axis[1].highest() - axis[1].lowest() + 1;
    const bool inside = axis[1].lowest() >= 0 && axis[2].lowest() >= 0 &&
                        axis[1].highest() < p.in[1] && axis[2].highest() < p.in[2];
    used = always || (p.in[0] == 1 && p.kernel[0] == 1 && p.out[0] == 1 &&
                      p.in_channels < kConvFewChannels && (!inside || !p.x_channels_last) &&
                      double(width) * double(height) <=
                          double(kMaxStagedGrowth) * double(p.in[1]) * double(p.in[2]));
    reach = (p.kernel[1] - 1) * p.dilation[1] + 1;
    pitch = width * p.in_channels;
    elements = used ? rows_of(p, per_block) * pitch : 0;
  }

 private:
  /// A block meets parts of so many images, and of each at most so many rows of x.
  int64_t rows_of(const ConvParams& p, int64_t per_block) const {
    const int64_t images = per_block / p.out[1] + 2;
    return images * ((smaller(per_block, p.out[1]) - 1) * p.stride[1] + reach);
  }
};

/// Copies what rows [begin, end) of dy need of x to `to`, and gives each its segment: where its
/// first pixel's first tap is.
template <class T>
static void stage_block(const ConvParams& p, const BlockStage& stage, const Axis* axis, const T* x,
                        int64_t begin, int64_t end, T* to, Segment<T>* segment) {
  const int64_t channels = p.in_channels, pixels = p.in[1] * p.in[2];
  const int64_t low = axis[2].lowest(), high = axis[2].highest() + 1;
  const int64_t left = smaller(larger(0, -low), high - low);
  const int64_t from = larger(0, low), count = larger(0, smaller(high, p.in[2]) - from);
  for (int64_t row = begin; row < end;) {
    const int64_t n = row / p.out[1], first = row % p.out[1];
    const int64_t rows = smaller(p.out[1] - first, end - row);
    for (int64_t r = 0; r < rows; ++r)
      segment[row - begin + r].x = to + r * p.stride[1] * stage.pitch;
    const int64_t h0 = first * p.stride[1] - p.pad_begin[1];
    for (int64_t h = h0; h < h0 + (rows - 1) * p.stride[1] + stage.reach; ++h, to += stage.pitch) {
      if (h < 0 || h >= p.in[1] || count == 0) {
        zero_fill(to, stage.pitch);
        continue;
      }
      zero_fill(to, left * channels);
      T* pixel = to + left * channels;
      const int64_t at = h * p.in[2] + from;
      if (p.x_channels_last || channels == 1)
        __builtin_memcpy(pixel, x + (n * pixels + at) * channels,
                         size_t(count * channels) * sizeof(T));
      else
        interleave_row(x + n * pixels * channels + at, pixels, channels, count, pixel);
      zero_fill(pixel + count * channels, stage.pitch - (left + count) * channels);
    }
    row += rows;
  }
}

/// sums[0, n) += what lies `part` elements further, parts - 1 times, in order; n is whole vectors.
template <class T> static void add_parts(T* sums, int64_t n, int64_t part, int64_t parts) {
  for (int64_t i = 0; parts > 1 && i < n; i += kLanes<T>) {
    Vec<T> total = load(sums + i);
    for (int64_t j = 1; j < parts; ++j) total += load(sums + i + j * part);
    store(sums + i, total);
  }
}

/// Vectors of a panel in the order of dw: taps of a channel, then the next channel.
template <class T> struct PanelRows {
  const T* at;
  int64_t taps, tap_step, channel_step;
  int64_t tap = 0;

  Vec<T> next() {
    const Vec<T> row = load(at);
    at += tap_step;
    if (++tap == taps) {
      tap = 0;
      at += channel_step - taps * tap_step;
    }
    return row;
  }
};

/// Multiply-adds that are worth a thread: 20 us of one core.
constexpr double kConvThreadWork = 1.2e6;

/// Threads for this many multiply-adds.
static inline int threads_for(Context ctx, double work) {
  const double most = work / kConvThreadWork;
  return most >= double(ctx.threads) ? ctx.threads : most > 1 ? int(most) : 1;
}

static inline double weight_work(const ConvParams& p) {
  return double(p.batch) * double(p.out_pixels()) * double(p.out_channels) * double(p.group_in()) *
         double(p.taps());
}

/// Runs f(member, item) for every item, on as many threads as `work` is worth, then g(index) for
/// index < rest once all are done. Both are handed out one by one.
template <class F, class G>
static void run_items(Context ctx, double work, int64_t items, int64_t rest, const F& f,
                      const G& g) {
  ctx.threads = threads_for(ctx, work);
  int64_t next = 0, next_rest = 0;
  parallel_team(ctx, [&](int member, int, Barrier barrier) {
    for (int64_t i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < items;) f(member, i);
    barrier();
    for (int64_t i; (i = __atomic_fetch_add(&next_rest, 1, __ATOMIC_RELAXED)) < rest;) g(i);
  });
}

}  // namespace brasa::cpu::BRASA_ISA
