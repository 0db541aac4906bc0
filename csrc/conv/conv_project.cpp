#include "conv/conv_project.h"

#include "conv/conv_stage.h"
#include "conv/conv_tile.h"
#include "core/order.h"

namespace brasa::cpu::BRASA_ISA {

/// Pixels of dx that are summed together: their chains of additions overlap.
constexpr int kPixels = 4;
/// Rows of taps whose rows of z are listed at a time, on the stack.
constexpr int kMostRows = 64;
/// Bands per thread that dx is cut into; each band projects the rows at its upper edge anew.
constexpr int64_t kBandsPerThread = 4;

bool is_projected(const ConvParams& p) {
  return p.groups == 1 && p.in_channels <= order::kConvProjectedChannels && p.taps() > 1 &&
         p.kernel[0] == 1 && p.in[0] == 1 && p.out[0] == 1 && p.kernel[1] <= kMostRows;
}

template <class T> struct Projection {
  const ConvParams& p;
  int64_t columns;  ///< of z: taps x channels
  int64_t pitch;    ///< of a pixel of z
  int64_t ring;     ///< rows of z that are kept
  T* packed;        ///< [panel][output][panel's columns]
  T* zeros;
  Axis* axis;  ///< of the residues of dx's columns
  int64_t bands, band_rows;
  T* rings;
  int64_t ring_elements;
};

template <class T>
static Projection<T> plan_projection(Arena& arena, const ConvParams& p, int threads) {
  Projection<T> plan{p, p.taps() * p.in_channels, 0, 0, nullptr, nullptr, nullptr, 0, 0, nullptr,
                     0};
  const Panels<T> panels(plan.columns);
  plan.pitch = plan.columns;
  plan.ring = smaller((p.kernel[1] - 1) * p.dilation[1] / p.stride[1] + 2, p.out[1]);
  plan.ring_elements = plan.ring * p.out[2] * plan.pitch;
  plan.packed = arena.take<T>(p.out_channels * panels.padded());
  plan.zeros = arena.take<T>(panels.padded());
  plan.axis = arena.take<Axis>(residues(p, 2));
  // Bands: images where there are enough of them, else parts of images of at least a few rows.
  const int64_t wanted = threads > 1 ? kBandsPerThread * threads : 1;
  const int64_t per_image =
      larger(1, smaller(ceil_div(wanted, larger(1, p.batch)), p.in[1] / (8 * plan.ring) + 1));
  plan.band_rows = ceil_div(p.in[1], per_image);
  plan.bands = ceil_div(p.in[1], plan.band_rows);
  plan.rings = arena.take<T>(smaller(wanted, p.batch * plan.bands) * plan.ring_elements);
  return plan;
}

/// packed[panel][o][column] of w[o][c][k], columns k * channels + c.
template <class T> static void pack_projection(const Projection<T>& plan, const T* w) {
  const ConvParams& p = plan.p;
  const Panels<T> panels(plan.columns);
  T* to = plan.packed;
  for (int64_t panel = 0; panel < panels.count; ++panel)
    for (int64_t o = 0; o < p.out_channels; ++o)
      for (int64_t i = 0; i < panels.width(panel) * kLanes<T>; ++i, ++to) {
        const int64_t column = panels.column(panel) + i;
        const int64_t c = column % p.in_channels, k = column / p.in_channels;
        *to = column < plan.columns ? w[(o * p.in_channels + c) * p.taps() + k] : T(0);
      }
}

/// One row of z.
template <class T> static void project_row(const Projection<T>& plan, const T* dy, T* z) {
  const ConvParams& p = plan.p;
  const Panels<T> panels(plan.columns);
  const Tap origin{};
  const LineInput<T> input{&origin, 1, p.out_channels, p.out_channels, plan.pitch};
  for (int64_t i = 0; i < panels.count; ++i) {
    const T* w = plan.packed + panels.column(i) * p.out_channels;
    visit_width(panels.width(i), [&]<int kVectors>() {
      const EvenCut cut(p.out[2], kConvLineRows<kVectors>);
      for (int64_t tile = 0; tile < cut.count; ++tile) {
        const int64_t first = cut.first(tile);
        pick_line_tile<T, kVectors>(cut.rows(tile))(
            input, dy + first * p.out_channels, w, plan.zeros,
            z + first * plan.pitch + panels.column(i), panels.live(i));
      }
    });
  }
}

/// The rows of z that one row of dx adds up, each at the row of taps it meets.
template <class T> struct ProjectedRows {
  int64_t count;
  const T* z[kMostRows];
};

/// dx[i * step] = sum over rows and taps [first, last) of z, for kCount pixels i.
template <class T, int kCount>
static void add_taps(const Projection<T>& plan, const ProjectedRows<T>& rows, const Axis& axis,
                     int64_t q, int64_t first, int64_t last, T* dx) {
  const int64_t channels = plan.p.in_channels;
  const int64_t tap = axis.tap_step * plan.pitch + axis.kernel_step * channels;
  const int64_t at = (q + axis.in_first) * plan.pitch + axis.kernel_first * channels;
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    Vec<T> sum[kCount] = {};
    for (int64_t r = 0; r < rows.count; ++r) {
      const T* z = rows.z[r] + at + first * tap + c;
      for (int64_t j = first; j < last; ++j, z += tap)
#pragma GCC unroll 4
        for (int i = 0; i < kCount; ++i) sum[i] += load_live(z + i * plan.pitch, channels - c);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i)
      store_live(dx + i * axis.out_step * channels + c, sum[i], channels - c);
  }
}

