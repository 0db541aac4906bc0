// Gradients of weight and bias: sums over pixels, in the blocks and parts of core/order.h.
//
// Each tile of (tap, input channels) x output channels stays in registers while a block of pixels
// goes by; a thread takes all its tiles through one block before the next, so that the block is
// read from L2. Without the blocks, 1x1 layers fall to a third of the speed.
#include "conv/conv_depthwise.h"
#include "conv/conv_stage.h"
#include "conv/conv_tile.h"
#include "core/order.h"

namespace brasa::cpu::BRASA_ISA {

/// The rows of dy, counted over images, in the blocks that sums are made of.
struct RowBlocks {
  int64_t rows, per_block, count;

  explicit RowBlocks(const ConvParams& p) : rows(p.batch * p.out[0] * p.out[1]) {
    const int64_t row_elements = p.out[2] * (p.in_channels + p.out_channels);
    per_block = larger(1, smaller(order::kConvBlockRows, order::kConvBlockElements / row_elements));
    count = ceil_div(rows, per_block);
  }
  int64_t first(int64_t block) const { return block * per_block; }
  int64_t last(int64_t block) const { return smaller(rows, (block + 1) * per_block); }
};

template <class T> struct WeightPlan {
  Axis axis[3];
  Source<T> source;
  T* staged;
  RowBlocks rows;
  int64_t parts;
  Tap* tap;
  int64_t taps, run, depth;  ///< depth = taps * run
  int64_t columns;           ///< of all groups, padded to vectors
  T* sums;                   ///< [part][group][panel][depth][panel's columns]
};

template <class T> static WeightPlan<T> plan_weight(Arena& arena, const ConvParams& p, const T* x) {
  WeightPlan<T> plan{.rows = RowBlocks(p)};
  Reach reach{};
  for (int d = 0; d < 3; ++d) {
    plan.axis[d] = forward_axis(p, d);
    reach.low[d] = plan.axis[d].lowest();
    reach.high[d] = plan.axis[d].highest();
  }
  plan.source = plan_source(arena, x, p.x_channels_last, p.batch, p.in_channels, p.group_in(), p.in,
                            reach, plan.staged);
  const bool merged = plan.source.covers && p.groups == 1 && p.dilation[2] == 1;
  plan.taps = merged ? p.kernel[0] * p.kernel[1] : p.taps();
  plan.run = p.group_in() * (merged ? p.kernel[2] : 1);
  plan.depth = plan.taps * plan.run;
  const int64_t weights = p.out_channels * p.group_in() * p.taps();
  plan.parts = larger(
      1, smaller(smaller(order::kConvParts, plan.rows.count), order::kConvPartElements / weights));
  plan.columns = Panels<T>(p.group_out()).padded() * p.groups;
  plan.tap = arena.take<Tap>(plan.taps);
  plan.sums = arena.take<T>(plan.parts * plan.columns * plan.depth);
  if (!plan.tap) return plan;
  const int64_t wide = merged ? 1 : p.kernel[2];
  for (int64_t t = 0; t < plan.taps; ++t) {
    Tap& tap = plan.tap[t];
    tap.at[0] = t / (p.kernel[1] * wide) * p.dilation[0];
    tap.at[1] = t / wide % p.kernel[1] * p.dilation[1];
    tap.at[2] = t % wide * p.dilation[2];
    tap.offset = plan.source.offset(tap.at[0], tap.at[1], tap.at[2]);
  }
  return plan;
}

/// The pixels of rows [begin, end) for which this tap lies inside of x.
template <class T>
static int64_t list_segments(const WeightPlan<T>& plan, const ConvParams& p, const Tap& tap,
                             const T* dy, int64_t begin, int64_t end, Segment<T>* segment) {
  const Axis* a = plan.axis;
  const Source<T>& source = plan.source;
  const int64_t x_step = a[2].in_step * source.step[2];
  const int64_t left = a[2].in_first + tap.at[2];
  int64_t first = 0, last = p.out[2], count = 0;
  if (!source.covers) {
    first = left >= 0 ? 0 : ceil_div(-left, a[2].in_step);
    last =
        source.size[2] <= left ? 0 : smaller(last, ceil_div(source.size[2] - left, a[2].in_step));
  }
  if (first >= last) return 0;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / (p.out[0] * p.out[1]);
    const int64_t d = row / p.out[1] % p.out[0] * a[0].in_step + a[0].in_first + tap.at[0];
    const int64_t h = row % p.out[1] * a[1].in_step + a[1].in_first + tap.at[1];
    if (!source.covers &&
        (uint64_t(d) >= uint64_t(source.size[0]) || uint64_t(h) >= uint64_t(source.size[1])))
      continue;
    const Segment<T> next{
        source.data + n * source.image + source.offset(d, h, left) + first * x_step,
        dy + (row * p.out[2] + first) * p.out_channels, last - first};
    Segment<T>* previous = count ? &segment[count - 1] : nullptr;
    if (previous && previous->x + previous->count * x_step == next.x &&
        previous->dy + previous->count * p.out_channels == next.dy) {
      previous->count += next.count;
    } else {
      segment[count++] = next;
    }
  }
  return count;
}

