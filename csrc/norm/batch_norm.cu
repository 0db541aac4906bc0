// Statistics: a block sums a part of a channel, or of kColumns neighbouring channels where they are
// neighbours in memory. Its threads read kKept elements each, in packs, and keep them in registers
// until the part's mean is known; those of one channel are combined by a tree in shared memory. A
// second launch adds the parts in order, a third is one elementwise pass.
//
// Lost: elements read one by one and twice, the second time from L1 and L2: a forward pass of 64 x
// 64 x 112 x 112 took 342 us on an H200, its floor is 154.
#include "core/activations.h"
#include "core/device.cuh"
#include "core/ptx_convert.cuh"
#include "norm/norm.h"

namespace brasa::cuda {

constexpr int kThreads = 256;
constexpr int kColumns = 32;  ///< channels per block of a channels-last array

constexpr int kKept = 32;  ///< elements per thread

BRASA_HOST_DEVICE_FN int columns_of(const BatchNormParams& p) {
  return p.channels_last ? kColumns : 1;
}
/// Elements of a channel per block.
BRASA_HOST_DEVICE_FN int64_t part_of(const BatchNormParams& p) {
  return kThreads * kKept / columns_of(p);
}

struct Pair {
  double first, second;
};

/// Adds up what the threads of a column hold, of kSums columns each; everyone gets its columns'
/// sums.
template <int kSums, class T> BRASA_DEVICE_FN void column_sums(T (&value)[kSums], int columns) {
  BRASA_SHARED(T, values, [kThreads * kSums]);
  const int rank = int(threadIdx.x);
  __syncthreads();  // an earlier call may still be reading
#pragma unroll
  for (int k = 0; k < kSums; ++k) values[rank * kSums + k] = value[k];
  __syncthreads();
  for (int half = kThreads * kSums / 2; half >= columns; half /= 2) {
    for (int i = rank; i < half; i += kThreads) values[i] += values[i + half];
    __syncthreads();
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) value[k] = values[(rank * kSums + k) % columns];
}

/// What a thread of a reduction works on: packs of kLanes neighbours, which are elements of one
/// channel, or in a channels-last array one element of each of as many channels. Whether packs are
/// aligned changes the loads alone.
template <class T, int kLanes, bool kChannelsLast> struct Share {
  static constexpr int kWide = kChannelsLast ? kColumns : 1;
  static constexpr int kSums = kChannelsLast ? kLanes : 1, kPacks = kKept / kLanes;
  static constexpr int kStep = kThreads * kLanes / kWide;
  using W = Wide<T>;
  using Values = simt::Lanes<W, kLanes>;

  const BatchNormParams& p;
  const simt::Divisor& pixels;
  bool aligned;
  int64_t part, c, first, end, count;

  BRASA_DEVICE_FN Share(const BatchNormParams& params, const simt::Divisor& by_pixels, bool packs)
      : p(params), pixels(by_pixels), aligned(packs) {
    const auto groups = unsigned(simt::ceil_div<int64_t>(p.c, kWide));
    const int element = int(threadIdx.x) * kLanes;
    const int64_t begin = blockIdx.x / groups * part_of(p), n = p.n * p.s;
    part = blockIdx.x / groups;
    c = int64_t(blockIdx.x % groups) * kWide + element % kWide;
    first = begin + element / kWide;
    end = begin + part_of(p) < n ? begin + part_of(p) : n;
    count = end - begin;
    if (c >= p.c) end = begin;
  }

  BRASA_DEVICE_FN bool has(int k) const { return first + k * kStep < end; }
  BRASA_DEVICE_FN Values load(const T* x, int k) const {
    int64_t i = first + k * kStep;
    const int64_t pixel = kChannelsLast ? 0 : pixels.take_remainder(i);
    const T* const from = x + (kChannelsLast ? i * p.c + c : (i * p.c + c) * p.s + pixel);
    if (aligned) return simt::load_wide<kLanes>(from);
    Values values;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) values[lane] = simt::widen(from[lane]);
    return values;
  }
  /// Which of a thread's sums a lane belongs to.
  static BRASA_DEVICE_FN constexpr int sum_of(int lane) { return kChannelsLast ? lane : 0; }

  /// put(sum, channel) by one thread of each channel.
  template <class Put> BRASA_DEVICE_FN void for_channels(const Put& put) const {
    if (int(threadIdx.x) * kSums >= kWide) return;
#pragma unroll
    for (int k = 0; k < kSums; ++k)
      if (c + k < p.c) put(k, c + k);
  }
};

