#include "conv/conv_weight.h"

#include "activation/activation.h"
#include "conv/conv_bias.h"
#include "conv/conv_depthwise.h"
#include "conv/conv_narrow.h"
#include "conv/conv_product.h"

namespace brasa::cpu::BRASA_ISA {

/// Input channels (of all taps of a row, where these are one run) of a unit, and how many more
/// still make one.
constexpr int64_t kUnitRun = 24, kUnitMost = 30;
/// Items per thread: few enough that each reads its block from L2, so many that no thread waits.
constexpr int64_t kItemsPerThread = 8;
/// x and dy of so many bytes are not found in L3.
constexpr int64_t kAheadBytes = 14 << 20;
/// Input channels that are unpacked at a time.
constexpr int64_t kUnpackChannels = 16;

template <class T> struct WeightPlan {
  const ConvParams& p;
  RowCut rows;
  Axis axis[3];
  BlockStage stage;
  Source<T> source;
  T* staged;
  Tap* tap;
  int64_t taps, run, depth;  ///< depth = taps * run
  int64_t panels, columns;   ///< of all groups; columns padded to vectors
  int64_t chunks;            ///< that the run is cut into, for units
  /// 1x1: panels of a block of dy are copied, where their rows lie far apart (and at powers of two,
  /// of which few fit into a cache). Packing units of x as well lost up to 30 %: the copy waits for
  /// what the tile would read ahead.
  bool packs;
  T* sums;  ///< [part][group][panel][depth][panel's columns]
  T* bias_sums;
  T* scratch;  ///< per thread: staged rows of x, a panel of dy
  int64_t scratch_elements;

  explicit WeightPlan(const ConvParams& params)
      : p(params),
        rows(cut_rows(params)),
        axis{forward_axis(params, 0), forward_axis(params, 1), forward_axis(params, 2)},
        stage(params, axis, rows.per_block) {}
  int64_t packed_pitch() const { return Panels<T>(p.group_out()).width(0) * kLanes<T>; }
  int64_t stage_elements() const { return ceil_div(stage.elements, 16) * 16; }
  int64_t units() const { return taps * panels * chunks; }
};

/// How x is read, and the taps.
template <class T> static void plan_taps(WeightPlan<T>& plan, Arena& arena, const T* x) {
  const ConvParams& p = plan.p;
  plan.staged = nullptr;
  if (plan.stage.used) {
    plan.source = Source<T>{};
    plan.source.step[1] = plan.stage.pitch;
    plan.source.step[2] = p.in_channels;
    plan.source.covers = true;
  } else {
    Reach reach{};
    for (int d = 0; d < 3; ++d) {
      reach.low[d] = plan.axis[d].lowest();
      reach.high[d] = plan.axis[d].highest();
    }
    plan.source = plan_source(arena, x, p.x_channels_last, p.batch, p.in_channels, p.group_in(),
                              p.in, reach, plan.staged);
  }
  const bool merged = plan.source.covers && p.groups == 1 && p.dilation[2] == 1;
  plan.taps = merged ? p.kernel[0] * p.kernel[1] : p.taps();
  plan.run = p.group_in() * (merged ? p.kernel[2] : 1);
  plan.depth = plan.taps * plan.run;
  plan.tap = arena.take<Tap>(plan.taps);
  if (!plan.tap) return;
  const int64_t wide = merged ? 1 : p.kernel[2];
  for (int64_t t = 0; t < plan.taps; ++t) {
    Tap& tap = plan.tap[t];
    tap.at[0] = t / (p.kernel[1] * wide) * p.dilation[0];
    tap.at[1] = t / wide % p.kernel[1] * p.dilation[1];
    tap.at[2] = t % wide * p.dilation[2];
    tap.offset = plan.source.offset(tap.at[0], tap.at[1], tap.at[2]);
  }
}

template <class T>
static WeightPlan<T> plan_weight(Arena& arena, const ConvParams& p, const T* x, int threads) {
  WeightPlan<T> plan(p);
  plan.bias_sums = arena.take<T>(bias_elements(p, plan.rows));
  plan_taps(plan, arena, x);
  const Panels<T> panels(p.group_out());
  plan.panels = p.groups * panels.count;
  plan.columns = p.groups * panels.padded();
  plan.chunks = plan.run <= kUnitMost ? 1 : ceil_div(plan.run, kUnitRun);
  plan.packs = plan.panels > 1;
  plan.scratch_elements = plan.stage_elements() +
                          (plan.packs ? plan.rows.per_block * p.out[2] * plan.packed_pitch() : 0);
  plan.sums = arena.take<T>(plan.rows.parts * plan.columns * plan.depth);
  plan.scratch = arena.take<T>(threads * plan.scratch_elements);
  return plan;
}

/// A block of rows of dy as the tiles read it.
template <class T> struct WeightBlock {
  int64_t begin, end, pixels;
  const T* dy;       ///< its first pixel, in dy or packed
  int64_t dy_pitch;  ///< between pixels
  Ahead ahead;       ///< of the block after this one
  int64_t segments;
  Segment<T> segment[order::kConvBlockRows];
};

/// Segments of the staged rows: one per row, whose x is known.
template <class T> static void list_staged(const WeightPlan<T>& plan, WeightBlock<T>& block) {
  block.segments = block.end - block.begin;
  for (int64_t r = 0; r < block.segments; ++r) {
    block.segment[r].dy = block.dy + r * plan.p.out[2] * block.dy_pitch;
    block.segment[r].count = plan.p.out[2];
  }
}

/// The pixels of the block for which this tap lies inside of x; rows that follow one another in
/// memory become one segment.
template <class T>
static void list_segments(const WeightPlan<T>& plan, const Tap& tap, WeightBlock<T>& block) {
  const ConvParams& p = plan.p;
  const Axis* a = plan.axis;
  const Source<T>& source = plan.source;
  const int64_t x_step = a[2].in_step * source.step[2], left = a[2].in_first + tap.at[2];
  int64_t first = 0, last = p.out[2];
  if (!source.covers) {
    first = left >= 0 ? 0 : ceil_div(-left, a[2].in_step);
    last =
        source.size[2] <= left ? 0 : smaller(last, ceil_div(source.size[2] - left, a[2].in_step));
  }
  block.segments = 0;
  if (first >= last) return;
  for (int64_t row = block.begin; row < block.end; ++row) {
    const int64_t n = row / (p.out[0] * p.out[1]);
    const int64_t d = row / p.out[1] % p.out[0] * a[0].in_step + a[0].in_first + tap.at[0];
    const int64_t h = row % p.out[1] * a[1].in_step + a[1].in_first + tap.at[1];
    if (!source.covers &&
        (uint64_t(d) >= uint64_t(source.size[0]) || uint64_t(h) >= uint64_t(source.size[1])))
      continue;
    const Segment<T> next{
        source.data + n * source.image + source.offset(d, h, left) + first * x_step,
        block.dy + ((row - block.begin) * p.out[2] + first) * block.dy_pitch, last - first};
    Segment<T>* previous = block.segments ? &block.segment[block.segments - 1] : nullptr;
    if (previous && previous->x + previous->count * x_step == next.x &&
        previous->dy + previous->count * block.dy_pitch == next.dy) {
      previous->count += next.count;
    } else {
      block.segment[block.segments++] = next;
    }
  }
}

template <class T>
using WeightTile = void (*)(const Segment<T>*, int64_t, int64_t, int64_t, int64_t, int64_t, T*,
                            int64_t, bool, const Ahead&);

template <class T, int kVectors, int kRows = kConvWeightRows<kVectors>>
static WeightTile<T> pick_tile(int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return pick_tile<T, kVectors, kRows - 1>(rows);
  }
  return &weight_tile<T, kRows, kVectors>;
}