template <class T>
using WeightTile = void (*)(const Segment<T>*, int64_t, int64_t, int64_t, int64_t, int64_t, T*,
                            int64_t, bool);

template <class T, int kVectors, int kRows = kConvWeightRows<kVectors>>
static WeightTile<T> pick_tile(int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return pick_tile<T, kVectors, kRows - 1>(rows);
  }
  return &weight_tile<T, kRows, kVectors>;
}

template <class T> static int most_rows(int vectors) {
  return vectors == 1   ? kConvWeightRows<1>
         : vectors == 2 ? kConvWeightRows<2>
         : vectors == 3 ? kConvWeightRows<3>
                        : kConvWeightRows<4>;
}

template <class T> static WeightTile<T> tile_function(int vectors, int rows) {
  switch (vectors) {
    case 1:
      return pick_tile<T, 1>(rows);
#if defined(__AVX512F__) || defined(__aarch64__)
    case 3:
      return pick_tile<T, 3>(rows);
    case 4:
      return pick_tile<T, 4>(rows);
#endif
    default:
      return pick_tile<T, 2>(rows);
  }
}

/// One (group, panel) of one tap over one block: all its tiles.
template <class T>
static void sum_panel(const WeightPlan<T>& plan, const ConvParams& p, int64_t unit, int64_t t,
                      const Segment<T>* segment, int64_t segments, T* sums, bool add) {
  const Panels<T> panels(p.group_out());
  const int64_t group = unit / panels.count, panel = unit % panels.count;
  const int width = panels.width(panel), columns = width * kLanes<T>;
  const EvenCut cut(plan.run, most_rows<T>(width));
  T* to =
      sums + (group * panels.padded() + panels.column(panel)) * plan.depth + t * plan.run * columns;
  for (int64_t tile = 0; tile < cut.count; ++tile) {
    const int64_t first = cut.first(tile);
    tile_function<T>(width, cut.rows(tile))(
        segment, segments, group * p.group_in() + first,
        group * p.group_out() + panels.column(panel), plan.axis[2].in_step * plan.source.step[2],
        p.out_channels, to + first * columns, panels.live(panel), add);
  }
}

/// Units (tap x group x panel) [begin, end) of one part, block by block.
template <class T>
static void sum_part(const WeightPlan<T>& plan, const ConvParams& p, const T* dy, int64_t part,
                     int64_t begin, int64_t end) {
  const int64_t panels = p.groups * Panels<T>(p.group_out()).count;
  const int64_t first = plan.rows.count * part / plan.parts,
                last = plan.rows.count * (part + 1) / plan.parts;
  T* sums = plan.sums + part * plan.columns * plan.depth;
  Segment<T> segment[order::kConvBlockRows];
  for (int64_t block = first; block < last; ++block) {
    int64_t segments = 0;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t t = unit / panels;
      if (unit == begin || unit % panels == 0)
        segments = list_segments(plan, p, plan.tap[t], dy, plan.rows.first(block),
                                 plan.rows.last(block), segment);
      sum_panel(plan, p, unit % panels, t, segment, segments, sums, block > first);
    }
  }
}

template <class T>
static void sum_weights(Context ctx, const WeightPlan<T>& plan, const ConvParams& p, const T* dy) {
  const int64_t units = plan.taps * p.groups * Panels<T>(p.group_out()).count;
  const int64_t shares =
      ctx.threads == 1 ? 1 : smaller(units, ceil_div(2 * ctx.threads, plan.parts));
  parallel_for(ctx, plan.parts * shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t share = i % shares;
      sum_part(plan, p, dy, i / shares, units * share / shares, units * (share + 1) / shares);
    }
  });
}