template <class T, int kLanes, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, 2)
    statistics_kernel(const T* x, BatchNormParams p, simt::Divisor pixels, bool packs,
                      Pair* results) {
  using Mine = Share<T, kLanes, kChannelsLast>;
  using W = Wide<T>;
  const Mine mine(p, pixels, packs);
  typename Mine::Values kept[Mine::kPacks];
#pragma unroll
  for (int k = 0; k < Mine::kPacks; ++k)
    kept[k] = mine.has(k) ? mine.load(x, k) : typename Mine::Values{};
  W shift[Mine::kSums] = {};
#pragma unroll
  for (int k = 0; k < Mine::kPacks; ++k) {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) shift[Mine::sum_of(lane)] += kept[k][lane];
  }
  column_sums(shift, Mine::kWide);
  W offsets[Mine::kSums] = {}, squares[Mine::kSums] = {};
#pragma unroll
  for (int k = 0; k < Mine::kSums; ++k) shift[k] /= W(mine.count);
#pragma unroll
  for (int k = 0; k < Mine::kPacks; ++k) {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      const int sum = Mine::sum_of(lane);
      const W d = mine.has(k) ? kept[k][lane] - shift[sum] : W(0);
      offsets[sum] += d;
      squares[sum] += d * d;
    }
  }
  column_sums(offsets, Mine::kWide);
  column_sums(squares, Mine::kWide);
  mine.for_channels([&](int k, int64_t c) {
    const double e = double(offsets[k]), n = double(mine.count);
    results[mine.part * p.c + c] = {double(shift[k]) + e / n, double(squares[k]) - e * e / n};
  });
}

/// (x - mean) scale + bias, rounded alike wherever it is computed.
template <class T>
BRASA_DEVICE_FN T normalized(T x, T mean, T rstd, const T* weight, const T* bias, int64_t c) {
  return T(::fma(x - mean, weight ? rstd * weight[c] : rstd, bias ? bias[c] : T(0)));
}

/// The gradient before the activation, of channel c.
template <class T>
BRASA_DEVICE_FN Wide<T> before_activation(const BatchNormBackward<T>& a, int64_t c, Wide<T> dy,
                                          Wide<T> x) {
  if (!a.relu_bias) return dy;
  const Wide<T> v = normalized(x, a.mean[c], a.rstd[c], a.weight, a.relu_bias, c);
  return dy * Relu::derivative(v, Wide<T>(0), Wide<T>(0));
}

template <class T, int kLanes, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads,
                                  kLanes < 8 ? 4 : 3)  // sums of 8 channels need more room
    products_kernel(BatchNormBackward<T> a, BatchNormParams p, simt::Divisor pixels, bool packs,
                    Pair* results) {
  using Mine = Share<T, kLanes, kChannelsLast>;
  using W = Wide<T>;
  const Mine mine(p, pixels, packs);
  W sum[Mine::kSums] = {}, products[Mine::kSums] = {}, means[Mine::kSums];
#pragma unroll
  for (int k = 0; k < Mine::kSums; ++k) means[k] = mine.c + k < p.c ? a.mean[mine.c + k] : W(0);
#pragma unroll 2
  for (int k = 0; k < Mine::kPacks; ++k) {
    if (!mine.has(k)) break;
    const auto gradient = mine.load(a.dy, k), value = mine.load(a.x, k);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      const int at = Mine::sum_of(lane);
      const W x = value[lane], g = before_activation(a, mine.c + at, gradient[lane], x);
      sum[at] += g;
      products[at] += g * (x - means[at]);
    }
  }
  column_sums(sum, Mine::kWide);
  column_sums(products, Mine::kWide);
  mine.for_channels([&](int k, int64_t c) {
    results[mine.part * p.c + c] = {double(sum[k]), double(products[k])};
  });
}

