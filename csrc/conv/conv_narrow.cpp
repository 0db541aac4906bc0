#include "conv/conv_narrow.h"

#include "activation/activation.h"
#include "core/order.h"

namespace brasa::cpu::BRASA_ISA {

constexpr int64_t kVirtual = order::kConvNarrowLanes;
/// A tile: with 32 registers 8 x 3 sums, 3 of dy and one of x; with 16, 4 x 2.
constexpr int kTileTaps = kConvVectors == 4 ? 8 : 4, kTileOutputs = kConvVectors == 4 ? 3 : 2;

/// Rows that dy is multiplied by the slope of before they are split, from L1.
constexpr int64_t kSlopeRows = 8;

bool is_narrow(const ConvParams& p) {
  if (p.in_channels != 1 || p.out_channels > order::kConvNarrowOutputs || p.taps() == 1 ||
      p.taps() > order::kConvNarrowTaps || p.stride[2] != 1 || p.out[2] < order::kConvNarrowWidth ||
      p.in[0] != 1 || p.kernel[0] != 1 || p.out[0] != 1)
    return false;
  const double padded = double(p.in[1] + p.pad_begin[1] + p.pad_end[1]) *
                        double(p.in[2] + p.pad_begin[2] + p.pad_end[2]);
  return padded <= double(kMaxStagedGrowth) * double(p.in[1]) * double(p.in[2]);
}

template <class T> struct NarrowPlan {
  const ConvParams& p;
  RowCut rows;
  Axis axis[3];
  int64_t reach, x_pitch, x_elements;
  int64_t row_pitch, plane;  ///< of dy's planes
  T* lanes;                  ///< [part][tile][tap][output][virtual lane]
  T* bias_lanes;             ///< [part][output][virtual lane]
  T* scratch;                ///< per thread: rows of x, planes of dy, dy times the slope

  NarrowPlan(Arena& arena, const ConvParams& params, int threads)
      : p(params),
        rows(params, order::kConvNarrowBlockElements),
        axis{forward_axis(params, 0), forward_axis(params, 1), forward_axis(params, 2)} {
    row_pitch = ceil_div(p.out[2], kVirtual) * kVirtual;
    plane = rows.per_block * row_pitch;
    const BlockStage stage = this->stage();
    x_elements = ceil_div(stage.elements, kVirtual) * kVirtual;
    lanes = arena.take<T>(rows.parts * p.taps() * p.out_channels * kVirtual);
    bias_lanes = arena.take<T>(rows.parts * p.out_channels * kVirtual);
    scratch = arena.take<T>(threads * scratch_elements());
  }
  BlockStage stage() const { return BlockStage(p, axis, rows.per_block, true); }
  int64_t row_elements() const { return p.out[2] * p.out_channels; }
  int64_t scratch_elements() const {
    return x_elements + plane * p.out_channels +
           ceil_div(kSlopeRows * row_elements(), kVirtual) * kVirtual;
  }
};

/// load_live() for at least one element. With masks the masked form serves for all: it stays one
/// load, where a plain one is folded into every fma() that uses it.
template <class T> BRASA_INLINE Vec<T> load_up_to(const T* p, int64_t live) {
  if constexpr (kVectorBytes<T> == 64) return load_partial(p, smaller(live, kLanes<T>));
  return load_live(p, live);
}

/// lanes[tap][output][virtual lane], one tile's, += x[tap + q] dy[output][q] over the rows of a
/// block.
template <class T, int kTaps, int kOutputs>
static void narrow_tile(const Segment<T>* row, int64_t rows, const int64_t* tap, const T* planes,
                        int64_t plane, int64_t row_pitch, T* lanes) {
  for (int64_t lane = 0; lane < kVirtual; lane += kLanes<T>) {
    Vec<T> sum[kTaps][kOutputs];
#pragma GCC unroll 8
    for (int k = 0; k < kTaps; ++k)
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o)
        sum[k][o] = load(lanes + (k * kOutputs + o) * kVirtual + lane);
    for (int64_t r = 0; r < rows; ++r, planes += row_pitch) {
      const int64_t width = row[r].count;
      for (int64_t q = lane; q < width; q += kVirtual) {
        Vec<T> gradient[kOutputs];
#pragma GCC unroll 4
        for (int o = 0; o < kOutputs; ++o) gradient[o] = load(planes + o * plane + q);
#pragma GCC unroll 8
        for (int k = 0; k < kTaps; ++k) {
          const Vec<T> value = load_up_to(row[r].x + tap[k] + q, width - q);
#pragma GCC unroll 4
          for (int o = 0; o < kOutputs; ++o) sum[k][o] = fma(value, gradient[o], sum[k][o]);
        }
      }
    }
    planes -= rows * row_pitch;
#pragma GCC unroll 8
    for (int k = 0; k < kTaps; ++k)
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o)
        store(lanes + (k * kOutputs + o) * kVirtual + lane, sum[k][o]);
  }
}

