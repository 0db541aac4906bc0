#include "conv/conv_depthwise.h"

namespace brasa::cpu::BRASA_ISA {

/// Pixels that share a weight: 4 sums and 4 loads per weight keep the load ports, not latency, the
/// limit.
constexpr int kPixels = 4;
/// Rows of taps whose pointers are kept at a time.
constexpr int kRowsOfTaps = 16;

/// packed[tap][channel] of one class, its taps in the order of the axes.
template <class T>
static void pack_taps(const Axis* axis, const T* w, const ConvParams& p, T* packed) {
  for (int64_t d = 0; d < axis[0].taps; ++d)
    for (int64_t h = 0; h < axis[1].taps; ++h)
      for (int64_t k = 0; k < axis[2].taps; ++k, packed += p.in_channels) {
        const int64_t at[3] = {axis[0].kernel_first + d * axis[0].kernel_step,
                               axis[1].kernel_first + h * axis[1].kernel_step,
                               axis[2].kernel_first + k * axis[2].kernel_step};
        const T* from = w + (at[0] * p.kernel[1] + at[1]) * p.kernel[2] + at[2];
        for (int64_t c = 0; c < p.in_channels; ++c) packed[c] = from[c * p.taps()];
      }
}

/// The rows of taps that one row of pixels meets: where they are read, relative to pixel 0 of the
/// row, and their weights.
template <class T> struct TapRows {
  int64_t count;
  const T* x[kRowsOfTaps];
  const T* w[kRowsOfTaps];
};

/// What is the same for all pixels of a gather over one class.
template <class T> struct DepthwiseGather {
  Axis axis[3];
  Source<T> source;
  const T* w;
  const T* start;  ///< per channel, or null
  T* out;
  int64_t channels, out_image, out_step[3];
};

/// kPixelCount pixels, channels from `channel` on: taps [first, last) along the row.
template <class T, int kPixelCount>
static void sum_pixels(const DepthwiseGather<T>& g, const TapRows<T>& rows, int64_t channel,
                       int64_t q, int64_t first, int64_t last, T* out, bool resume) {
  const Axis& axis = g.axis[2];
  const int64_t pixel = axis.in_step * g.channels, tap = axis.tap_step * g.channels;
  const int64_t at = (q * axis.in_step + axis.in_first) * g.channels;
  const int64_t out_pixel = axis.out_step * g.out_step[2];
  for (int64_t c = channel; c < g.channels; c += kLanes<T>) {
    const int64_t live = g.channels - c;
    Vec<T> sum[kPixelCount];
#pragma GCC unroll 4
    for (int i = 0; i < kPixelCount; ++i)
      sum[i] = resume    ? load_live(out + i * out_pixel + c, live)
               : g.start ? load_live(g.start + c, live)
                         : Vec<T>{};
    for (int64_t r = 0; r < rows.count; ++r) {
      const T* x = rows.x[r] + at + first * tap + c;
      const T* w = rows.w[r] + first * g.channels + c;
      for (int64_t k = first; k < last; ++k, x += tap, w += g.channels) {
        const Vec<T> weight = load_live(w, live);
#pragma GCC unroll 4
        for (int i = 0; i < kPixelCount; ++i)
          sum[i] = fma(load_live(x + i * pixel, live), weight, sum[i]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kPixelCount; ++i) store_live(out + i * out_pixel + c, sum[i], live);
  }
}

/// The same for all taps of neighbouring pixels, whole vectors of channels: an element of x is
/// loaded once for all the taps it meets.
template <class T, int kPixelCount, int kRowTaps, int kStep>
static void sum_window(const DepthwiseGather<T>& g, const TapRows<T>& rows, int64_t q, T* out) {
  constexpr int kReads = (kPixelCount - 1) * kStep + kRowTaps;
  const int64_t channels = g.channels, out_pixel = g.axis[2].out_step * g.out_step[2];
  const int64_t at = (q * kStep + g.axis[2].in_first) * channels;
  for (int64_t c = 0; c + kLanes<T> <= channels; c += kLanes<T>) {
    Vec<T> sum[kPixelCount];
#pragma GCC unroll 4
    for (int i = 0; i < kPixelCount; ++i) sum[i] = g.start ? load(g.start + c) : Vec<T>{};
    for (int64_t r = 0; r < rows.count; ++r) {
      Vec<T> weight[kRowTaps];
#pragma GCC unroll 4
      for (int k = 0; k < kRowTaps; ++k) weight[k] = load(rows.w[r] + k * channels + c);
      const T* x = rows.x[r] + at + c;
#pragma GCC unroll 16
      for (int n = 0; n < kReads; ++n, x += channels) {
        const Vec<T> value = load(x);
#pragma GCC unroll 4
        for (int i = 0; i < kPixelCount; ++i) {
          const int k = n - i * kStep;
          if (k >= 0 && k < kRowTaps) sum[i] = fma(value, weight[k], sum[i]);
        }
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kPixelCount; ++i) store(out + i * out_pixel + c, sum[i]);
  }
}

template <class T>
using Window = void (*)(const DepthwiseGather<T>&, const TapRows<T>&, int64_t, T*);

/// The window of kPixelCount pixels for a gather's taps, or null.
template <class T, int kPixelCount> static Window<T> window_of(const Axis& axis) {
  if (axis.taps > 1 && axis.tap_step != 1) return nullptr;
  if (axis.in_step == 1) {
    return axis.taps == 1   ? &sum_window<T, kPixelCount, 1, 1>
           : axis.taps == 2 ? &sum_window<T, kPixelCount, 2, 1>
           : axis.taps == 3 ? &sum_window<T, kPixelCount, 3, 1>
           : axis.taps == 5 ? &sum_window<T, kPixelCount, 5, 1>
                            : nullptr;
  }
  return axis.in_step != 2 ? nullptr
         : axis.taps == 3  ? &sum_window<T, kPixelCount, 3, 2>
         : axis.taps == 5  ? &sum_window<T, kPixelCount, 5, 2>
                           : nullptr;
}

/// kPixelCount pixels whose taps all lie inside of x.
template <class T, int kPixelCount>
static void sum_inside(const DepthwiseGather<T>& g, const TapRows<T>& rows, int64_t q, T* out,
                       bool resume) {
  const Window<T> window = resume ? nullptr : window_of<T, kPixelCount>(g.axis[2]);
  if (window) window(g, rows, q, out);
  const int64_t done = window ? g.channels / kLanes<T> * kLanes<T> : 0;
  if (done < g.channels)
    sum_pixels<T, kPixelCount>(g, rows, done, q, 0, g.axis[2].taps, out, resume);
}

/// One row of pixels: those whose taps all lie inside of x several at a time, the others alone.
template <class T>
static void sum_row(const DepthwiseGather<T>& g, const TapRows<T>& rows, T* out, bool resume) {
  const Axis& axis = g.axis[2];
  const int64_t width = g.source.size[2], out_pixel = axis.out_step * g.out_step[2];
  const int64_t reach = (axis.taps - 1) * axis.tap_step;
  for (int64_t q = 0; q < axis.count;) {
    const int64_t at = q * axis.in_step + axis.in_first;
    if (at >= 0 && at + reach < width) {
      const bool several =
          q + kPixels <= axis.count && at + (kPixels - 1) * axis.in_step + reach < width;
      if (several)
        sum_inside<T, kPixels>(g, rows, q, out + q * out_pixel, resume);
      else
        sum_inside<T, 1>(g, rows, q, out + q * out_pixel, resume);
      q += several ? kPixels : 1;
      continue;
    }
    const int64_t step = larger(1, axis.tap_step);
    const int64_t first = at >= 0 ? 0 : smaller(axis.taps, ceil_div(-at, step));
    const int64_t last = at >= width ? 0 : smaller(axis.taps, ceil_div(width - at, step));
    sum_pixels<T, 1>(g, rows, 0, q, first, larger(first, last), out + q * out_pixel, resume);
    ++q;
  }
}

/// Row number `row` of the class, counted over images.
template <class T> static T* gather_row(const DepthwiseGather<T>& g, int64_t row) {
  const Axis* axis = g.axis;
  const int64_t n = row / (axis[0].count * axis[1].count);
  const int64_t q[2] = {row / axis[1].count % axis[0].count, row % axis[1].count};
  T* out = g.out + n * g.out_image + axis[2].out_first * g.out_step[2];
  for (int d = 0; d < 2; ++d) out += (axis[d].out_first + q[d] * axis[d].out_step) * g.out_step[d];
  const int64_t all = axis[0].taps * axis[1].taps;
  TapRows<T> rows{};
  bool resume = false;
  for (int64_t t = 0; t < all; ++t) {
    const int64_t d =
        q[0] * axis[0].in_step + axis[0].in_first + t / axis[1].taps * axis[0].tap_step;
    const int64_t h =
        q[1] * axis[1].in_step + axis[1].in_first + t % axis[1].taps * axis[1].tap_step;
    if (uint64_t(d) >= uint64_t(g.source.size[0]) || uint64_t(h) >= uint64_t(g.source.size[1]))
      continue;
    if (rows.count == kRowsOfTaps) {
      sum_row(g, rows, out, resume);
      rows.count = 0;
      resume = true;
    }
    rows.x[rows.count] = g.source.data + n * g.source.image + g.source.offset(d, h, 0);
    rows.w[rows.count++] = g.w + t * axis[2].taps * g.channels;
  }
  if (rows.count || !resume) sum_row(g, rows, out, resume);
  return out;
}

template <class T>
void depthwise_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                       const Epilogue<T>& epilogue) {
  Arena arena(ctx.workspace);
  T* packed = arena.take<T>(p.taps() * p.in_channels);
  DepthwiseGather<T> g{{},
                       plain_source(x, p.in_channels, p.in),
                       packed,
                       epilogue.bias,
                       y,
                       p.out_channels,
                       p.out_pixels() * p.out_channels,
                       {}};
  const Source<T> steps = plain_source<T>(y, p.out_channels, p.out);
  for (int d = 0; d < 3; ++d) {
    g.axis[d] = forward_axis(p, d);
    g.out_step[d] = steps.step[d];
  }
  pack_taps(g.axis, w, p, packed);
  if (!p.x_channels_last) {
    T* staged = arena.take<T>(p.batch * g.source.image);
    g.source.data = staged;
    fill_staged(ctx, g.source, staged, x, false, p.batch, p.in_channels);
  }
  Epilogue<T> rest = epilogue;
  rest.bias = nullptr;
  const RowEpilogue<T> finish(rest);
  const bool trivial = rest.is_trivial();
  const int64_t row_elements = p.out[2] * p.out_channels;
  parallel_for(ctx, p.batch * p.out[0] * p.out[1], row_grain(row_elements),
               [&](int64_t begin, int64_t end) {
                 for (int64_t row = begin; row < end; ++row) {
                   T* out = gather_row(g, row);
                   if (!trivial) finish.apply(out, row_elements, 0, out - y);
                 }
               });
}

template <class T>
void depthwise_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& p) {
  Arena arena(ctx.workspace);
  T* packed = arena.take<T>(p.taps() * p.in_channels);
  T* out = p.x_channels_last ? dx : arena.take<T>(p.batch * p.in_pixels() * p.in_channels);
  DepthwiseGather<T> g{{},
                       plain_source(dy, p.out_channels, p.out),
                       packed,
                       nullptr,
                       out,
                       p.in_channels,
                       p.in_pixels() * p.in_channels,
                       {}};
  const Source<T> steps = plain_source<T>(out, p.in_channels, p.in);
  for (int d = 0; d < 3; ++d) g.out_step[d] = steps.step[d];
  const int64_t count[3] = {residues(p, 0), residues(p, 1), residues(p, 2)};
  for (int64_t k = 0; k < count[0] * count[1] * count[2]; ++k) {
    g.axis[0] = backward_axis(p, 0, k / (count[1] * count[2]));
    g.axis[1] = backward_axis(p, 1, k / count[2] % count[1]);
    g.axis[2] = backward_axis(p, 2, k % count[2]);
    pack_taps(g.axis, w, p, packed);
    parallel_for(ctx, p.batch * g.axis[0].count * g.axis[1].count,
                 row_grain(g.axis[2].count * p.in_channels), [&](int64_t begin, int64_t end) {
                   for (int64_t row = begin; row < end; ++row) gather_row(g, row);
                 });
  }
  if (out != dx) separate_channels(ctx, out, dx, p.batch, p.in_channels, p.in);
}

template <class T> size_t depthwise_workspace(const ConvParams& p) {
  Arena arena(nullptr);
  arena.take<T>((1 + depthwise_parts(p)) * p.taps() * p.in_channels + 64);
  if (!p.x_channels_last) arena.take<T>(p.batch * p.in_pixels() * p.in_channels);
  return arena.used();
}

BRASA_INSTANTIATE(depthwise_forward, float, double)
BRASA_INSTANTIATE(depthwise_backward_input, float, double)
BRASA_INSTANTIATE(depthwise_workspace, float, double)

}  // namespace brasa::cpu::BRASA_ISA
