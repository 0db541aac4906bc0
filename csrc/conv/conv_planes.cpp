#include "conv/conv_planes.h"

#include "conv/conv_finish.h"

namespace brasa::cpu::BRASA_ISA {

/// Pixels whose x a panel of weights meets in a row: they stay in L2 for all panels.
constexpr int64_t kPlanarBlock = 48;

/// Shorter lines make tiles too low, and short planes have a line of cache for every few elements:
/// 2048 -> 512 at 7x7 lost 15 %, 1024 -> 2048 with stride 2 to 7x7 40 %.
constexpr int64_t kLeastPlanarRow = 24, kLeastPlane = 64;

/// Pixels that follow one another at even steps.
static inline int64_t planar_line(const ConvParams& p) {
  const bool dense = p.stride[0] == 1 && p.stride[1] == 1 && p.stride[2] == 1;
  return dense ? p.out_pixels() : p.out[2];
}

bool is_planar(const ConvParams& p) {
  bool padded = false;
  for (int d = 0; d < 3; ++d) padded |= p.pad_begin[d] > 0 || p.pad_end[d] > 0;
  return !p.x_channels_last && p.groups == 1 && p.taps() == 1 && !padded &&
         planar_line(p) >= kLeastPlanarRow && p.in_pixels() >= kLeastPlane;
}

/// A line of pixels at even steps in x and out.
template <class T> struct PlanarLine {
  int64_t channels, plane, step, out_step;
  int64_t ahead;  ///< from a pixel to what is fetched meanwhile
};

template <class T, int kRows, int kVectors>
static __attribute__((noinline)) void planar_tile(const PlanarLine<T>& in, const T* x, const T* w,
                                                  const T* start, T* out, int64_t live) {
  constexpr int kWidth = kLanes<T>, kBases = (kRows + 2) / 3;
  Vec<T> sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      sum[i][j] = load(start + j * kWidth);
      __builtin_prefetch(out + i * in.out_step + j * kWidth, 1);
    }
  const int64_t step = in.step, plane = in.plane, ahead = in.ahead;
  // A pointer for every third pixel: the others are at steps from it that the addressing gives.
  const T* base[kBases];
#pragma GCC unroll 4
  for (int b = 0; b < kBases; ++b) base[b] = x + 3 * b * step;
  for (int64_t c = in.channels; c > 0; --c, w += kVectors * kWidth) {
    __builtin_prefetch(base[0] + ahead, 0, 2);
    Vec<T> weight[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) weight[j] = load(w + j * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec<T> value = broadcast(base[i / 3][i % 3 * step]);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sum[i][j] = fma(value, weight[j], sum[i][j]);
    }
#pragma GCC unroll 4
    for (int b = 0; b < kBases; ++b) base[b] += plane;
  }
  store_tile<T, kRows, kVectors>(sum, out, in.out_step, live);
}

template <class T>
using PlanarTile = void (*)(const PlanarLine<T>&, const T*, const T*, const T*, T*, int64_t);

template <class T, int kVectors, int kRows = kConvRows<kVectors>>
static PlanarTile<T> pick_planar_tile(int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return pick_planar_tile<T, kVectors, kRows - 1>(rows);
  }
  return &planar_tile<T, kRows, kVectors>;
}

template <class T> struct PlanarPlan {
  Panels<T> panels;
  PlanarLine<T> line;
  int64_t pixels, pieces;  ///< of a line
  int64_t blocks;          ///< pieces of all images' lines
  T* start;                ///< what each output channel's sum begins at
  PanelWeights<T> weights;

  PlanarPlan(Arena& arena, const ConvParams& p, int threads)
      : panels(p.out_channels),
        line{p.in_channels, p.in_pixels(), p.stride[2], p.out_channels, 0},
        pixels(planar_line(p)),
        pieces(ceil_div(pixels, kPlanarBlock)),
        blocks(p.batch * (p.out_pixels() / pixels) * pieces) {
    line.ahead = pieces > 1 ? kPlanarBlock * line.step : p.stride[1] * p.in[2];
    start = arena.take<T>(panels.padded());
    weights = plan_panels<T>(arena, 1, 1, p.in_channels, p.out_channels, p.packed_w, threads);
  }
};

/// A piece of a line.
template <class T> struct PlanarBlock {
  int64_t pixels;
  const T* x;
  T* out;

  PlanarBlock(const PlanarPlan<T>& plan, const ConvParams& p, const T* from, T* y, int64_t block) {
    const int64_t i = block / plan.pieces, piece = block % plan.pieces;
    const int64_t begin = plan.pixels * piece / plan.pieces;
    pixels = plan.pixels * (piece + 1) / plan.pieces - begin;
    const int64_t per_image = p.out_pixels() / plan.pixels, n = i / per_image, row = i % per_image;
    const int64_t d = row / p.out[1], h = row % p.out[1];  // 0 where a line is an image
    x = from + n * p.in_channels * p.in_pixels() +
        (d * p.stride[0] * p.in[1] + h * p.stride[1]) * p.in[2] + begin * plan.line.step;
    out = y + (i * plan.pixels + begin) * p.out_channels;
  }
};

template <class T>
static void run_planar(const PlanarPlan<T>& plan, const PlanarBlock<T>& block, PanelRange range,
                       const T* packed) {
  for (int64_t i = range.begin; i < range.end; ++i) {
    const int64_t column = plan.panels.column(i), live = plan.panels.live(i);
    const T* w = packed + (column - plan.panels.column(range.begin)) * plan.line.channels;
    visit_width(plan.panels.width(i), [&]<int kVectors>() {
      const EvenCut cut(block.pixels, kConvRows<kVectors>);
      for (int64_t t = 0; t < cut.count; ++t)
        pick_planar_tile<T, kVectors>(cut.rows(t))(
            plan.line, block.x + cut.first(t) * plan.line.step, w, plan.start + column,
            block.out + cut.first(t) * plan.line.out_step + column, live);
    });
  }
}

template <class T>
void planar_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                    const Epilogue<T>& epilogue) {
  Arena arena(ctx.workspace);
  PlanarPlan<T> plan(arena, p, ctx.threads);
  (p.packed_w ? plan.weights.kept : plan.weights.w) = w;
  for (int64_t o = 0; o < plan.panels.padded(); ++o)
    plan.start[o] = epilogue.bias && o < p.out_channels ? epilogue.bias[o] : T(0);
  Epilogue<T> rest = epilogue;
  rest.bias = nullptr;
  const RowEpilogue<T> finish(rest);
  const int64_t count = plan.panels.count, splits = splits_of(ctx, plan.weights, plan.blocks);
  parallel_chunks(ctx, plan.blocks * splits, [&](int member, int64_t item) {
    const int64_t split = item / plan.blocks;
    const PanelRange range{count * split / splits, count * (split + 1) / splits};
    const PlanarBlock<T> block(plan, p, x, y, item % plan.blocks);
    run_planar(plan, block, range, plan.weights.of(member, range));
    if (!rest.is_trivial())
      finish_channels(finish, y, block.out, p.out_channels, block.pixels,
                      plan.panels.column(range.begin),
                      smaller(p.out_channels, plan.panels.column(range.end)));
  });
}

template <class T> size_t planar_workspace(const ConvParams& p, int threads) {
  Arena arena(nullptr);
  PlanarPlan<T>(arena, p, threads);
  return arena.used();
}

BRASA_INSTANTIATE(planar_forward, float, double)
BRASA_INSTANTIATE(planar_workspace, float, double)

}  // namespace brasa::cpu::BRASA_ISA