/// The pixels of one residue in one row of dx.
template <class T>
static void add_row(const Projection<T>& plan, const ProjectedRows<T>& rows, const Axis& axis,
                    T* dx) {
  const int64_t width = plan.p.out[2], channels = plan.p.in_channels;
  for (int64_t q = 0; q < axis.count;) {
    T* to = dx + (axis.out_first + q * axis.out_step) * channels;
    const int64_t at = q + axis.in_first, end = at + (axis.taps - 1) * axis.tap_step;
    if (at >= 0 && end + kPixels <= width && q + kPixels <= axis.count) {
      add_taps<T, kPixels>(plan, rows, axis, q, 0, axis.taps, to);
      q += kPixels;
      continue;
    }
    const int64_t step = larger(1, axis.tap_step);
    const int64_t first = at >= 0 ? 0 : smaller(axis.taps, ceil_div(-at, step));
    const int64_t last = at >= width ? 0 : smaller(axis.taps, ceil_div(width - at, step));
    add_taps<T, 1>(plan, rows, axis, q, first, larger(first, last), to);
    ++q;
  }
}

/// Rows [begin, end) of one image of dx.
template <class T>
static void project_band(const Projection<T>& plan, const T* dy, int64_t begin, int64_t end,
                         T* ring, T* dx) {
  const ConvParams& p = plan.p;
  const int64_t z_row = p.out[2] * plan.pitch, dx_row = p.in[2] * p.in_channels;
  const int64_t reach = (p.kernel[1] - 1) * p.dilation[1], s = p.stride[1], pad = p.pad_begin[1];
  int64_t next = larger(0, begin + pad - reach) / s;  // the next row of z to be made
  for (int64_t h = begin; h < end; ++h) {
    for (; next < p.out[1] && next * s <= h + pad; ++next)
      project_row(plan, dy + next * p.out[2] * p.out_channels, ring + next % plan.ring * z_row);
    ProjectedRows<T> rows{};
    for (int64_t k = 0; k < p.kernel[1]; ++k) {
      const int64_t at = h + pad - k * p.dilation[1];
      if (at < 0 || at % s || at / s >= p.out[1]) continue;
      rows.z[rows.count++] = ring + at / s % plan.ring * z_row + k * p.kernel[2] * p.in_channels;
    }
    for (int64_t r = 0; r < residues(p, 2); ++r) add_row(plan, rows, plan.axis[r], dx + h * dx_row);
  }
}

template <class T>
void project_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& p,
                            void* workspace) {
  Arena arena(workspace);
  const Projection<T> plan = plan_projection<T>(arena, p, ctx.threads);
  zero_fill(plan.zeros, Panels<T>(plan.columns).padded());
  pack_projection(plan, w);
  for (int64_t r = 0; r < residues(p, 2); ++r) plan.axis[r] = backward_axis(p, 2, r);
  const int64_t units = p.batch * plan.bands;
  const int64_t shares = ctx.threads > 1 ? smaller(kBandsPerThread * ctx.threads, units) : 1;
  parallel_for(ctx, shares, 1, [&](int64_t from, int64_t to) {
    for (int64_t unit = units * from / shares; unit < units * to / shares; ++unit) {
      const int64_t n = unit / plan.bands, begin = unit % plan.bands * plan.band_rows;
      project_band(plan, dy + n * p.out_pixels() * p.out_channels, begin,
                   smaller(p.in[1], begin + plan.band_rows), plan.rings + from * plan.ring_elements,
                   dx + n * p.in_pixels() * p.in_channels);
    }
  });
}

template <class T> size_t project_workspace(const ConvParams& p, int threads) {
  Arena arena(nullptr);
  plan_projection<T>(arena, p, threads);
  return arena.used();
}

BRASA_INSTANTIATE(project_backward_input, float, double)
BRASA_INSTANTIATE(project_workspace, float, double)

}  // namespace brasa::cpu::BRASA_ISA