/// A block per channel.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    merge_statistics_kernel(BatchNormForward<T> a, BatchNormParams p, int64_t parts,
                            const Pair* results) {
  const double n = double(p.n * p.s);
  const auto count = [&](int64_t part) {
    const int64_t left = p.n * p.s - part * part_of(p);
    return double(left < part_of(p) ? left : part_of(p));
  };
  for (int64_t c = blockIdx.x; c < p.c; c += gridDim.x) {
    double sum = 0, squares = 0;
#pragma unroll 4
    for (int64_t part = threadIdx.x; part < parts; part += kThreads)
      sum += count(part) * results[part * p.c + c].first;
    const double mean = simt::block_reduce_sum(sum) / n;
#pragma unroll 4
    for (int64_t part = threadIdx.x; part < parts; part += kThreads) {
      const double distance = results[part * p.c + c].first - mean;
      squares += results[part * p.c + c].second + count(part) * distance * distance;
    }
    squares = simt::block_reduce_sum(squares);
    if (threadIdx.x != 0) continue;
    a.mean[c] = Wide<T>(mean);
    a.rstd[c] = Wide<T>(::rsqrt(squares / n + p.eps));
    if (a.running_mean) {
      const double old_share = 1 - p.momentum;
      a.running_mean[c] = Wide<T>(old_share * double(a.running_mean[c]) + p.momentum * mean);
      a.running_var[c] =
          Wide<T>(old_share * double(a.running_var[c]) + p.momentum * (squares / (n - 1)));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    given_statistics_kernel(BatchNormForward<T> a, BatchNormParams p) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x; c < p.c; c += stride) {
    a.mean[c] = a.running_mean[c];
    a.rstd[c] = Wide<T>(::rsqrt(double(a.running_var[c]) + p.eps));
  }
}

/// first and second of a channel become the coefficients of dx; a block per channel.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    merge_products_kernel(BatchNormBackward<T> a, BatchNormParams p, int64_t parts,
                          const Pair* results, Pair* coefficients) {
  const double n = double(p.n * p.s);
  for (int64_t c = blockIdx.x; c < p.c; c += gridDim.x) {
    double sum = 0, products = 0;
#pragma unroll 4
    for (int64_t part = threadIdx.x; part < parts; part += kThreads) {
      sum += results[part * p.c + c].first;
      products += results[part * p.c + c].second;
    }
    sum = simt::block_reduce_sum(sum);
    products = simt::block_reduce_sum(products);
    if (threadIdx.x != 0) continue;
    const double rstd = double(a.rstd[c]);
    if (a.dbias) a.dbias[c] = Wide<T>(sum);
    if (a.dweight) a.dweight[c] = Wide<T>(products * rstd);
    coefficients[c] = {p.training ? sum / n : 0, p.training ? products * rstd * rstd / n : 0};
  }
}

/// How elements find their channels: element i has channel i / inner % channels.
struct Channels {
  simt::Divisor inner, channels;

  explicit Channels(const BatchNormParams& p) : inner(p.channels_last ? 1 : p.s), channels(p.c) {}
  BRASA_DEVICE_FN int64_t of(int64_t i) const {
    int64_t rest = inner.quotient(i);
    return channels.take_remainder(rest);
  }
};

/// A pack has one channel, or in a channels-last array neighbouring ones.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, 4)
    normalize_kernel(BatchNormForward<T> a, BatchNormParams p, Channels channels, bool packs,
                     Wide<T> alpha, Wide<T> beta) {
  simt::for_packs<T>(p.n * p.c * p.s, packs, [&]<int kLanes>(int64_t i) {
    auto v = simt::load_wide<kLanes>(a.x + i);
    simt::Lanes<Wide<T>, kLanes> residual{};
    if (a.residual) residual = simt::load_wide<kLanes>(a.residual + i);
    const int64_t first = channels.of(i);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      const int64_t c = p.channels_last ? first + k : first;
      v[k] = normalized(v[k], a.mean[c], a.rstd[c], a.weight, a.bias, c);
      if (a.residual) v[k] += residual[k];
    }
    if (a.pre_activation) simt::store_wide(a.pre_activation + i, v);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) v[k] = A::forward(v[k], alpha, beta);
    simt::store_wide(a.y + i, v);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    batch_gradient_kernel(BatchNormBackward<T> a, BatchNormParams p, Channels channels, bool packs,
                          const Pair* coefficients) {
  simt::for_packs<T>(p.n * p.c * p.s, packs, [&]<int kLanes>(int64_t i) {
    auto g = simt::load_wide<kLanes>(a.dy + i);
    const auto x = simt::load_wide<kLanes>(a.x + i);
    const int64_t channel = channels.of(i);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      const int64_t c = p.channels_last ? channel + k : channel;
      const Wide<T> scale = a.weight ? a.rstd[c] * a.weight[c] : a.rstd[c];
      const auto first = Wide<T>(coefficients[c].first);
      const auto second = Wide<T>(coefficients[c].second);
      const Wide<T> dy = before_activation(a, c, g[k], x[k]);
      g[k] = (dy - first - (x[k] - a.mean[c]) * second) * scale;
    }
    simt::store_wide(a.dx + i, g);
  });
}