/// All tiles of one unit over one block.
template <class T>
static void sum_unit(const WeightPlan<T>& plan, WeightBlock<T>& block, int64_t t,
                     int64_t panel_index, int64_t chunk, T* sums, bool add) {
  const ConvParams& p = plan.p;
  const Panels<T> panels(p.group_out());
  const int64_t group = panel_index / panels.count, panel = panel_index % panels.count;
  const int64_t columns = panels.width(panel) * kLanes<T>;
  const int64_t begin = chunk * kUnitRun,
                end = chunk + 1 == plan.chunks ? plan.run : begin + kUnitRun;
  const int64_t x_at = group * p.group_in() + begin + (plan.source.covers ? plan.tap[t].offset : 0);
  const int64_t dy_at = plan.packs ? 0 : group * p.group_out() + panels.column(panel);
  const int64_t x_step = plan.axis[2].in_step * plan.source.step[2];
  T* to = sums + (group * panels.padded() + panels.column(panel)) * plan.depth +
          (t * plan.run + begin) * columns;
  visit_width(panels.width(panel), [&]<int kVectors>() {
    const EvenCut cut(end - begin, kConvWeightRows<kVectors>);
    for (int64_t tile = 0; tile < cut.count; ++tile) {
      const int64_t first = cut.first(tile);
      pick_tile<T, kVectors>(cut.rows(tile))(
          block.segment, block.segments, x_at + first, dy_at, x_step, block.dy_pitch,
          to + first * columns, plan.packs ? columns : panels.live(panel), add, block.ahead);
      block.ahead.dy += block.ahead.dy_step * block.pixels;
    }
  });
}

