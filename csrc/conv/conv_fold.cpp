#include "conv/conv_fold.h"

#include "conv/conv_project.h"
#include "conv/conv_stage.h"
#include "conv/conv_tile.h"
#include "core/order.h"

namespace brasa::cpu::BRASA_ISA {

/// Rows of taps, which are listed on the stack.
constexpr int64_t kMostRows = 64;
/// Pixels of dx that are summed together: their chains of additions overlap.
constexpr int kPixels = 4;

/// The columns of dy that pixels of dx ask for beyond the first and the last one.
struct Margins {
  int64_t before, after;

  explicit Margins(const ConvParams& p) : before(0), after(0) {
    for (int64_t r = 0; r < residues(p, 2); ++r) {
      const Axis axis = backward_axis(p, 2, r);
      if (!axis.taps) continue;
      before = larger(before, -axis.lowest());
      after = larger(after, axis.highest() - p.out[2] + 1);
    }
  }
};

bool is_folded(const ConvParams& p) {
  constexpr int64_t kLanesOfChoice = order::kConvNarrowLanes;
  if (!is_projected(p)) return false;
  const Margins margins(p);
  return p.kernel[1] * ceil_div(p.kernel[2] * p.in_channels, kLanesOfChoice) <=
             ceil_div(p.taps() * p.in_channels, kLanesOfChoice) &&
         margins.before + margins.after <= kMaxStagedGrowth * p.out[2];
}

template <class T> struct Fold {
  const ConvParams& p;
  Margins margins;
  Panels<T> panels;  ///< of the columns of z: taps of a row x channels
  int64_t depth;     ///< rows of a panel: rows of taps x outputs
  int64_t pitch;     ///< of a pixel of z
  T* packed;         ///< [panel][kh][output][panel's columns]
  T* zeros;
  Axis* axis;  ///< of the residues of dx's columns
  T* scratch;  ///< per thread: a row of z between its margins
  int64_t scratch_elements;

  Fold(Arena& arena, const ConvParams& params, int threads)
      : p(params),
        margins(params),
        panels(params.kernel[2] * params.in_channels),
        depth(params.kernel[1] * params.out_channels),
        pitch(panels.padded()),
        packed(arena.take<T>(depth * pitch)),
        zeros(arena.take<T>(pitch)),
        axis(arena.take<Axis>(residues(params, 2))),
        scratch(nullptr),
        // a vector may be read from the last pixel's last channels on
        scratch_elements((margins.before + params.out[2] + margins.after) * pitch + 16) {
    scratch = arena.take<T>(threads * scratch_elements);
  }
};

/// packed[panel][kh][o][column] of w[o][c][kh][kw], columns kw * channels + c.
template <class T> static void pack_rows(const Fold<T>& plan, const T* w) {
  const ConvParams& p = plan.p;
  zero_fill(plan.packed, plan.depth * plan.pitch);
  for (int64_t panel = 0; panel < plan.panels.count; ++panel) {
    const int64_t width = plan.panels.width(panel) * kLanes<T>, first = plan.panels.column(panel);
    for (int64_t i = 0; i < plan.panels.live(panel); ++i) {
      const int64_t c = (first + i) % p.in_channels, kw = (first + i) / p.in_channels;
      T* to = plan.packed + first * plan.depth + i;
      for (int64_t kh = 0; kh < p.kernel[1]; ++kh)
        for (int64_t o = 0; o < p.out_channels; ++o, to += width)
          *to = w[((o * p.in_channels + c) * p.kernel[1] + kh) * p.kernel[2] + kw];
    }
  }
}

/// z of row h of dx, from the image of dy.
template <class T> static void project_rows(const Fold<T>& plan, const T* dy, int64_t h, T* z) {
  const ConvParams& p = plan.p;
  Tap tap[kMostRows];
  LineInput<T> input{tap, 0, p.out_channels, p.out_channels, plan.pitch};
  for (int64_t kh = 0; kh < p.kernel[1]; ++kh) {
    const int64_t at = h + p.pad_begin[1] - kh * p.dilation[1];
    if (at < 0 || at % p.stride[1] || at / p.stride[1] >= p.out[1]) continue;
    tap[input.taps++] = {{}, at / p.stride[1] * p.out[2] * p.out_channels, kh * p.out_channels};
  }
  for (int64_t i = 0; i < plan.panels.count; ++i) {
    const T* w = plan.packed + plan.panels.column(i) * plan.depth;
    visit_width(plan.panels.width(i), [&]<int kVectors>() {
      const EvenCut cut(p.out[2], kConvLineRows<kVectors>);
      for (int64_t tile = 0; tile < cut.count; ++tile) {
        const int64_t first = cut.first(tile);
        pick_line_tile<T, kVectors>(cut.rows(tile))(
            input, dy + first * p.out_channels, w, plan.zeros,
            z + first * plan.pitch + plan.panels.column(i), kVectors * kLanes<T>);
      }
    });
  }
}

/// dx[i * step] = sum over taps of z, for kCount pixels.
template <class T, int kCount>
static void add_taps(const Fold<T>& plan, const Axis& axis, const T* z, T* dx) {
  const int64_t channels = plan.p.in_channels;
  const int64_t tap = axis.tap_step * plan.pitch + axis.kernel_step * channels;
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    Vec<T> sum[kCount] = {};
    for (int64_t j = 0; j < axis.taps; ++j)
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) sum[i] += load(z + i * plan.pitch + j * tap + c);
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i)
      store_live(dx + i * axis.out_step * channels + c, sum[i], channels - c);
  }
}

