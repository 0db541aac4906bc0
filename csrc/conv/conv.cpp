// Forward and backward data: plan the gather in workspace, pack the weights, run blocks of pixels.
#include "conv/conv.h"

#include "conv/conv_blocks.h"
#include "conv/conv_cut.h"
#include "conv/conv_depthwise.h"
#include "conv/conv_fold.h"
#include "conv/conv_narrow.h"
#include "conv/conv_pack.h"
#include "conv/conv_planes.h"
#include "conv/conv_product.h"
#include "conv/conv_project.h"

namespace brasa::cpu::BRASA_ISA {

/// A direction of the convolution as a gather sees it.
struct Direction {
  bool backward;
  int64_t batch, in_channels, out_channels, groups;
  int64_t in[3], out[3];
  bool in_channels_last;

  Direction(const ConvParams& p, bool is_backward)
      : backward(is_backward),
        batch(p.batch),
        in_channels(is_backward ? p.out_channels : p.in_channels),
        out_channels(is_backward ? p.in_channels : p.out_channels),
        groups(p.groups),
        in_channels_last(is_backward || p.x_channels_last) {
    for (int d = 0; d < 3; ++d) {
      in[d] = is_backward ? p.out[d] : p.in[d];
      out[d] = is_backward ? p.in[d] : p.out[d];
    }
  }
};

static inline Axis axis_of(const ConvParams& p, bool backward, int d, int64_t residue) {
  return backward ? backward_axis(p, d, residue) : forward_axis(p, d);
}

/// Residues per axis; forward has one.
static inline void count_classes(const ConvParams& p, bool backward, int64_t* count) {
  for (int d = 0; d < 3; ++d) count[d] = backward ? residues(p, d) : 1;
}

/// What the gather asks for over all classes.
static Reach reach_of(const ConvParams& p, const Direction& direction) {
  Reach reach{};
  int64_t count[3];
  count_classes(p, direction.backward, count);
  for (int d = 0; d < 3; ++d)
    for (int64_t r = 0; r < count[d]; ++r) {
      const Axis axis = axis_of(p, direction.backward, d, r);
      if (!axis.taps) continue;
      reach.low[d] = smaller(reach.low[d], axis.lowest());
      reach.high[d] = larger(reach.high[d], axis.highest());
    }
  return reach;
}

/// The parts of all three axes, those of one residue after those of another.
struct AxisParts {
  int64_t count[3] = {}, taps[3] = {};  ///< over all parts
  AxisPart* part[3] = {};