/// packed[pixel] = the panel's columns of dy's pixels, zeros beyond the last channel.
template <class T>
static void pack_panel(const WeightPlan<T>& plan, const WeightBlock<T>& block, const T* dy,
                       int64_t panel_index, T* packed) {
  const ConvParams& p = plan.p;
  const Panels<T> panels(p.group_out());
  const int64_t panel = panel_index % panels.count, live = panels.live(panel);
  const T* from = dy + block.begin * p.out[2] * p.out_channels +
                  panel_index / panels.count * p.group_out() + panels.column(panel);
  const int64_t pixels = (block.end - block.begin) * p.out[2];
  visit_width(panels.width(panel), [&]<int kVectors>() {
    for (int64_t i = 0; i < pixels; ++i, from += p.out_channels, packed += block.dy_pitch)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j)
        store(packed + j * kLanes<T>, load_live(from + j * kLanes<T>, live - j * kLanes<T>));
  });
}

/// Units (panel x tap x chunk) [begin, end) over one block.
template <class T>
static void sum_block(const WeightPlan<T>& plan, const T* x, const T* dy, WeightBlock<T>& block,
                      int64_t begin, int64_t end, T* sums, T* scratch, bool add) {
  const ConvParams& p = plan.p;
  T* packed = scratch + plan.stage_elements();
  block.dy = plan.packs ? packed : dy + block.begin * p.out[2] * p.out_channels;
  block.dy_pitch = plan.packs ? plan.packed_pitch() : p.out_channels;
  if (plan.stage.used) {
    stage_block(p, plan.stage, plan.axis, x, block.begin, block.end, scratch, block.segment);
    list_staged(plan, block);
  } else if (plan.source.covers) {
    list_segments(plan, Tap{}, block);
  }
  int64_t listed = -1, packed_panel = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t panel = unit / (plan.taps * plan.chunks), t = unit / plan.chunks % plan.taps;
    if (!plan.source.covers && t != listed) list_segments(plan, plan.tap[t], block);
    if (plan.packs && panel != packed_panel) pack_panel(plan, block, dy, panel, packed);
    listed = t;
    packed_panel = panel;
    sum_unit(plan, block, t, panel, unit % plan.chunks, sums, add);
  }
}

