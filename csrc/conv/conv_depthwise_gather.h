// The gather of a depthwise layer: its weights, packed by blocks of channels, and which rows of x
// each row of pixels meets.
#pragma once

#include "conv/conv_depthwise.h"
#include "conv/conv_depthwise_tile.h"

namespace brasa::cpu::BRASA_ISA {

/// The weights of each block of channels: what its sums begin at, then one vector per tap.
template <class T> struct PackedBlocks {
  T* packed;
  int64_t taps, step, count;
  ChannelBlocks<T> blocks;

  PackedBlocks(Arena& arena, const ConvParams& p, const ChannelBlocks<T>& channel_blocks)
      : taps(p.taps()),
        step((1 + p.taps()) * kLanes<T>),
        count(ceil_div(p.in_channels, kLanes<T>)),
        blocks(channel_blocks) {
    packed = arena.take<T>(count * step);
  }
};

/// Weights of so many elements are packed by one thread.
constexpr int64_t kPackedGrain = 32 * 1024;

template <class T>
static void pack_blocks(Context ctx, const PackedBlocks<T>& to, const T* w, const T* bias) {
  parallel_for(ctx, to.count, larger(1, kPackedGrain / to.step), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = to.blocks.first(block), live = to.blocks.live(block);
      T* start = to.packed + block * to.step;
      store(start, bias ? load_live(bias + first, live) : Vec<T>{});
      transpose_rows(w + first * to.taps, to.taps, live, to.taps, [&](int64_t tap, Vec<T> weights) {
        store(start + (1 + tap) * kLanes<T>, weights);
      });
    }
  });
}

/// What is the same for all pixels of a gather over one class.
template <class T> struct DepthwiseGather {
  Axis axis[3];
  Source<T> source;
  T* out;
  int64_t out_image, out_step[3];
  const T* tap;  ///< the weights of the kernel's first element
  int64_t kernel[3];
  DepthwiseRow<T> row;
  RowSum<T> sum;
  bool pairs;  ///< neighbouring rows of pixels read the same rows of x
  bool ahead;  ///< rows are fetched ahead

  int64_t rows() const { return axis[0].count * axis[1].count; }
};

/// A gather over arrays as they lie.
template <class T>
static DepthwiseGather<T> make_gather(const ConvParams& p, const PackedBlocks<T>& packed,
                                      const Source<T>& source, T* out, const int64_t* out_size) {
  const Source<T> steps = plain_source<T>(out, p.in_channels, out_size);
  DepthwiseGather<T> g{};
  g.source = source;
  g.out = out;
  g.out_image = steps.image;
  g.tap = packed.packed + kLanes<T>;
  for (int d = 0; d < 3; ++d) {
    g.out_step[d] = steps.step[d];
    g.kernel[d] = p.kernel[d];
  }
  g.row.x_step = source.step[2];
  g.row.end = packed.count;
  g.row.x_blocks = g.row.out_blocks = packed.blocks;
  g.row.start = packed.packed;
  g.row.block_step = packed.step;
  return g;
}

/// Sets the axes and what follows from them; `whole`: blocks of x are whole vectors.
template <class T>
static void set_axes(DepthwiseGather<T>& g, const Axis& a, const Axis& b, const Axis& c,
                     bool whole) {
  g.axis[0] = a, g.axis[1] = b, g.axis[2] = c;
  g.row.axis = c;
  g.row.width = g.source.size[2];
  g.row.out_step = c.out_step * g.out_step[2];
  g.row.tap_step = c.kernel_step * kLanes<T>;
  const RowSum<T> tiles = whole ? pick_row_sum<T>(c) : nullptr;
  g.sum = tiles ? tiles : &sum_any_row<T>;
  g.pairs = tiles && b.taps > b.in_step && b.tap_step == 1;
}

/// Row number `row` of the class in image n and, with `two`, the one after it: lists the rows of x
/// that they meet in the order of their taps.
template <class T>
static void gather_rows(const DepthwiseGather<T>& g, int64_t n, int64_t row, bool two) {
  const Axis *axis = g.axis, &high = axis[1];
  const int64_t q[2] = {row / high.count, row % high.count};
  T* out = g.out + n * g.out_image + axis[2].out_first * g.out_step[2];
  for (int d = 0; d < 2; ++d) out += (axis[d].out_first + q[d] * axis[d].out_step) * g.out_step[d];
  RowPair<T> rows{0,     {},      {out, two ? out + high.out_step * g.out_step[1] : nullptr},
                  false, nullptr, 0};
  const T* image = g.source.data + n * g.source.image;
  const int64_t met = high.taps + (two ? high.in_step : 0);
  if (g.ahead) {
    const int64_t next = q[1] * high.in_step + high.in_first + (met - 1) * high.tap_step + 1;
    rows.ahead = image + g.source.offset(0, next, 0);
    rows.ahead_size = (two ? 2 : 1) * high.in_step * g.source.step[1];
  }
  for (int64_t t = 0; t < axis[0].taps; ++t) {
    const int64_t d = q[0] * axis[0].in_step + axis[0].in_first + t * axis[0].tap_step;
    if (uint64_t(d) >= uint64_t(g.source.size[0])) continue;
    const int64_t plane = (axis[0].kernel_first + t * axis[0].kernel_step) * g.kernel[1];
    const auto weights = [&](int64_t tap) -> const T* {
      if (tap < 0 || tap >= high.taps) return nullptr;
      const int64_t first = plane + high.kernel_first + tap * high.kernel_step;
      return g.tap + (first * g.kernel[2] + axis[2].kernel_first) * kLanes<T>;
    };
    for (int64_t j = 0; j < met; ++j) {
      const int64_t h = q[1] * high.in_step + high.in_first + j * high.tap_step;
      if (uint64_t(h) >= uint64_t(g.source.size[1])) continue;
      if (rows.count == kMetRows) {
        g.sum(g.row, rows);
        rows.count = 0;
        rows.resume = true;
      }
      rows.met[rows.count++] = {image + g.source.offset(d, h, 0),
                                {weights(j), two ? weights(j - high.in_step) : nullptr}};
    }
  }
  if (rows.count || !rows.resume) g.sum(g.row, rows);
}

/// Rows [begin, end) of the class in image n, two at a time where they share what they read.
template <class T>
static void gather_band(const DepthwiseGather<T>& g, int64_t n, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end;) {
    const bool two = g.pairs && row + 1 < end && (row + 1) % g.axis[1].count != 0;
    gather_rows(g, n, row, two);
    row += two ? 2 : 1;
  }
}

}  // namespace brasa::cpu::BRASA_ISA