  int64_t classes() const { return count[0] * count[1] * count[2]; }
  int64_t all_taps() const { return taps[0] * taps[1] * taps[2]; }
};

/// Kernels of more taps are not cut at borders, nor is what has its padding in memory.
constexpr int64_t kMostCutTaps = 128;

/// Whether less work is left where pixels are cut at borders: taps in padding are skipped, but
/// tiles may become low, and weights are read for each of the parts. 832 -> 128 of 5x5 on 7x7 falls
/// into 25 of two pixels each, which takes three times as long; 64 -> 64 of 3x3 on 4x4, 1.4 times.
/// Whole, it goes by the table, whose tiles are 1/16 slower.
static bool pays_to_cut(const ConvParams& p, const Direction& direction, int64_t panel_bytes) {
  AxisCut whole[3], cut[3];
  for (int d = 0; d < 3; ++d) {
    for (int64_t r = 0; r < (direction.backward ? residues(p, d) : 1); ++r) {
      AxisPart part[kMostAxisParts];
      const Axis axis = axis_of(p, direction.backward, d, r);
      whole[d].add(axis);
      part[0].axis = axis;
      const int64_t found = cut_axis(axis, direction.in[d], r, part);
      for (int64_t i = 0; i < found; ++i) cut[d].add(part[i].axis);
    }
    if (cut[d].count > AxisCut::kMost) return true;
  }
  const int64_t cost = cost_of_parts(whole, p.batch, panel_bytes);
  return cost_of_parts(cut, p.batch, panel_bytes) < cost + cost / 16;
}

static AxisParts cut_axes(Arena& arena, const ConvParams& p, const Direction& direction, bool cut) {
  AxisParts parts;
  for (int d = 0; d < 3; ++d) {
    const int64_t count = direction.backward ? residues(p, d) : 1;
    AxisPart* part = arena.take<AxisPart>(count * kMostAxisParts);
    parts.part[d] = part;
    AxisPart local[kMostAxisParts];
    for (int64_t r = 0; r < count; ++r) {
      const Axis axis = axis_of(p, direction.backward, d, r);
      local[0] = {axis, r, 0, axis.taps == 0};
      const int64_t found = cut ? cut_axis(axis, direction.in[d], r, local) : 1;
      for (int64_t i = 0; i < found; ++i) {
        parts.taps[d] += local[i].axis.taps;
        if (part) part[parts.count[d]] = local[i];
        ++parts.count[d];
      }
    }
  }
  return parts;
}

/// Lists at which rows of panels weights are packed, those of one combination of residues after
/// those of another, and returns where each begins in `begin`.
template <class T>
static void list_packed(Gather<T>& g, const ConvParams& p, bool backward, int64_t* begin) {
  int64_t count[3];
  count_classes(p, backward, count);
  int64_t row = 0;
  for (int64_t k = 0; k < p.taps(); ++k) g.weights.first_row[k] = -1;
  for (int64_t i = 0; i < count[0]; ++i)
    for (int64_t j = 0; j < count[1]; ++j)
      for (int64_t k = 0; k < count[2]; ++k) {
        const Axis axis[3] = {axis_of(p, backward, 0, i), axis_of(p, backward, 1, j),
                              axis_of(p, backward, 2, k)};
        *begin++ = row;
        row = list_rows(axis, p.kernel, g.group_in, row, g.weights.first_row);
      }
}

/// Fills in one class, its taps from `tap` on.
template <class T>
static void fill_class(GatherClass<T>& part, const Gather<T>& g, const ConvParams& p, bool backward,
                       const AxisPart* const* at, bool covers, Tap* tap) {
  int64_t first[3], whole[3];
  part.pixels = g.batch;
  part.inside = covers;
  bool inside = true;
  int64_t depth = g.group_in;
  for (int d = 0; d < 3; ++d) {
    part.axis[d] = at[d]->axis;
    part.pixels *= part.axis[d].count;
    inside &= at[d]->inside;
    first[d] = at[d]->tap_first;
    whole[d] = axis_of(p, backward, d, at[d]->residue).taps;
    depth *= whole[d];
  }
  part.inside |= inside;
  const Axis* a = part.axis;
  const bool merged = part.inside && g.groups == 1 && (a[2].taps == 1 || a[2].tap_step == 1);
  part.run = g.group_in * (merged ? a[2].taps : 1);
  part.taps = a[0].taps * a[1].taps * (merged ? smaller(a[2].taps, 1) : a[2].taps);
  part.tap = tap;
  list_taps(part, g.source, first, whole, g.group_in, merged);
  part.line = line_length(g, part, depth);
  part.block = g.block;
  part.blocks = count_blocks(part);
}

template <class T>
static void list_classes(Gather<T>& g, const ConvParams& p, bool backward, const AxisParts& parts,
                         const int64_t* first_row, Tap* tap) {
  int64_t count[3];
  count_classes(p, backward, count);
  for (int64_t i = 0; i < parts.classes(); ++i) {
    const AxisPart* at[3] = {parts.part[0] + i / (parts.count[1] * parts.count[2]),
                             parts.part[1] + i / parts.count[2] % parts.count[1],
                             parts.part[2] + i % parts.count[2]};
    GatherClass<T>& part = g.classes[i];
    fill_class(part, g, p, backward, at, g.source.covers, tap);
    part.first_row =
        first_row[(at[0]->residue * count[1] + at[1]->residue) * count[2] + at[2]->residue];
    part.first_block = g.blocks;
    g.blocks += part.blocks;
    tap += part.taps;
  }
}

/// Takes what the gather needs from `arena` and, where that has memory, fills it. `in` and `out`
/// may be null while it only counts.
template <class T>
static Gather<T> plan_gather(Arena& arena, const ConvParams& p, const Direction& direction,
                             const T* in, T* out, int threads) {
  Gather<T> g{};
  g.batch = p.batch;
  g.groups = p.groups;
  g.group_in = direction.in_channels / p.groups;
  g.group_out = direction.out_channels / p.groups;
  g.source = plan_source(arena, in, direction.in_channels_last, p.batch, direction.in_channels,
                         g.group_in, direction.in, reach_of(p, direction), g.staged, false);
  const int64_t panel = p.taps() * g.group_in * Panels<T>(g.group_out).width(0) * kVectorBytes<T>;
  const bool cut = !g.source.covers && p.taps() <= kMostCutTaps && pays_to_cut(p, direction, panel);
  const AxisParts parts = cut_axes(arena, p, direction, cut);
  g.class_count = parts.classes();
  int64_t count[3];
  count_classes(p, direction.backward, count);
  const int64_t columns = Panels<T>(g.group_out).padded() * p.groups;
  g.zeros = arena.take<T>(direction.in_channels);
  g.start = arena.take<T>(columns);
  g.classes = arena.take<GatherClass<T>>(g.class_count);
  Tap* tap = arena.take<Tap>(parts.all_taps());
  int64_t* begin = arena.take<int64_t>(count[0] * count[1] * count[2]);
  g.weights =
      plan_panels<T>(arena, p.taps(), p.groups, g.group_in, g.group_out, p.packed_w, threads);
  g.weights.first_row = arena.take<int64_t>(p.taps());
  const int64_t pixels = p.batch * direction.out[0] * direction.out[1] * direction.out[2];
  g.block = block_pixels(pixels, g.weights.splits, threads);
  g.out = out;
  g.out_step[2] = direction.out_channels;
  g.out_step[1] = direction.out[2] * g.out_step[2];
  g.out_step[0] = direction.out[1] * g.out_step[1];
  g.out_image = direction.out[0] * g.out_step[0];
  if (!g.classes) return g;
  list_packed(g, p, direction.backward, begin);
  list_classes(g, p, direction.backward, parts, begin, tap);
  return g;
}

/// Items per chunk: enough for a few microseconds of work.
template <class T> static int64_t item_grain(Context ctx, const Gather<T>& g, int64_t items) {
  constexpr int64_t kLeastWork = 256 * 1024;  // multiply-adds
  int64_t work = 0;
  for (int64_t k = 0; k < g.class_count; ++k) {
    const GatherClass<T>& part = g.classes[k];
    work += part.pixels * part.taps * part.run;
  }
  work = larger(1, work * g.groups * g.group_out / larger(1, items));
  return larger(1, smaller(kLeastWork / work, items / (8 * ctx.threads)));
}

/// The epilogue of `count` pixels from `first` on, `step` apart and just written, for these panels;
/// the bias is in them already.
template <class T>
static void finish_pixels(const Gather<T>& g, const RowEpilogue<T>& epilogue, T* first,
                          int64_t count, int64_t step, PanelRange range) {
  const Panels<T> panels(g.group_out);
  const int64_t channels = g.groups * g.group_out;
  if (range.end - range.begin == g.groups * panels.count) {
    const int64_t run = step == channels ? count : 1;
    for (int64_t r = 0; r < count; r += run, first += run * step)
      epilogue.apply(first, run * channels, 0, first - g.out);
    return;
  }
  for (int64_t i = range.begin; i < range.end; ++i) {
    const int64_t column = i / panels.count * g.group_out + panels.column(i % panels.count);
    for (int64_t r = 0; r < count; ++r) {
      T* row = first + r * step + column;
      epilogue.apply(row, panels.live(i % panels.count), column, row - g.out);
    }
  }
}

template <class T>
static void run_item(const Gather<T>& g, const GatherClass<T>& part, int64_t block,
                     const PackedRange<T>& from, const RowEpilogue<T>& epilogue) {
  const bool finish = !epilogue.epilogue.is_trivial();
  if (part.line) {
    const LineBlock<T> lines = place_lines(g, part, block);
    run_lines(g, part, lines, from);
    const int64_t step = line_step(part, g.out_step);
    for (int64_t i = 0; finish && i < lines.count; ++i)
      finish_pixels(g, epilogue, lines.out[i], lines.length[i], step, from.range);
    return;
  }
  PixelBlock<T> pixels;
  const int64_t begin = block * part.block;
  place_pixels(g, part, begin, smaller(part.block, part.pixels - begin), pixels);
  run_table(g, part, pixels, from);
  for (int64_t i = 0, next; finish && i < pixels.count; i = next) {
    for (next = i + 1; next < pixels.count; ++next)
      if (pixels.out[next] != pixels.out[next - 1] + g.out_step[2]) break;
    finish_pixels(g, epilogue, pixels.out[i], next - i, g.out_step[2], from.range);
  }
}

/// Work items: a split of the panels x a block of pixels, all blocks of a split in a row.
template <class T>
static void run_gather(Context ctx, const Gather<T>& g, const RowEpilogue<T>& epilogue) {
  const int64_t splits = splits_of(ctx, g.weights, g.blocks), panels = g.weights.count(),
                items = splits * g.blocks, grain = item_grain(ctx, g, items);
  parallel_chunks(ctx, ceil_div(items, grain), [&](int member, int64_t chunk) {
    const int64_t end = smaller(items, (chunk + 1) * grain);
    for (int64_t item = chunk * grain, k = 0; item < end; ++item) {
      const int64_t split = item / g.blocks, block = item % g.blocks;
      if (block == 0) k = 0;
      while (k + 1 < g.class_count && block >= g.classes[k + 1].first_block) ++k;
      const PanelRange range{panels * split / splits, panels * (split + 1) / splits};
      run_item(g, g.classes[k], block - g.classes[k].first_block,
               {range, g.weights.of(member, range)}, epilogue);
    }
  });
}

/// start[group][padded columns] = bias, zeros where there is none.
template <class T> static void spread_bias(const Gather<T>& g, const T* bias) {
  const int64_t columns = Panels<T>(g.group_out).padded();
  for (int64_t group = 0; group < g.groups; ++group)
    for (int64_t o = 0; o < columns; ++o)
      g.start[group * columns + o] = bias && o < g.group_out ? bias[group * g.group_out + o] : T(0);
}

template <class T>
static void convolve(Context ctx, const T* in, const T* w, T* out, const ConvParams& p,
                     bool backward, Arena& arena, const Epilogue<T>& epilogue) {
  const Direction direction(p, backward);
  Gather<T> g = plan_gather(arena, p, direction, in, out, ctx.threads);
  (p.packed_w ? g.weights.kept : g.weights.w) = w;
  g.weights.backward = backward;
  zero_fill(g.zeros, direction.in_channels);
  spread_bias(g, epilogue.bias);
  if (g.staged)
    fill_staged(ctx, g.source, g.staged, in, direction.in_channels_last, p.batch,
                direction.in_channels);
  Epilogue<T> rest = epilogue;
  rest.bias = nullptr;
  run_gather(ctx, g, RowEpilogue<T>(rest));
}

/// Where in packed weights those of this algorithm begin.
template <class T> static int64_t packed_form(const ConvParams& p) {
  const PackedForms forms = packed_forms<T>(p);
  if (p.is_depthwise() || is_narrow(p)) return forms.plain;
  return !is_planar(p) && is_product_forward(p) ? forms.product : forms.panels;
}

template <class T>
void conv_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& params,
                  const Epilogue<T>& epilogue) {
  if (params.batch == 0) return;
  if (params.packed_w) w += packed_form<T>(params);
  if (params.is_depthwise()) return depthwise_forward(ctx, x, w, y, params, epilogue);
  if (is_narrow(params)) return narrow_forward(ctx, x, w, y, params, epilogue);
  if (is_planar(params)) return planar_forward(ctx, x, w, y, params, epilogue);
  if (is_product_forward(params)) return product_forward(ctx, x, w, y, params, epilogue);
  Arena arena(ctx.workspace);
  convolve(ctx, x, w, y, params, false, arena, epilogue);
}