template <class T>
using NarrowTile = void (*)(const Segment<T>*, int64_t, const int64_t*, const T*, int64_t, int64_t,
                            T*);

template <class T, int kTaps = kTileTaps, int kOutputs = kTileOutputs>
static NarrowTile<T> pick_tile(int taps, int outputs) {
  if constexpr (kTaps > 1) {
    if (taps < kTaps) return pick_tile<T, kTaps - 1, kOutputs>(taps, outputs);
  }
  if constexpr (kOutputs > 1) {
    if (outputs < kOutputs) return pick_tile<T, kTaps, kOutputs - 1>(taps, outputs);
  }
  return &narrow_tile<T, kTaps, kOutputs>;
}

/// Calls f(taps, first tap, outputs, first output, lanes) for each tile of sums, in memory order.
template <class T, class F> static void for_each_tile(const ConvParams& p, T* lanes, const F& f) {
  const EvenCut taps(p.taps(), kTileTaps), outputs(p.out_channels, kTileOutputs);
  for (int64_t t = 0; t < taps.count; ++t)
    for (int64_t i = 0; i < outputs.count; ++i) {
      f(taps.rows(t), taps.first(t), outputs.rows(i), outputs.first(i), lanes);
      lanes += taps.rows(t) * outputs.rows(i) * kVirtual;
    }
}

/// All taps over one block whose x is staged and whose dy is in planes.
template <class T>
static void sum_taps(const NarrowPlan<T>& plan, const Segment<T>* row, int64_t rows,
                     int64_t x_pitch, const T* planes, T* sums) {
  const ConvParams& p = plan.p;
  int64_t tap[order::kConvNarrowTaps];
  for (int64_t i = 0; i < p.taps(); ++i)
    tap[i] = i / p.kernel[2] * p.dilation[1] * x_pitch + i % p.kernel[2] * p.dilation[2];
  for_each_tile(p, sums, [&](int taps, int64_t t, int outputs, int64_t o, T* lanes) {
    pick_tile<T>(taps, outputs)(row, rows, tap + t, planes + o * plan.plane, plan.plane,
                                plan.row_pitch, lanes);
  });
}

#if defined(__AVX512F__)
/// planes[output][q] = dy[q][output] for q < width, zeros up to a multiple of 16. 16 pixels are
/// kOutputs vectors; an output's elements are picked from two of them at a time.
template <int kOutputs>
static void split_by_permutes(const float* dy, int64_t width, float* planes, int64_t plane) {
  constexpr int kPairs = (kOutputs + 1) / 2;
  __m512i at[kOutputs];
  __mmask16 in_pair[kOutputs][kPairs];
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o) {
    at[o] =
        (__m512i)(IntVec<float>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} * kOutputs +
                  o);
#pragma GCC unroll 4
    for (int i = 0; i < kPairs; ++i)
      in_pair[o][i] = _mm512_cmpeq_epi32_mask(_mm512_srli_epi32(at[o], 5), _mm512_set1_epi32(i));
  }
  for (int64_t q = 0; q < width; q += 16, dy += 16 * kOutputs) {
    const int64_t live = smaller(16, width - q) * kOutputs;
    __m512 in[2 * kPairs];
#pragma GCC unroll 8
    for (int v = 0; v < 2 * kPairs; ++v) in[v] = (__m512)load_live(dy + v * 16, live - v * 16);
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o) {
      __m512 out = _mm512_permutex2var_ps(in[0], at[o], in[1]);
#pragma GCC unroll 4
      for (int i = 1; i < kPairs; ++i)
        out = _mm512_mask_blend_ps(in_pair[o][i], out,
                                   _mm512_permutex2var_ps(in[2 * i], at[o], in[2 * i + 1]));
      _mm512_storeu_ps(planes + o * plane + q, out);
    }
  }
}

template <int kOutputs = int(order::kConvNarrowOutputs)>
static void split_row(const float* dy, int64_t outputs, int64_t width, float* planes,
                      int64_t plane) {
  if constexpr (kOutputs > 1) {
    if (outputs < kOutputs) return split_row<kOutputs - 1>(dy, outputs, width, planes, plane);
  }
  split_by_permutes<kOutputs>(dy, width, planes, plane);
}
#endif

/// The same at any width of vectors; the zeros are there already.
template <class T>
static void split_row(const T* dy, int64_t outputs, int64_t width, T* planes, int64_t plane) {
  separate_row(dy, plane, outputs, width, planes);
}

