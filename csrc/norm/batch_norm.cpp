#include "core/elementwise.h"
#include "core/epilogue.h"
#include "norm/channel_sums.h"

namespace brasa::cpu::BRASA_ISA {

/// Scratch: the blocks' results, then per channel the numbers that normalising needs.
template <class T> struct BatchNormScratch {
  Pairs blocks;
  T* scale;   ///< rstd * weight
  T* first;   ///< backward: sum(dy) / n
  T* second;  ///< backward: sum(dy xhat) / n * rstd

  static size_t bytes(const BatchNormParams& p) {
    return size_t(channel_blocks(p).count * p.c) * sizeof(Pair) + size_t(3 * p.c) * sizeof(T);
  }
  BatchNormScratch(Context ctx, const BatchNormParams& p) {
    const int64_t pairs = channel_blocks(p).count * p.c;
    blocks.first = static_cast<double*>(ctx.workspace);
    blocks.second = blocks.first + pairs;
    scale = reinterpret_cast<T*>(blocks.second + pairs);
    first = scale + p.c;
    second = first + p.c;
  }
};

template <class T> size_t batch_norm_workspace(const BatchNormParams& p) {
  return BatchNormScratch<T>::bytes(p);
}

/// f(begin, end, length) over the runs of the dense array in parallel: rows of p.c channels
/// (channels-last) or planes of one channel (C order), a few L1-sized groups of them per chunk. The
/// chunks go from the end of the array to its begin: of an array larger than the caches, what the
/// sums read last is still there.
template <class F> static void each_run(Context ctx, const BatchNormParams& p, const F& f) {
  constexpr int64_t kGroup =
      4096;  // elements: what f wrote is still in L1 when it comes back to it
  const int64_t runs = p.channels_last ? p.n * p.s : p.n * p.c;
  const int64_t length = p.channels_last ? p.c : p.s;
  if (length == 0) return;
  const int64_t group = length < kGroup ? kGroup / length : 1;
  parallel_for(ctx, runs, kNormGrain / length + 1, [&](int64_t from_end, int64_t to) {
    for (int64_t run = runs - to, end = runs - from_end; run < end; run += group)
      f(run, run + group < end ? run + group : end, length);
  });
}

/// f(channel, channels) over all channels in groups of up to kMergedChannels, in parallel.
constexpr int64_t kMergedChannels = 64;
template <class F> static void each_group(Context ctx, const BatchNormParams& p, const F& f) {
  const int64_t groups = (p.c + kMergedChannels - 1) / kMergedChannels;
  const int64_t work = (channel_blocks(p).count + 1) * kMergedChannels;
  parallel_for(ctx, groups, kNormGrain / work + 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin * kMergedChannels; c < end * kMergedChannels; c += kMergedChannels)
      if (c < p.c) f(c, p.c - c < kMergedChannels ? p.c - c : kMergedChannels);
  });
}

/// f(channel, channels) over groups of channels of an array in C order, in parallel: what f does in
/// two passes over `arrays` arrays then reads memory, or L3, once. False, and nothing done, where
/// all lies in the cores' L2 anyhow or the groups are too few for the threads.
template <class T, class F>
static bool each_near_group(Context ctx, const BatchNormParams& p, int64_t arrays, const F& f) {
  constexpr int64_t kNearBytes = 256 * 1024, kMostBytes = 1 << 20, kFarBytes = 4 << 20;
  const int64_t bytes = arrays * p.n * p.s * int64_t(sizeof(T));
  if (p.channels_last || bytes > kMostBytes || p.c * bytes <= kFarBytes) return false;
  int64_t group = kNearBytes / bytes;
  group = group < 1 ? 1 : group < kMergedChannels ? group : kMergedChannels;
  const int64_t groups = (p.c + group - 1) / group;
  if (groups < 4 * ctx.threads) return false;
  parallel_for(ctx, groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin * group; c < end * group && c < p.c; c += group)
      f(c, p.c - c < group ? p.c - c : group);
  });
  return true;
}

/// f(begin, end) over the planes of n channels from c on, from the image that was read last.
template <class F>
BRASA_INLINE void each_plane_run(const BatchNormParams& p, int64_t c, int64_t n, const F& f) {
  for (int64_t image = p.n - 1; image >= 0; --image) f(image * p.c + c, image * p.c + c + n);
}

/// scale = rstd weight, for n channels from c on.
template <class A, class T> static void fill_scale(const A& a, T* scale, int64_t c, int64_t n) {
  for (int64_t i = c; i < c + n; ++i) scale[i] = a.weight ? a.rstd[i] * a.weight[i] : a.rstd[i];
}

// -------------------------------------------------------------------------------------------
// forward