/// Plans to fetch the block after this one while `units` units are summed, where arrays are too
/// large to be in L3: tiles read x and dy at strides that no hardware prefetcher follows.
template <class T>
static void plan_ahead(const WeightPlan<T>& plan, const T* dy, int64_t end, int64_t units,
                       WeightBlock<T>& block) {
  const ConvParams& p = plan.p;
  const int64_t row = p.out[2] * p.out_channels, rows = block.end - block.begin;
  const int64_t elements = plan.rows.rows * row + p.batch * p.in_pixels() * p.in_channels;
  block.ahead = {};
  if (end == block.end || elements * int64_t(sizeof(T)) < kAheadBytes) return;
  const int64_t tiles = larger(1, units * kUnitRun / kConvWeightRows<kConvVectors>);
  const int64_t bytes = (end - block.end) * row * int64_t(sizeof(T));
  block.ahead.dy = reinterpret_cast<const char*>(dy + block.end * row);
  block.ahead.dy_step = ceil_div(bytes, tiles * block.pixels);
  if (!plan.stage.used) block.ahead.x_ahead = rows * plan.axis[1].in_step * plan.source.step[1];
}

/// A share of one part's units, block by block; the first share sums the bias too.
template <class T>
static void sum_share(const WeightPlan<T>& plan, const T* x, const T* dy, int64_t part,
                      int64_t share, int64_t shares, bool bias, T* scratch) {
  const ConvParams& p = plan.p;
  const int64_t first = plan.rows.first(part), units = plan.units(), channels = p.out_channels;
  const int64_t chains = bias_chains(p);
  const EvenCut cut(plan.rows.first(part + 1) - first, int(plan.rows.per_block));
  T* sums = plan.sums + part * plan.columns * plan.depth;
  T* bias_sums = plan.bias_sums + part * chains * channels;
  bias = bias && share == 0;
  WeightBlock<T> block;
  for (int64_t b = 0; b < cut.count; ++b) {
    block.begin = first + cut.first(b);
    block.end = first + cut.first(b + 1);
    if (bias)
      sum_bias_block(dy + block.begin * p.out[2] * channels, cut.rows(b) * p.out[2], channels,
                     chains, bias_sums, b > 0);
    const int64_t begin = units * share / shares, end = units * (share + 1) / shares;
    block.pixels = (block.end - block.begin) * p.out[2];
    plan_ahead(plan, dy, first + cut.first(smaller(b + 2, cut.count)), end - begin, block);
    sum_block(plan, x, dy, block, begin, end, sums, scratch, b > 0);
  }
  if (bias) add_chains(channels, chains, bias_sums);
}

/// dw = sum of the parts, in order, from panels back to C order: one panel, kUnpackChannels input
/// channels from `channel` on, transposed in registers. Parts are added first, along memory.
template <class T>
static void unpack_panel(const WeightPlan<T>& plan, int64_t panel_index, int64_t channel, T* dw) {
  constexpr int kCount = kLanes<T>;
  const ConvParams& p = plan.p;
  const Panels<T> panels(p.group_out());
  const int64_t group = panel_index / panels.count, panel = panel_index % panels.count;
  const int64_t columns = panels.width(panel) * kCount, taps = p.taps(), channels = p.group_in();
  const int64_t last = smaller(channel + kUnpackChannels, channels), end = last * taps;
  T* from = plan.sums + (group * panels.padded() + panels.column(panel)) * plan.depth;
  T* to = dw + (group * p.group_out() + panels.column(panel)) * channels * taps;
  for (int64_t k = 0; k < taps; ++k)
    add_parts(from + (k * channels + channel) * columns, (last - channel) * columns,
              plan.columns * plan.depth, plan.rows.parts);
  for (int64_t j = 0; j < columns; j += kCount, to += kCount * channels * taps) {
    const int64_t live = smaller(kCount, panels.live(panel) - j);
    PanelRows<T> rows{from + channel * columns + j, taps, channels * columns, columns};
    for (int64_t i = channel * taps; i < end; i += kCount) {
      Vec<T> v[kCount];
      for (int r = 0; r < kCount; ++r) v[r] = i + r < end ? rows.next() : Vec<T>{};
      transpose<T>(v);
#pragma GCC unroll 16
      for (int o = 0; o < kCount; ++o)
        if (o < live) store_live(to + o * channels * taps + i, v[o], end - i);
    }
  }
}

