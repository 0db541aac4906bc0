#include "conv/conv_join.h"
#include "conv/conv_narrow.h"
#include "core/order.h"

namespace brasa::cpu::BRASA_ISA {

/// Vectors of pixels in a tile: with 32 registers 8 outputs x 2 sums and 2 of x, with 16 half.
constexpr int kPixelVectors = kConvVectors == 4 ? 2 : 1;

/// Where the taps are read, their weights, and what the sums begin at.
template <class T> struct NarrowTaps {
  int64_t count;
  int64_t offset[order::kConvNarrowTaps];
  T weight[order::kConvNarrowTaps * order::kConvNarrowOutputs];  ///< [tap][output]
  T start[order::kConvNarrowOutputs];

  NarrowTaps(const ConvParams& p, int64_t pitch, const T* w, const T* bias) : count(p.taps()) {
    const int64_t outputs = p.out_channels;
    for (int64_t t = 0; t < count; ++t) {
      offset[t] = t / p.kernel[2] * p.dilation[1] * pitch + t % p.kernel[2] * p.dilation[2];
      for (int64_t o = 0; o < outputs; ++o) weight[t * outputs + o] = w[o * count + t];
    }
    for (int64_t o = 0; o < outputs; ++o) start[o] = bias ? bias[o] : T(0);
  }
};

/// One row of y: x is where its first pixel's first tap lies. Vectors may read beyond the row.
template <class T, int kOutputs>
static void narrow_row(const NarrowTaps<T>& taps, const T* x, int64_t width, T* y) {
  constexpr int kWidth = kLanes<T>, kStep = kPixelVectors * kWidth;
  for (int64_t q = 0; q < width; q += kStep) {
    Vec<T> sum[kPixelVectors][kOutputs];
#pragma GCC unroll 2
    for (int v = 0; v < kPixelVectors; ++v)
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o) sum[v][o] = broadcast(taps.start[o]);
    for (int64_t t = 0; t < taps.count; ++t) {
      const T* const weight = taps.weight + t * kOutputs;
      Vec<T> value[kPixelVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kPixelVectors; ++v) value[v] = load(x + taps.offset[t] + q + v * kWidth);
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o) {
        const Vec<T> factor = broadcast(weight[o]);
#pragma GCC unroll 2
        for (int v = 0; v < kPixelVectors; ++v) sum[v][o] = fma(value[v], factor, sum[v][o]);
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < kPixelVectors; ++v) {
      const int64_t first = q + v * kWidth;
      if (first < width) join_outputs<T, kOutputs>(sum[v], width - first, y + first * kOutputs);
    }
  }
}

template <class T> using NarrowRow = void (*)(const NarrowTaps<T>&, const T*, int64_t, T*);

template <class T, int kOutputs = int(order::kConvNarrowOutputs)>
static NarrowRow<T> pick_row(int64_t outputs) {
  if constexpr (kOutputs > 1) {
    if (outputs < kOutputs) return pick_row<T, kOutputs - 1>(outputs);
  }
  return &narrow_row<T, kOutputs>;
}

template <class T> struct NarrowForwardPlan {
  RowCut rows;
  Axis axis[3];
  BlockStage stage;
  int64_t staged_elements;
  T* staged;  ///< per thread

  NarrowForwardPlan(Arena& arena, const ConvParams& p, int threads)
      : rows(p, order::kConvNarrowBlockElements),
        axis{forward_axis(p, 0), forward_axis(p, 1), forward_axis(p, 2)},
        stage(p, axis, rows.per_block, true),
        staged_elements(stage.elements + kPixelVectors * kLanes<T>),
        staged(arena.take<T>(threads * staged_elements)) {}
};

template <class T>
void narrow_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                    const Epilogue<T>& epilogue) {
  Arena arena(ctx.workspace);
  const NarrowForwardPlan<T> plan(arena, p, ctx.threads);
  const NarrowTaps<T> taps(p, plan.stage.pitch, w, epilogue.bias);
  Epilogue<T> rest = epilogue;
  rest.bias = nullptr;
  const RowEpilogue<T> finish(rest);
  const NarrowRow<T> run_row = pick_row<T>(p.out_channels);
  const EvenCut blocks(plan.rows.rows, int(plan.rows.per_block));
  const int64_t row_elements = p.out[2] * p.out_channels;
  parallel_chunks(ctx, blocks.count, [&](int member, int64_t block) {
    const int64_t begin = blocks.first(block), end = blocks.first(block + 1);
    Segment<T> row[order::kConvBlockRows];
    stage_block(p, plan.stage, plan.axis, x, begin, end,
                plan.staged + member * plan.staged_elements, row);
    for (int64_t r = begin; r < end; ++r)
      run_row(taps, row[r - begin].x, p.out[2], y + r * row_elements);
    if (!rest.is_trivial())
      finish.apply(y + begin * row_elements, (end - begin) * row_elements, 0, begin * row_elements);
  });
}

template <class T> size_t narrow_forward_workspace(const ConvParams& p, int threads) {
  Arena arena(nullptr);
  const NarrowForwardPlan<T> plan(arena, p, threads);
  return arena.used();
}

BRASA_INSTANTIATE(narrow_forward, float, double)
BRASA_INSTANTIATE(narrow_forward_workspace, float, double)

}  // namespace brasa::cpu::BRASA_ISA