/// Merges the blocks of n channels from c on: their means, and sums of squares around them.
static void merge_blocks(const BatchNormParams& p, Pairs results, int64_t c, int64_t n,
                         double* mean, double* squares) {
  const ChannelBlocks blocks = channel_blocks(p);
  for (int64_t i = 0; i < n; ++i) mean[i] = squares[i] = 0;
  for (int64_t b = 0; b < blocks.count; ++b) {
    const double elements = double(blocks.elements(p, b));
    const Pairs block = results.at(b * p.c + c);
    for (int64_t i = 0; i < n; ++i) mean[i] += elements * block.first[i];
  }
  for (int64_t i = 0; i < n; ++i) mean[i] /= double(p.n * p.s);
  for (int64_t b = 0; b < blocks.count; ++b) {
    const double elements = double(blocks.elements(p, b));
    const Pairs block = results.at(b * p.c + c);
    for (int64_t i = 0; i < n; ++i) {
      const double distance = block.first[i] - mean[i];
      squares[i] += block.second[i] + elements * distance * distance;
    }
  }
}

/// mean, rstd and the running statistics of n channels from c on.
template <class T>
static void merge_statistics(const BatchNormForward<T>& a, const BatchNormParams& p, Pairs results,
                             int64_t c, int64_t n) {
  double mean[kMergedChannels], squares[kMergedChannels];
  merge_blocks(p, results, c, n, mean, squares);
  const double count = double(p.n * p.s);
  for (int64_t i = 0; i < n; ++i) {
    a.mean[c + i] = T(mean[i]);
    a.rstd[c + i] = T(1 / __builtin_sqrt(squares[i] / count + p.eps));
  }
  if (!a.running_mean) return;
  const double kept = 1 - p.momentum;
  for (int64_t i = 0; i < n; ++i) {
    T &running_mean = a.running_mean[c + i], &running_var = a.running_var[c + i];
    running_mean = T(kept * double(running_mean) + p.momentum * mean[i]);
    running_var = T(kept * double(running_var) + p.momentum * (squares[i] / (count - 1)));
  }
}

template <class T>
static void batch_statistics(Context ctx, const BatchNormForward<T>& a, const BatchNormParams& p,
                             Pairs results) {
  each_block<T, kSumVectors>(
      ctx, p, results, [&](const Block& block, int64_t) { return plane_statistics(a.x, block); },
      [&]<int kVectors>(const Block& block, int64_t, int64_t live, Pairs result) {
        row_statistics<kVectors>(a.x, block, live, result);
      });
  each_group(ctx, p, [&](int64_t c, int64_t n) { merge_statistics(a, p, results, c, n); });
}

/// A number per channel: `of_row` reads those of a row of channels, `of_plane` repeats one.
template <class T> BRASA_INLINE auto of_row(const T* numbers) {
  return [=](int64_t i, int64_t live) { return read(numbers + i, live); };
}
template <class T> BRASA_INLINE auto of_plane(T number) {
  return [=](int64_t, int64_t) { return broadcast(number); };
}

/// (x - mean) scale + bias + residual over kRows runs of n elements, side by side so that numbers
/// which differ along a run are loaded once for all.
template <bool kRelu, bool kStream, int kRows, class T, class Mean, class Scale, class Bias>
BRASA_INLINE void normalize_runs(const BatchNormForward<T>& a, int64_t at, int64_t n,
                                 const Mean& mean, const Scale& scale, const Bias& bias) {
  constexpr int64_t kAhead = kFetchBytes / sizeof(T);
  const T *x = a.x + at, *residual = a.residual ? a.residual + at : nullptr;
  T *y = a.y + at, *pre = a.pre_activation ? a.pre_activation + at : nullptr;
  each_part<T, kRows == 1 ? 4 : 1>(n, [=](int, int64_t i, int64_t live) {
    const Vec<T> m = mean(i, live), s = scale(i, live), b = bias(i, live);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = r * n + i;
      __builtin_prefetch(x + at + kAhead);
      Vec<T> v = fma(read(x + at, live) - m, s, b);
      if (residual) v += read(residual + at, live);
      if (kRelu) v = Relu::forward(v, Vec<T>{}, Vec<T>{});
      put_row<kStream>(y + at, v, live);
      if (pre) write(pre + at, v, live);
    }
  });
}

/// f.operator()<rows>(row) over rows [begin, end). Streamed rows go one by one: memory takes them
/// in order 15 % faster.
constexpr int kRowsTogether = 4;
template <bool kStream, class F>
BRASA_INLINE void each_rows(int64_t begin, int64_t end, const F& f) {
  int64_t row = begin;
  if constexpr (!kStream)
    for (; row + kRowsTogether <= end; row += kRowsTogether)
      f.template operator()<kRowsTogether>(row);
  for (; row < end; ++row) f.template operator()<1>(row);
}