template <class T> size_t conv_forward_workspace(const ConvParams& params, int threads) {
  if (params.is_depthwise()) return depthwise_workspace<T>(params, threads);
  if (is_narrow(params)) return narrow_forward_workspace<T>(params, threads);
  if (is_planar(params)) return planar_workspace<T>(params, threads);
  if (is_product_forward(params)) return product_forward_workspace<T>(params, threads);
  Arena arena(nullptr);
  plan_gather<T>(arena, params, Direction(params, false), nullptr, nullptr, threads);
  return arena.used();
}

template <class T>
void conv_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& params) {
  if (params.batch == 0) return;
  if (params.is_depthwise()) return depthwise_backward_input(ctx, dy, w, dx, params);
  Arena arena(ctx.workspace);
  T* out = params.x_channels_last
               ? dx
               : arena.take<T>(params.batch * params.in_channels * params.in_pixels());
  if (is_folded(params))
    fold_backward_input(ctx, dy, w, out, params, arena.rest());
  else if (is_projected(params))
    project_backward_input(ctx, dy, w, out, params, arena.rest());
  else if (is_product_input(params))
    product_backward_input(ctx, dy, w, out, params, arena.rest());
  else
    convolve(ctx, dy, w, out, params, true, arena, Epilogue<T>{});
  if (out != dx) separate_channels(ctx, out, dx, params.batch, params.in_channels, params.in);
}

template <class T> size_t conv_backward_input_workspace(const ConvParams& params, int threads) {
  if (params.is_depthwise()) return depthwise_workspace<T>(params, threads);
  Arena arena(nullptr);
  if (!params.x_channels_last)
    arena.take<T>(params.batch * params.in_channels * params.in_pixels());
  if (is_folded(params)) return arena.used() + fold_workspace<T>(params, threads);
  if (is_projected(params)) return arena.used() + project_workspace<T>(params, threads);
  if (is_product_input(params)) return arena.used() + product_input_workspace<T>(params, threads);
  plan_gather<T>(arena, params, Direction(params, true), nullptr, nullptr, threads);
  return arena.used();
}

BRASA_INSTANTIATE(conv_forward, float, double)
BRASA_INSTANTIATE(conv_forward_workspace, float, double)
BRASA_INSTANTIATE(conv_backward_input, float, double)
BRASA_INSTANTIATE(conv_backward_input_workspace, float, double)

}  // namespace brasa::cpu::BRASA_ISA