template <class T>
static void sum_weights(Context ctx, const WeightPlan<T>& plan, const T* dy, const T* x, T* dw,
                        bool bias) {
  const ConvParams& p = plan.p;
  const double work = weight_work(p);
  const int64_t wanted = larger(
      1, int64_t(smaller(int64_t(work / kConvThreadWork), kItemsPerThread * int64_t(ctx.threads))));
  const int64_t shares =
      ctx.threads == 1 ? 1 : smaller(plan.units(), ceil_div(wanted, plan.rows.parts));
  const int64_t blocks = ceil_div(p.group_in(), kUnpackChannels);
  run_items(
      ctx, work, plan.rows.parts * shares, plan.panels * blocks,
      [&](int member, int64_t item) {
        sum_share(plan, x, dy, item / shares, item % shares, shares, bias,
                  plan.scratch + member * plan.scratch_elements);
      },
      [&](int64_t i) { unpack_panel(plan, i / blocks, i % blocks * kUnpackChannels, dw); });
}

template <class T>
void conv_backward_weight(Context ctx, const T* dy, const T* x, T* dw, T* db,
                          const ConvParams& params, const Slope<T>& slope) {
  if (params.batch == 0) {
    if (dw) zero_fill(dw, params.out_channels * params.group_in() * params.taps());
    if (db) zero_fill(db, params.out_channels);
    return;
  }
  Arena arena(ctx.workspace);
  if (is_narrow(params))
    return narrow_backward_weight(ctx, dy, x, dw, db, params, slope, arena.rest());
  if (slope.v) {
    const int64_t elements = params.batch * params.out_pixels() * params.out_channels;
    T* g = arena.take<T>(elements);
    activation_backward(ctx, dy, slope.v, g, elements, slope.activation);
    dy = g;
  }
  if (dw && is_product_weight(params)) {
    product_backward_weight(ctx, dy, x, dw, params, arena.rest());
    dw = nullptr;  // the bias is left
  }
  if (!dw || params.is_depthwise()) {
    const RowCut rows = cut_rows(params);
    T* sums = arena.take<T>(bias_elements(params, rows));
    if (db) backward_bias(ctx, params, rows, dy, sums, db);
    if (dw) depthwise_backward_weight(ctx, dy, x, dw, params, arena.rest());
    return;
  }
  WeightPlan<T> plan = plan_weight(arena, params, x, ctx.threads);
  if (plan.staged)
    fill_staged(ctx, plan.source, plan.staged, x, params.x_channels_last, params.batch,
                params.in_channels);
  sum_weights(ctx, plan, dy, x, dw, db != nullptr);
  if (db) add_bias_parts(params, plan.rows, plan.bias_sums, db);
}

template <class T>
size_t conv_backward_weight_workspace(const ConvParams& params, bool has_slope, int threads) {
  if (params.batch == 0) return 0;
  if (is_narrow(params)) return narrow_workspace<T>(params, threads);
  Arena arena(nullptr);
  if (has_slope) arena.take<T>(params.batch * params.out_pixels() * params.out_channels);
  if (params.is_depthwise()) {
    arena.take<T>(bias_elements(params, cut_rows(params)));
    return arena.used() + depthwise_workspace<T>(params, threads);
  }
  if (is_product_weight(params)) {
    Arena bias = arena;
    bias.take<T>(bias_elements(params, cut_rows(params)));
    const size_t product = arena.used() + product_weight_workspace<T>(params, threads);
    return product > bias.used() ? product : bias.used();
  }
  plan_weight<T>(arena, params, nullptr, threads);
  return arena.used();
}

BRASA_INSTANTIATE(conv_backward_weight, float, double)
BRASA_INSTANTIATE(conv_backward_weight_workspace, float, double)

}  // namespace brasa::cpu::BRASA_ISA