/// A row of dx from z.
template <class T> static void fold_row(const Fold<T>& plan, const T* z, T* dx) {
  const int64_t channels = plan.p.in_channels;
  for (int64_t r = 0; r < residues(plan.p, 2); ++r) {
    const Axis& axis = plan.axis[r];
    z += axis.in_first * plan.pitch + axis.kernel_first * channels;
    T* to = dx + axis.out_first * channels;
    const int64_t step = axis.out_step * channels;
    int64_t q = 0;
    for (; q + kPixels <= axis.count; q += kPixels)
      add_taps<T, kPixels>(plan, axis, z + q * plan.pitch, to + q * step);
    for (; q < axis.count; ++q) add_taps<T, 1>(plan, axis, z + q * plan.pitch, to + q * step);
    z -= axis.in_first * plan.pitch + axis.kernel_first * channels;
  }
}

template <class T>
void fold_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& p,
                         void* workspace) {
  constexpr int64_t kLeastWork = 256 * 1024;  // multiply-adds of a chunk
  Arena arena(workspace);
  const Fold<T> plan(arena, p, ctx.threads);
  zero_fill(plan.zeros, plan.pitch);
  zero_fill(plan.scratch, ctx.threads * plan.scratch_elements);
  pack_rows(plan, w);
  for (int64_t r = 0; r < residues(p, 2); ++r) plan.axis[r] = backward_axis(p, 2, r);
  const int64_t rows = p.batch * p.in[1];
  const int64_t row_work = larger(1, plan.depth * plan.pitch * p.out[2] / p.stride[1]);
  const EvenCut cut(rows, int(larger(1, smaller(kLeastWork / row_work, p.in[1]))));
  parallel_chunks(ctx, cut.count, [&](int member, int64_t chunk) {
    T* z = plan.scratch + member * plan.scratch_elements + plan.margins.before * plan.pitch;
    for (int64_t row = cut.first(chunk); row < cut.first(chunk + 1); ++row) {
      project_rows(plan, dy + row / p.in[1] * p.out_pixels() * p.out_channels, row % p.in[1], z);
      fold_row(plan, z, dx + row * p.in[2] * p.in_channels);
    }
  });
}

template <class T> size_t fold_workspace(const ConvParams& p, int threads) {
  Arena arena(nullptr);
  const Fold<T> plan(arena, p, threads);
  return arena.used();
}

BRASA_INSTANTIATE(fold_backward_input, float, double)
BRASA_INSTANTIATE(fold_workspace, float, double)

}  // namespace brasa::cpu::BRASA_ISA
