#include "core/epilogue.h"
#include "norm/channel_sums.h"

namespace brasa::cpu::BRASA_ISA {

/// Scratch: the blocks' results, then per channel the numbers that normalising needs.
template <class T> struct BatchNormScratch {
  Pair* blocks;
  T* scale;   ///< rstd * weight
  T* first;   ///< backward: sum(dy) / n
  T* second;  ///< backward: sum(dy xhat) / n * rstd

  static size_t bytes(const BatchNormParams& p) {
    return size_t(channel_blocks(p).count * p.c) * sizeof(Pair) + size_t(3 * p.c) * sizeof(T);
  }
  BatchNormScratch(Context ctx, const BatchNormParams& p) {
    blocks = static_cast<Pair*>(ctx.workspace);
    scale = reinterpret_cast<T*>(blocks + channel_blocks(p).count * p.c);
    first = scale + p.c;
    second = first + p.c;
  }
};

template <class T> size_t batch_norm_workspace(const BatchNormParams& p) {
  return BatchNormScratch<T>::bytes(p);
}

/// f(begin, end, length) over the runs of the dense array in parallel: rows of p.c channels
/// (channels-last) or planes of one channel (C order), a few L1-sized groups of them per chunk.
template <class F> static void each_run(Context ctx, const BatchNormParams& p, const F& f) {
  constexpr int64_t kGroup =
      4096;  // elements: what f wrote is still in L1 when it comes back to it
  const int64_t runs = p.channels_last ? p.n * p.s : p.n * p.c;
  const int64_t length = p.channels_last ? p.c : p.s;
  if (length == 0) return;
  const int64_t group = length < kGroup ? kGroup / length : 1;
  parallel_for(ctx, runs, kNormGrain / length + 1, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; run += group)
      f(run, run + group < end ? run + group : end, length);
  });
}

// -------------------------------------------------------------------------------------------
// forward

/// Merges the blocks of channels [begin, end): mean, rstd, and the running statistics.
template <class T>
static void merge_statistics(const BatchNormForward<T>& a, const BatchNormParams& p,
                             const Pair* results, int64_t begin, int64_t end) {
  const ChannelBlocks blocks = channel_blocks(p);
  const double n = double(p.n * p.s);
  for (int64_t c = begin; c < end; ++c) {
    double sum = 0, squares = 0;
    for (int64_t b = 0; b < blocks.count; ++b)
      sum += double(blocks.elements(p, b)) * results[b * p.c + c].first;
    const double mean = sum / n;
    for (int64_t b = 0; b < blocks.count; ++b) {
      const double distance = results[b * p.c + c].first - mean;
      squares += results[b * p.c + c].second + double(blocks.elements(p, b)) * distance * distance;
    }
    a.mean[c] = T(mean);
    a.rstd[c] = T(1 / __builtin_sqrt(squares / n + p.eps));
    if (a.running_mean) {
      const double old_share = 1 - p.momentum;
      a.running_mean[c] = T(old_share * double(a.running_mean[c]) + p.momentum * mean);
      a.running_var[c] = T(old_share * double(a.running_var[c]) + p.momentum * (squares / (n - 1)));
    }
  }
}

template <class T>
static void batch_statistics(Context ctx, const BatchNormForward<T>& a, const BatchNormParams& p,
                             Pair* results) {
  each_block<T>(
      ctx, p, results, [&](const Block& block, int64_t) { return plane_statistics(a.x, block); },
      [&]<int kVectors>(const Block& block, int64_t, int64_t live, Pair* result) {
        row_statistics<kVectors>(a.x, block, live, result);
      });
  parallel_for(ctx, p.c, kNormGrain / (channel_blocks(p).count + 1) + 1,
               [&](int64_t begin, int64_t end) { merge_statistics(a, p, results, begin, end); });
}

/// (x - mean) scale + bias + residual over n elements; each of the per-channel numbers is one or a
/// row.
template <class T, class Mean, class Scale, class Bias>
BRASA_INLINE void normalize_run(const BatchNormForward<T>& a, int64_t at, int64_t n,
                                const Mean& mean, const Scale& scale, const Bias& bias) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const int64_t live = n - i < kLanes<T> ? n - i : kLanes<T>;
    Vec<T> v = fma(read(a.x + at + i, live) - mean(i, live), scale(i, live), bias(i, live));
    if (a.residual) v += read(a.residual + at + i, live);
    write(a.y + at + i, v, live);
    if (a.pre_activation) write(a.pre_activation + at + i, v, live);
  }
}