template <bool kRelu, bool kStream, class T>
static void normalize_group(const BatchNormForward<T>& a, const BatchNormParams& p, const T* scale,
                            int64_t begin, int64_t end, int64_t length) {
  if (p.channels_last) {
    each_rows<kStream>(begin, end, [&]<int kRows>(int64_t row) {
      const int64_t at = row * length;
      if (a.bias)
        normalize_runs<kRelu, kStream, kRows>(a, at, length, of_row(a.mean), of_row(scale),
                                              of_row(a.bias));
      else
        normalize_runs<kRelu, kStream, kRows>(a, at, length, of_row(a.mean), of_row(scale),
                                              of_plane(T(0)));
    });
  } else {
    for (int64_t run = begin; run < end; ++run) {
      const int64_t c = run % p.c;
      normalize_runs<kRelu, kStream, 1>(a, run * length, length, of_plane(a.mean[c]),
                                        of_plane(scale[c]), of_plane(a.bias ? a.bias[c] : T(0)));
    }
  }
  if (kStream) finish_streaming();
}

/// Normalises runs [begin, end); a relu comes with it, another activation follows while they are in
/// cache.
template <class T> struct Normalizing {
  const BatchNormForward<T>& a;
  const BatchNormParams& p;
  const T* scale;
  int64_t length;
  RowActivation<T> activate;
  bool relu, streaming;

  Normalizing(const BatchNormForward<T>& arrays, const BatchNormParams& params, const T* scales)
      : a(arrays), p(params), scale(scales), length(p.channels_last ? p.c : p.s) {
    relu = p.activation.kind == ActivationKind::relu && !a.pre_activation;
    activate = relu || p.activation.kind == ActivationKind::none
                   ? nullptr
                   : row_activation<T>(p.activation.kind);
    streaming = !activate && streams_rows(a.y, p.n * p.c * p.s, length);
  }

  void operator()(int64_t begin, int64_t end) const {
    const auto group =
        relu ? (streaming ? normalize_group<true, true, T> : normalize_group<true, false, T>)
             : (streaming ? normalize_group<false, true, T> : normalize_group<false, false, T>);
    group(a, p, scale, begin, end, length);
    T* y = a.y + begin * length;
    if (activate)
      activate(y, y, (end - begin) * length, T(p.activation.alpha), T(p.activation.beta));
  }
};

template <class T>
static bool forward_by_channels(Context ctx, const BatchNormForward<T>& a, const BatchNormParams& p,
                                const BatchNormScratch<T>& scratch) {
  const Normalizing<T> normalize(a, p, scratch.scale);
  return each_near_group<T>(ctx, p, 1, [&](int64_t c, int64_t n) {
    sum_planes(p, c, n, scratch.blocks,
               [&](const Block& block, int64_t) { return plane_statistics(a.x, block); });
    merge_statistics(a, p, scratch.blocks, c, n);
    fill_scale(a, scratch.scale, c, n);
    each_plane_run(p, c, n, normalize);
  });
}

template <class T>
void batch_norm_forward(Context ctx, const BatchNormForward<T>& a, const BatchNormParams& p) {
  const BatchNormScratch<T> scratch(ctx, p);
  if (p.training) {
    if (forward_by_channels(ctx, a, p, scratch)) return;
    batch_statistics(ctx, a, p, scratch.blocks);
  } else {
    for (int64_t c = 0; c < p.c; ++c) {
      a.mean[c] = a.running_mean[c];
      a.rstd[c] = T(1 / __builtin_sqrt(double(a.running_var[c]) + p.eps));
    }
  }
  fill_scale(a, scratch.scale, 0, p.c);
  const Normalizing<T> normalize(a, p, scratch.scale);
  each_run(ctx, p, [&](int64_t begin, int64_t end, int64_t) { normalize(begin, end); });
}

// ------------------------------------------------------------------------------------------
// backward

/// Merges the blocks of n channels from c on: gradients of the vectors, coefficients of dx.
template <class T>
static void merge_products(const BatchNormBackward<T>& a, const BatchNormParams& p,
                           const BatchNormScratch<T>& scratch, int64_t c, int64_t n) {
  double sum[kMergedChannels] = {}, products[kMergedChannels] = {};
  for (int64_t b = 0; b < channel_blocks(p).count; ++b) {
    const Pairs block = scratch.blocks.at(b * p.c + c);
    for (int64_t i = 0; i < n; ++i) {
      sum[i] += block.first[i];
      products[i] += block.second[i];
    }
  }
  const double part = p.training ? 1 / double(p.n * p.s) : 0;
  for (int64_t i = 0; i < n; ++i) {
    const double rstd = double(a.rstd[c + i]);
    if (a.dbias) a.dbias[c + i] = T(sum[i]);
    if (a.dweight) a.dweight[c + i] = T(products[i] * rstd);
    scratch.first[c + i] = p.training ? T(sum[i] * part) : T(0);
    scratch.second[c + i] = p.training ? T(products[i] * rstd * rstd * part) : T(0);
  }
}