/// dw = sum of the parts, in order, from panels back to C order.
template <class T>
static void unpack_weights(Context ctx, const WeightPlan<T>& plan, const ConvParams& p, T* dw) {
  const Panels<T> panels(p.group_out());
  const int64_t channels = p.group_in(), taps = p.taps(), part = plan.columns * plan.depth;
  parallel_for(ctx, p.out_channels, row_grain(channels * taps * plan.parts),
               [&](int64_t begin, int64_t end) {
                 for (int64_t out = begin; out < end; ++out) {
                   const int64_t group = out / p.group_out(), o = out % p.group_out();
                   int64_t panel = panels.count - 1;
                   while (panels.column(panel) > o) --panel;
                   const int64_t columns = panels.width(panel) * kLanes<T>;
                   const T* from = plan.sums +
                                   (group * panels.padded() + panels.column(panel)) * plan.depth +
                                   o - panels.column(panel);
                   T* to = dw + out * channels * taps;
                   for (int64_t c = 0; c < channels; ++c)
                     for (int64_t k = 0; k < taps; ++k) {
                       const T* at = from + (k * channels + c) * columns;
                       T sum = at[0];
                       for (int64_t i = 1; i < plan.parts; ++i) sum += at[i * part];
                       to[c * taps + k] = sum;
                     }
                 }
               });
}

/// sums[0, n) (+)= sum over pixels of dy[0, n), n at most kVectors vectors.
template <class T, int kVectors>
static void sum_channels(const T* dy, int64_t pixels, int64_t step, int64_t live, T* sums,
                         bool add) {
  Vec<T> sum[kVectors] = {};
  for (int64_t n = 0; n < pixels; ++n, dy += step)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j)
      sum[j] += load_live(dy + j * kLanes<T>, live - j * kLanes<T>);
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    const int64_t left = live - j * kLanes<T>;
    T* to = sums + j * kLanes<T>;
    store_live(to, add ? load_live(to, left) + sum[j] : sum[j], left);
  }
}

static int64_t bias_parts(const RowBlocks& rows) {
  return smaller(order::kConvBiasParts, rows.count);
}

template <class T>
static void sum_bias(Context ctx, const ConvParams& p, const T* dy, T* sums, T* db) {
  constexpr int64_t kStep = 4 * kLanes<T>;
  const RowBlocks rows(p);
  const int64_t channels = p.out_channels, parts = bias_parts(rows);
  parallel_for(ctx, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = rows.count * part / parts, last = rows.count * (part + 1) / parts;
      for (int64_t block = first; block < last; ++block) {
        const T* from = dy + rows.first(block) * p.out[2] * channels;
        const int64_t pixels = (rows.last(block) - rows.first(block)) * p.out[2];
        for (int64_t o = 0; o < channels; o += kStep)
          sum_channels<T, 4>(from + o, pixels, channels, channels - o, sums + part * channels + o,
                             block > first);
      }
    }
  });
  for (int64_t o = 0; o < channels; ++o) {
    T sum = sums[o];
    for (int64_t part = 1; part < parts; ++part) sum += sums[part * channels + o];
    db[o] = sum;
  }
}

template <class T>
void conv_backward_weight(Context ctx, const T* dy, const T* x, T* dw, T* db,
                          const ConvParams& params) {
  if (params.batch == 0) {
    if (dw) zero_fill(dw, params.out_channels * params.group_in() * params.taps());
    if (db) zero_fill(db, params.out_channels);
    return;
  }
  Arena arena(ctx.workspace);
  T* bias_sums = arena.take<T>(bias_parts(RowBlocks(params)) * params.out_channels);
  if (db) sum_bias(ctx, params, dy, bias_sums, db);
  if (!dw) return;
  if (params.is_depthwise()) return depthwise_backward_weight(ctx, dy, x, dw, params, arena.rest());
  WeightPlan<T> plan = plan_weight(arena, params, x);
  if (plan.staged)
    fill_staged(ctx, plan.source, plan.staged, x, params.x_channels_last, params.batch,
                params.in_channels);
  sum_weights(ctx, plan, params, dy);
  unpack_weights(ctx, plan, params, dw);
}

template <class T> size_t conv_backward_weight_workspace(const ConvParams& params) {
  if (params.batch == 0) return 0;
  Arena arena(nullptr);
  arena.take<T>(bias_parts(RowBlocks(params)) * params.out_channels);
  if (params.is_depthwise()) return arena.used() + depthwise_workspace<T>(params);
  plan_weight<T>(arena, params, nullptr);
  return arena.used();
}

BRASA_INSTANTIATE(conv_backward_weight, float, double)
BRASA_INSTANTIATE(conv_backward_weight_workspace, float, double)

}  // namespace brasa::cpu::BRASA_ISA