template <class T>
static void normalize(Context ctx, const BatchNormForward<T>& a, const BatchNormParams& p,
                      const T* scale) {
  const RowActivation<T> activate =
      p.activation.kind == ActivationKind::none ? nullptr : row_activation<T>(p.activation.kind);
  each_run(ctx, p, [&](int64_t begin, int64_t end, int64_t length) {
    for (int64_t run = begin; run < end; ++run) {
      const int64_t at = run * length;
      if (p.channels_last) {
        const auto row = [](const T* numbers) {
          return [=](int64_t i, int64_t live) { return read(numbers + i, live); };
        };
        if (a.bias)
          normalize_run(a, at, length, row(a.mean), row(scale), row(a.bias));
        else
          normalize_run(a, at, length, row(a.mean), row(scale),
                        [](int64_t, int64_t) { return Vec<T>{}; });
      } else {
        const auto one = [](T number) {
          return [=](int64_t, int64_t) { return broadcast(number); };
        };
        const int64_t c = run % p.c;
        normalize_run(a, at, length, one(a.mean[c]), one(scale[c]), one(a.bias ? a.bias[c] : T(0)));
      }
    }
    T* y = a.y + begin * length;
    if (activate)
      activate(y, y, (end - begin) * length, T(p.activation.alpha), T(p.activation.beta));
  });
}

template <class T>
void batch_norm_forward(Context ctx, const BatchNormForward<T>& a, const BatchNormParams& p) {
  const BatchNormScratch<T> scratch(ctx, p);
  if (p.training) {
    batch_statistics(ctx, a, p, scratch.blocks);
  } else {
    for (int64_t c = 0; c < p.c; ++c) {
      a.mean[c] = a.running_mean[c];
      a.rstd[c] = T(1 / __builtin_sqrt(double(a.running_var[c]) + p.eps));
    }
  }
  for (int64_t c = 0; c < p.c; ++c)
    scratch.scale[c] = a.weight ? a.rstd[c] * a.weight[c] : a.rstd[c];
  normalize(ctx, a, p, scratch.scale);
}

// ------------------------------------------------------------------------------------------
// backward

/// Merges the blocks of channels [begin, end): gradients of the vectors, coefficients of dx.
template <class T>
static void merge_products(const BatchNormBackward<T>& a, const BatchNormParams& p,
                           const BatchNormScratch<T>& scratch, int64_t begin, int64_t end) {
  const int64_t count = channel_blocks(p).count;
  const double n = double(p.n * p.s);
  for (int64_t c = begin; c < end; ++c) {
    double sum = 0, products = 0;
    for (int64_t b = 0; b < count; ++b) {
      sum += scratch.blocks[b * p.c + c].first;
      products += scratch.blocks[b * p.c + c].second;
    }
    const double rstd = double(a.rstd[c]);
    if (a.dbias) a.dbias[c] = T(sum);
    if (a.dweight) a.dweight[c] = T(products * rstd);
    scratch.first[c] = p.training ? T(sum / n) : T(0);
    scratch.second[c] = p.training ? T(products * rstd * rstd / n) : T(0);
  }
}

/// dx = scale (dy - first - (x - mean) second)
template <class T, class Row>
BRASA_INLINE void gradient_run(const BatchNormBackward<T>& a, const BatchNormScratch<T>& scratch,
                               int64_t at, int64_t n, const Row& number) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const int64_t live = n - i < kLanes<T> ? n - i : kLanes<T>;
    const Vec<T> distance = read(a.x + at + i, live) - number(a.mean, i, live);
    const Vec<T> centred = read(a.dy + at + i, live) - number(scratch.first, i, live);
    const Vec<T> d = fma(-distance, number(scratch.second, i, live), centred);
    write(a.dx + at + i, d * number(scratch.scale, i, live), live);
  }
}

template <class T>
void batch_norm_backward(Context ctx, const BatchNormBackward<T>& a, const BatchNormParams& p) {
  const BatchNormScratch<T> scratch(ctx, p);
  for (int64_t c = 0; c < p.c; ++c)
    scratch.scale[c] = a.weight ? a.rstd[c] * a.weight[c] : a.rstd[c];
  each_block<T>(
      ctx, p, scratch.blocks,
      [&](const Block& block, int64_t c) { return plane_products(a.dy, a.x, a.mean[c], block); },
      [&]<int kVectors>(const Block& block, int64_t c, int64_t live, Pair* result) {
        row_products<kVectors>(a.dy, a.x, a.mean + c, block, live, result);
      });
  parallel_for(ctx, p.c, kNormGrain / (channel_blocks(p).count + 1) + 1,
               [&](int64_t begin, int64_t end) { merge_products(a, p, scratch, begin, end); });
  if (!a.dx) return;
  each_run(ctx, p, [&](int64_t begin, int64_t end, int64_t length) {
    for (int64_t run = begin; run < end; ++run) {
      if (p.channels_last) {
        gradient_run(a, scratch, run * length, length,
                     [](const T* p, int64_t i, int64_t live) { return read(p + i, live); });
      } else {
        gradient_run(a, scratch, run * length, length,
                     [c = run % p.c](const T* p, int64_t, int64_t) { return broadcast(p[c]); });
      }
    }
  });
}

BRASA_INSTANTIATE(batch_norm_workspace, float, double)
BRASA_INSTANTIATE(batch_norm_forward, float, double)
BRASA_INSTANTIATE(batch_norm_backward, float, double)

}  // namespace brasa::cpu::BRASA_ISA