/// dx = scale (dy - first - (x - mean) second) over kRows runs of n elements; `of` gives numbers
/// per channel. With kRelu dy is that of a relu behind the normalisation.
template <bool kRelu, bool kStream, int kRows, class T, class Of>
BRASA_INLINE void gradient_runs(const BatchNormBackward<T>& a, const BatchNormScratch<T>& scratch,
                                int64_t at, int64_t n, const Of& of) {
  constexpr int64_t kAhead = kFetchBytes / sizeof(T);
  const auto mean = of(a.mean), first = of(scratch.first), second = of(scratch.second),
             scale = of(scratch.scale), bias = of(kRelu ? a.relu_bias : a.mean);
  const T *x = a.x + at, *dy = a.dy + at;
  T* dx = a.dx + at;
  each_part<T, kRows == 1 ? 4 : 1>(n, [=](int, int64_t i, int64_t live) {
    const Vec<T> m = mean(i, live), f = first(i, live), s = second(i, live), by = scale(i, live);
    const Vec<T> b = kRelu ? bias(i, live) : Vec<T>{};
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = r * n + i, ahead = at + kAhead;
      __builtin_prefetch(x + ahead);
      __builtin_prefetch(dy + ahead);
      const Vec<T> distance = read(x + at, live) - m;
      Vec<T> g = read(dy + at, live);
      if (kRelu) g = before_relu(g, distance, by, b);
      put_row<kStream>(dx + at, fma(-distance, s, g - f) * by, live);
    }
  });
}

template <bool kRelu, bool kStream, class T>
static void gradient_group(const BatchNormBackward<T>& a, const BatchNormParams& p,
                           const BatchNormScratch<T>& scratch, int64_t begin, int64_t end,
                           int64_t length) {
  if (p.channels_last)
    each_rows<kStream>(begin, end, [&]<int kRows>(int64_t row) {
      gradient_runs<kRelu, kStream, kRows>(a, scratch, row * length, length,
                                           [](const T* numbers) { return of_row(numbers); });
    });
  else
    for (int64_t run = begin; run < end; ++run)
      gradient_runs<kRelu, kStream, 1>(
          a, scratch, run * length, length,
          [c = run % p.c](const T* numbers) { return of_plane(numbers[c]); });
  if (kStream) finish_streaming();
}

template <bool kRelu, class T>
static void gradients(Context ctx, const BatchNormBackward<T>& a, const BatchNormParams& p) {
  const BatchNormScratch<T> scratch(ctx, p);
  const ChannelNumbers<T> numbers{a.mean, scratch.scale, a.relu_bias};
  const bool streaming = streams_rows(a.dx, p.n * p.c * p.s, p.channels_last ? p.c : p.s);
  const auto of_plane = [&](const Block& block, int64_t c) {
    return plane_products<kRelu>(a.dy, a.x, numbers.at(c), block);
  };
  const auto write_dx = [&](int64_t begin, int64_t end) {
    (streaming
         ? gradient_group<kRelu, true, T>
         : gradient_group<kRelu, false, T>)(a, p, scratch, begin, end, p.channels_last ? p.c : p.s);
  };
  fill_scale(a, scratch.scale, 0, p.c);
  if (a.dx && each_near_group<T>(ctx, p, 2, [&](int64_t c, int64_t n) {
        sum_planes(p, c, n, scratch.blocks, of_plane);
        merge_products(a, p, scratch, c, n);
        each_plane_run(p, c, n, write_dx);
      }))
    return;
  each_block<T, kSumVectors>(
      ctx, p, scratch.blocks, of_plane,
      [&]<int kVectors>(const Block& block, int64_t c, int64_t live, Pairs result) {
        row_products<kRelu, kVectors>(a.dy, a.x, numbers.at(c), block, live, result);
      });
  each_group(ctx, p, [&](int64_t c, int64_t n) { merge_products(a, p, scratch, c, n); });
  if (a.dx) each_run(ctx, p, [&](int64_t begin, int64_t end, int64_t) { write_dx(begin, end); });
}

template <class T>
void batch_norm_backward(Context ctx, const BatchNormBackward<T>& a, const BatchNormParams& p) {
  (a.relu_bias ? gradients<true, T> : gradients<false, T>)(ctx, a, p);
}

BRASA_INSTANTIATE(batch_norm_workspace, float, double)
BRASA_INSTANTIATE(batch_norm_forward, float, double)
BRASA_INSTANTIATE(batch_norm_backward, float, double)

}  // namespace brasa::cpu::BRASA_ISA
