// The weight gradient of depthwise layers: per channel and tap a sum over pixels. Each row of dy is
// one chain per tap, rows are added in order, in the parts of core/order.h.
#include "conv/conv_depthwise.h"

namespace brasa::cpu::BRASA_ISA {

/// Pixels whose dy stays in registers, for three taps.
constexpr int kPixels = 4;
/// Taps and vectors of a tile of the weight gradient: 8 sums hide the latency of fma().
constexpr int kTaps = 4, kVectors = 2;
/// Rows of three taps whose gradients are summed together: 9 sums, and dy is loaded once for all.
constexpr int kTapRows = 3;
/// Least width of images whose next rows are fetched ahead: 14x14 and 7x7 lost a fifth by it.
/// Sharing these out over channels, to have fewer parts, lost as well.
constexpr int64_t kAheadWidth = 28;

/// The pixels of one row of dy that a tap meets.
struct MetPixels {
  int64_t begin, end;
};

/// sums[tap][0, kVectors vectors) += sum over one row of dy of x * dy, for kTapCount taps; each sum
/// starts at zero.
template <class T, int kTapCount>
static void sum_taps(const ConvParams& p, const MetPixels* met, const T* x, const T* dy,
                     int64_t live, T* sums) {
  const int64_t channels = p.in_channels, tap = p.dilation[2] * channels;
  Vec<T> sum[kTapCount][kVectors] = {};
  for (int64_t q = 0; q < p.out[2]; ++q, x += p.stride[2] * channels, dy += channels)
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      const int64_t left = live - j * kLanes<T>;
      if (left <= 0) break;
      const Vec<T> gradient = load_live(dy + j * kLanes<T>, left);
#pragma GCC unroll 4
      for (int k = 0; k < kTapCount; ++k)
        if (q >= met[k].begin && q < met[k].end)
          sum[k][j] = fma(load_live(x + k * tap + j * kLanes<T>, left), gradient, sum[k][j]);
    }
#pragma GCC unroll 4
  for (int k = 0; k < kTapCount; ++k)
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      const int64_t left = live - j * kLanes<T>;
      T* to = sums + k * channels + j * kLanes<T>;
      if (left > 0) store_live(to, load_live(to, left) + sum[k][j], left);
    }
}

/// The taps [first, first + taps) of one row of taps, over one row of dy.
template <class T>
static void sum_tap_row(const ConvParams& p, const T* x, const T* dy, int64_t first, int taps,
                        int64_t live, T* sums) {
  MetPixels met[kTaps];
  for (int k = 0; k < taps; ++k) {
    const int64_t at = (first + k) * p.dilation[2] - p.pad_begin[2], s = p.stride[2];
    met[k].begin = at >= 0 ? 0 : ceil_div(-at, s);
    met[k].end = at >= p.in[2] ? 0 : ceil_div(p.in[2] - at, s);
  }
  const auto all = taps == 1   ? &sum_taps<T, 1>
                   : taps == 2 ? &sum_taps<T, 2>
                   : taps == 3 ? &sum_taps<T, 3>
                               : &sum_taps<T, 4>;
  all(p, met, x + (first * p.dilation[2] - p.pad_begin[2]) * p.in_channels, dy, live, sums);
}

/// sums[row of taps][tap][0, one vector) += sum over one row of dy of x * dy, for kTapRows rows of
/// three taps: x[row] is where their first tap meets pixel 0. Each sum starts at zero.
template <class T, int kTapRows, int kStep>
static void sum_three_taps(const ConvParams& p, const T* const* x, const T* dy, T* const* sums) {
  const int64_t channels = p.in_channels, width = p.in[2], pad = p.pad_begin[2];
  Vec<T> sum[kTapRows][3] = {};
  for (int64_t q = 0; q < p.out[2];) {
    const int64_t at = q * kStep - pad;
    if (at >= 0 && q + kPixels <= p.out[2] && at + (kPixels - 1) * kStep + 2 < width) {
      Vec<T> gradient[kPixels];
#pragma GCC unroll 4
      for (int i = 0; i < kPixels; ++i) gradient[i] = load(dy + (q + i) * channels);
#pragma GCC unroll 4
      for (int r = 0; r < kTapRows; ++r) {
        const T* from = x[r] + q * kStep * channels;
#pragma GCC unroll 16
        for (int n = 0; n < (kPixels - 1) * kStep + 3; ++n, from += channels) {
          const Vec<T> value = load(from);
#pragma GCC unroll 4
          for (int i = 0; i < kPixels; ++i) {
            const int k = n - i * kStep;
            if (k >= 0 && k < 3) sum[r][k] = fma(value, gradient[i], sum[r][k]);
          }
        }
      }
      q += kPixels;
      continue;
    }
    const Vec<T> gradient = load(dy + q * channels);
#pragma GCC unroll 4
    for (int k = 0; k < 3; ++k)
      if (uint64_t(at + k) < uint64_t(width))
#pragma GCC unroll 4
        for (int r = 0; r < kTapRows; ++r)
          sum[r][k] = fma(load(x[r] + (q * kStep + k) * channels), gradient, sum[r][k]);
    ++q;
  }
#pragma GCC unroll 4
  for (int r = 0; r < kTapRows; ++r)
#pragma GCC unroll 4
    for (int k = 0; k < 3; ++k)
      store(sums[r] + k * channels, load(sums[r] + k * channels) + sum[r][k]);
}

/// Whether rows of taps are summed by sum_three_taps().
static inline bool has_three_taps(const ConvParams& p) {
  return p.kernel[2] == 3 && p.dilation[2] == 1 && (p.stride[2] == 1 || p.stride[2] == 2);
}