// ----------------------------------------------------------------------------------------
// launchers

static int64_t parts_of(const BatchNormParams& p) {
  return simt::ceil_div(p.n * p.s, part_of(p));
}

static simt::LaunchConfig over(Context ctx, int64_t n) {
  return {.grid = simt::blocks_for(n, kThreads),
          .block = dim3(kThreads),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}
static simt::LaunchConfig per_channel(Context ctx, const BatchNormParams& p) {
  return {.grid = simt::blocks_for(p.c, 1),
          .block = dim3(kThreads),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}
static simt::LaunchConfig over_parts(Context ctx, const BatchNormParams& p) {
  return {.grid = dim3(unsigned(simt::ceil_div(p.c, int64_t(columns_of(p))) * parts_of(p))),
          .block = dim3(kThreads),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}

/// Whether packs stay within a plane, or within the channels of a pixel; and these arrays are
/// aligned for them.
template <class T> static bool has_packs(const BatchNormParams& p) {
  return (p.channels_last ? p.c : p.s) % simt::kPackLanes<T> == 0;
}
template <class T, class... Arrays>
static bool in_packs(const BatchNormParams& p, const Arrays*... arrays) {
  return has_packs<T>(p) && (simt::pack_aligned(arrays) && ...);
}

/// f.operator()<lanes, channels last>(), as elements are read by a reduction.
template <class T, class F> static void visit_share(const BatchNormParams& p, const F& f) {
  constexpr int kLanes = simt::kPackLanes<T>;
  if (p.channels_last)
    return has_packs<T>(p) ? f.template operator()<kLanes, true>()
                           : f.template operator()<1, true>();
  has_packs<T>(p) ? f.template operator()<kLanes, false>() : f.template operator()<1, false>();
}

template <class T> size_t batch_norm_workspace(const BatchNormParams& p) {
  return size_t((parts_of(p) + 1) * p.c) * sizeof(Pair);
}

template <class T>
void batch_norm_forward(Context ctx, const BatchNormForward<T>& a, const BatchNormParams& p) {
  const int64_t elements = p.n * p.c * p.s;
  if (p.c == 0 || (p.training && elements == 0)) return;
  if (p.training) {
    Pair* results = static_cast<Pair*>(ctx.workspace);
    visit_share<T>(p, [&]<int kLanes, bool kChannelsLast>() {
      simt::launch(over_parts(ctx, p), statistics_kernel<T, kLanes, kChannelsLast>, a.x, p,
                   simt::Divisor(p.s), simt::pack_aligned(a.x), results);
    });
    simt::launch(per_channel(ctx, p), merge_statistics_kernel<T>, a, p, parts_of(p), results);
  } else {
    simt::launch(over(ctx, p.c), given_statistics_kernel<T>, a, p);
  }
  if (elements == 0) return;  // the statistics are there all the same
  visit_activation(p.activation.kind, [&]<class A>() {
    simt::launch(over(ctx, elements), normalize_kernel<T, A>, a, p, Channels(p),
                 in_packs<T>(p, a.x, a.residual, a.pre_activation, a.y), p.activation.alpha,
                 p.activation.beta);
  });
}

template <class T>
void batch_norm_backward(Context ctx, const BatchNormBackward<T>& a, const BatchNormParams& p) {
  if (p.c == 0) return;
  Pair* results = static_cast<Pair*>(ctx.workspace);
  Pair* coefficients = results + parts_of(p) * p.c;
  if (parts_of(p) > 0) {
    const bool packs = simt::pack_aligned(a.dy) && simt::pack_aligned(a.x);
    visit_share<T>(p, [&]<int kLanes, bool kChannelsLast>() {
      simt::launch(over_parts(ctx, p), products_kernel<T, kLanes, kChannelsLast>, a, p,
                   simt::Divisor(p.s), packs, results);
    });
  }
  simt::launch(per_channel(ctx, p), merge_products_kernel<T>, a, p, parts_of(p), results,
               coefficients);
  if (a.dx && parts_of(p) > 0)
    simt::launch(over(ctx, p.n * p.c * p.s), batch_gradient_kernel<T>, a, p, Channels(p),
                 in_packs<T>(p, a.dy, a.x, a.dx), coefficients);
}

BRASA_INSTANTIATE(batch_norm_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(batch_norm_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(batch_norm_backward, float, double, float16, bfloat16)

}  // namespace brasa::cuda