/// lanes[output][virtual lane] += the rows of the planes, in four chains that do not wait for one
/// another.
template <class T>
static void sum_planes(const NarrowPlan<T>& plan, const T* planes, int64_t rows, T* lanes) {
  constexpr int kChains = 4;
  const int64_t end = rows * plan.row_pitch;
  for (int64_t o = 0; o < plan.p.out_channels; ++o, planes += plan.plane, lanes += kVirtual)
    for (int64_t lane = 0; lane < kVirtual; lane += kLanes<T>) {
      Vec<T> sum[kChains] = {};
      int64_t q = lane;
      for (; q + (kChains - 1) * kVirtual < end; q += kChains * kVirtual)
#pragma GCC unroll 4
        for (int i = 0; i < kChains; ++i) sum[i] += load(planes + q + i * kVirtual);
      for (; q < end; q += kVirtual) sum[0] += load(planes + q);
      store(lanes + lane, load(lanes + lane) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
    }
}

/// What all parts read and which sums are wanted.
template <class T> struct NarrowTask {
  const T* dy;
  const T* x;
  Slope<T> slope;
  bool weight, bias;
};

/// planes[output][row][q] of rows of dy, times the slope, through `gradient`; what follows up to
/// the row's pitch stays zero.
template <class T>
static void split_rows(const NarrowPlan<T>& plan, const NarrowTask<T>& task, Context ctx,
                       int64_t begin, int64_t rows, T* gradient, T* planes) {
  const int64_t elements = plan.row_elements();
  const T* dy = task.dy + begin * elements;
  if (task.slope.v) {
    activation_backward(ctx, dy, task.slope.v + begin * elements, gradient, rows * elements,
                        task.slope.activation);
    dy = gradient;
  }
  for (int64_t row = 0; row < rows; ++row, planes += plan.row_pitch, dy += elements)
    split_row(dy, plan.p.out_channels, plan.p.out[2], planes, plan.plane);
}

template <class T>
static void sum_part(const NarrowPlan<T>& plan, const NarrowTask<T>& task, Context ctx,
                     int64_t part, T* scratch) {
  const ConvParams& p = plan.p;
  const BlockStage stage = plan.stage();
  const int64_t first = plan.rows.first(part), sums = p.taps() * p.out_channels;
  const EvenCut cut(plan.rows.first(part + 1) - first, int(plan.rows.per_block));
  T* planes = scratch + plan.x_elements;
  T* gradient = planes + plan.plane * p.out_channels;
  T* lanes = plan.lanes + part * sums * kVirtual;
  T* bias_lanes = plan.bias_lanes + part * p.out_channels * kVirtual;
  zero_fill(lanes, sums * kVirtual);
  zero_fill(bias_lanes, p.out_channels * kVirtual);
  zero_fill(planes, plan.plane * p.out_channels);
  Segment<T> row[order::kConvBlockRows];
  ctx.threads = 1;
  for (int64_t b = 0; b < cut.count; ++b) {
    const int64_t begin = first + cut.first(b), end = first + cut.first(b + 1), rows = end - begin;
    for (int64_t r = 0; r < rows; r += kSlopeRows)
      split_rows(plan, task, ctx, begin + r, smaller(kSlopeRows, rows - r), gradient,
                 planes + r * plan.row_pitch);
    if (task.bias) sum_planes(plan, planes, rows, bias_lanes);
    if (!task.weight) continue;
    stage_block(p, stage, plan.axis, task.x, begin, end, scratch, row);
    for (int64_t r = 0; r < rows; ++r) row[r].count = p.out[2];
    sum_taps(plan, row, rows, stage.pitch, planes, lanes);
  }
}

/// The sum over parts, `step` apart, and lanes.
template <class T> static T sum_lanes(const T* lanes, int64_t parts, int64_t step) {
  LaneSum<T> sum;
  for (int64_t part = 0; part < parts; ++part)
    sum.add_mapped(lanes + part * step, [](Vec<T> v, int) { return v; });
  return sum.total();
}

template <class T>
void narrow_backward_weight(Context ctx, const T* dy, const T* x, T* dw, T* db, const ConvParams& p,
                            const Slope<T>& slope, void* workspace) {
  Arena arena(workspace);
  const NarrowPlan<T> plan(arena, p, ctx.threads);
  const NarrowTask<T> task{dy, x, slope, dw != nullptr, db != nullptr};
  run_items(
      ctx, weight_work(p), plan.rows.parts, 0,
      [&](int member, int64_t part) {
        sum_part(plan, task, ctx, part, plan.scratch + member * plan.scratch_elements());
      },
      [](int64_t) {});
  const int64_t parts = plan.rows.parts, outputs = p.out_channels;
  for (int64_t o = 0; db && o < outputs; ++o)
    db[o] = sum_lanes(plan.bias_lanes + o * kVirtual, parts, outputs * kVirtual);
  if (!dw) return;
  for_each_tile(p, plan.lanes, [&](int taps, int64_t t, int count, int64_t o, const T* lanes) {
    for (int64_t i = 0; i < taps * count; ++i, lanes += kVirtual)
      dw[(o + i % count) * p.taps() + t + i / count] =
          sum_lanes(lanes, parts, p.taps() * outputs * kVirtual);
  });
}

template <class T> size_t narrow_workspace(const ConvParams& p, int threads) {
  Arena arena(nullptr);
  const NarrowPlan<T> plan(arena, p, threads);
  return arena.used();
}

BRASA_INSTANTIATE(narrow_backward_weight, float, double)
BRASA_INSTANTIATE(narrow_workspace, float, double)

}  // namespace brasa::cpu::BRASA_ISA