/// Up to kTapRows rows of taps that one row of dy meets.
template <class T> struct MetRows {
  int64_t count;
  const T* x[kTapRows];
  T* sums[kTapRows];
};

/// All channels of these rows: whole vectors three taps at once, the rest tap by tap.
template <class T>
static void sum_met_rows(const ConvParams& p, const MetRows<T>& rows, const T* dy) {
  const int64_t channels = p.in_channels;
  int64_t c = 0;
  if (has_three_taps(p)) {
    const bool two = p.stride[2] == 2;
    const auto sum = rows.count == 3 ? (two ? &sum_three_taps<T, 3, 2> : &sum_three_taps<T, 3, 1>)
                     : rows.count == 2
                         ? (two ? &sum_three_taps<T, 2, 2> : &sum_three_taps<T, 2, 1>)
                         : (two ? &sum_three_taps<T, 1, 2> : &sum_three_taps<T, 1, 1>);
    const T* next_x = rows.x[rows.count - 1] + p.in[2] * channels;
    const bool ahead = p.in[2] >= kAheadWidth;
    const int64_t ahead_x = ahead ? p.in[2] : 0, ahead_dy = ahead ? p.out[2] : 0;
    for (; c + kLanes<T> <= channels; c += kLanes<T>) {
      // Pixels lie too far apart for hardware to see what comes: fetch the row after this one.
      for (int64_t i = 0; i < ahead_dy; ++i)
        __builtin_prefetch(dy + (channels + c) * p.out[2] + i * kLanes<T>, 0, 2);
      for (int64_t i = 0; i < ahead_x; ++i)
        __builtin_prefetch(next_x + c * p.in[2] + i * kLanes<T>, 0, 2);
      const T* x[kTapRows] = {};
      T* sums[kTapRows] = {};
      for (int64_t r = 0; r < rows.count; ++r) {
        x[r] = rows.x[r] - p.pad_begin[2] * channels + c;
        sums[r] = rows.sums[r] + c;
      }
      sum(p, x, dy + c, sums);
    }
  }
  for (; c < channels; c += kVectors * kLanes<T>)
    for (int64_t r = 0; r < rows.count; ++r)
      for (int64_t k = 0; k < p.kernel[2]; k += kTaps)
        sum_tap_row(p, rows.x[r] + c, dy + c, k, int(smaller(kTaps, p.kernel[2] - k)), channels - c,
                    rows.sums[r] + k * channels + c);
}

/// sums[tap][channel] over rows [begin, end) of dy.
template <class T>
static void sum_rows(const ConvParams& p, const T* x, const T* dy, int64_t begin, int64_t end,
                     T* sums) {
  const int64_t channels = p.in_channels;
  zero_fill(sums, p.taps() * channels);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / (p.out[0] * p.out[1]);
    MetRows<T> met{};
    for (int64_t t = 0; t < p.kernel[0] * p.kernel[1]; ++t) {
      const int64_t d = row / p.out[1] % p.out[0] * p.stride[0] - p.pad_begin[0] +
                        t / p.kernel[1] * p.dilation[0];
      const int64_t h =
          row % p.out[1] * p.stride[1] - p.pad_begin[1] + t % p.kernel[1] * p.dilation[1];
      if (uint64_t(d) >= uint64_t(p.in[0]) || uint64_t(h) >= uint64_t(p.in[1])) continue;
      if (met.count == kTapRows) {
        sum_met_rows(p, met, dy + row * p.out[2] * channels);
        met.count = 0;
      }
      met.x[met.count] = x + ((n * p.in[0] + d) * p.in[1] + h) * p.in[2] * channels;
      met.sums[met.count++] = sums + t * p.kernel[2] * channels;
    }
    if (met.count) sum_met_rows(p, met, dy + row * p.out[2] * channels);
  }
}

/// dw[channel][tap] = the parts, in order.
template <class T>
static void add_depthwise_parts(const ConvParams& p, T* sums, int64_t parts, T* dw) {
  const int64_t count = p.taps() * p.in_channels;
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    Vec<T> sum = load_live(sums + i, count - i);
    for (int64_t part = 1; part < parts; ++part)
      sum += load_live(sums + part * count + i, count - i);
    store_live(sums + i, sum, count - i);
  }
  for (int64_t t = 0; t < p.taps(); ++t)
    for (int64_t c = 0; c < p.in_channels; ++c) dw[c * p.taps() + t] = sums[t * p.in_channels + c];
}

template <class T>
void depthwise_backward_weight(Context ctx, const T* dy, const T* x, T* dw, const ConvParams& p,
                               void* workspace) {
  Arena arena(workspace);
  const int64_t parts = depthwise_parts(p), count = p.taps() * p.in_channels;
  T* sums = arena.take<T>(parts * count);
  if (!p.x_channels_last) {
    T* staged = arena.take<T>(p.batch * p.in_pixels() * p.in_channels);
    fill_staged(ctx, plain_source<T>(staged, p.in_channels, p.in), staged, x, false, p.batch,
                p.in_channels);
    x = staged;
  }
  const int64_t rows = p.batch * p.out[0] * p.out[1];
  parallel_for(ctx, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      sum_rows(p, x, dy, rows * i / parts, rows * (i + 1) / parts, sums + i * count);
  });
  add_depthwise_parts(p, sums, parts, dw);
}

BRASA_INSTANTIATE(depthwise_backward_weight, float, double)

}  // namespace brasa::cpu::BRASA_ISA
