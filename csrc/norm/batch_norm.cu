// Every launch shares an array out alike: a block has a part of a channel, or of up to kColumns
// neighbouring channels where they are neighbours in memory, and each of its threads packs of fixed
// channels, whose numbers it keeps in registers. A forward pass of training is two launches, and so
// is a backward pass: the second of each begins by adding up what the first left for its channels,
// as parts are few (kPartBlocks) and a launch of its own for that took 4 to 10 us on an H100. It
// goes through its part from the end, which the first launch has left in L2.
//
// Nothing and relu behind a batch norm have kernels of their own. Any other activation is found out
// at run time, one element of a pack at a time, in loops that are not unrolled: copies of each for
// a thread's 24 elements were five sixths of 5.8 MB of machine code for one target. For the same
// reason one division of 64 bits finds where a part begins, and 32 bits are enough for the rest.
//
// Statistics: each thread takes its elements' distances from the mean of the first few it met, so
// one read is enough; threads' means and squares meet in double.
//
// Lost: elements read one by one and twice, the second time from L1 and L2 (a forward pass of 64 x
// 64 x 112 x 112 took 342 us on an H200, its floor is 154); numbers of channels read through L1 for
// every element (the gradient channels-last: 272 us on an H100 with L1 at 98 %, the floor is 206).
#include "core/activations.h"
#include "core/device.cuh"
#include "core/epilogue.cuh"
#include "norm/norm.h"
#include "norm/shares.cuh"

namespace brasa::cuda {

/// The squares of n numbers about their mean, from those about another one and the distances from
/// it.
template <class W> BRASA_DEVICE_FN double squares_about_mean(W offsets, W squares, double n) {
  return n > 0 ? double(squares) - double(offsets) * double(offsets) / n : 0;
}

/// results = mean and squares about it, of a part and channel.
template <class T, int kLanes, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, 2)
    statistics_kernel(const T* x, BatchNormParams p, Shares shares, bool packs, Pair* results) {
  constexpr int kTurns = kFlying<T, 1>, kSums = kChannelsLast ? kLanes : 1;
  using W = Wide<T>;
  const Share<T, kLanes> mine(p, shares, packs);
  const auto sum_of = [](int lane) { return kChannelsLast ? lane : 0; };
  W shift[kSums] = {}, offsets[kSums] = {}, squares[kSums] = {};
  for (int i = mine.first; i < mine.end; i += kTurns * mine.step) {
    const auto has = [&](int turn) { return i + turn * mine.step < mine.end; };
    typename Share<T, kLanes>::Raw raw[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn)
      if (has(turn)) raw[turn] = mine.load(x, mine.offset(i + turn * mine.step));
    if (i == mine.first) {
      W met = 0;
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        if (!has(turn)) continue;
        const auto v = mine.widen(raw[turn]);
        met += W(kLanes / kSums);
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) shift[sum_of(lane)] += v[lane];
      }
#pragma unroll
      for (int k = 0; k < kSums; ++k) shift[k] /= met;
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (!has(turn)) continue;
      const auto v = mine.widen(raw[turn]);
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        const W d = v[lane] - shift[sum_of(lane)];
        offsets[sum_of(lane)] += d;
        squares[sum_of(lane)] += d * d;
      }
    }
  }
  const double own = double(mine.steps() * (kLanes / kSums)), n = double(mine.count());
  double mean[1][kSums], square[1][kSums];
#pragma unroll
  for (int k = 0; k < kSums; ++k) mean[0][k] = own * double(shift[k]) + double(offsets[k]);
  column_sums(mean, shares.columns);
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    mean[0][k] /= n;
    const double distance = own > 0 ? double(shift[k]) + double(offsets[k]) / own - mean[0][k] : 0;
    square[0][k] = squares_about_mean(offsets[k], squares[k], own) + own * distance * distance;
  }
  column_sums(square, shares.columns);
  mine.template for_channels<kSums>(
      [&](int k, int64_t c) { results[mine.part * p.c + c] = {mean[0][k], square[0][k]}; });
}

/// (x - mean) scale + bias, rounded alike wherever it is computed.
template <class T> BRASA_DEVICE_FN T normalized(T x, T mean, T scale, T bias) {
  return T(::fma(x - mean, scale, bias));
}

/// The gradient before an activation of relu, if there is one.
template <class W> BRASA_DEVICE_FN W before_relu(bool relu, W dy, W x, W mean, W scale, W bias) {
  if (!relu) return dy;
  return dy * Relu::derivative(normalized(x, mean, scale, bias), W(0), W(0));
}

template <class W> BRASA_DEVICE_FN W scaled(W rstd, const W* weight, int64_t c) {
  return weight ? rstd * weight[c] : rstd;
}

/// results = sums of dy and of dy (x - mean), of a part and channel.
template <class T, int kLanes, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, 2)
    products_kernel(BatchNormBackward<T> a, BatchNormParams p, Shares shares, bool packs,
                    Pair* results) {
  constexpr int kTurns = kFlying<T, 2>, kSums = kChannelsLast ? kLanes : 1;
  using W = Wide<T>;
  const Share<T, kLanes> mine(p, shares, packs);
  W sums[2][kSums] = {}, mean[kSums] = {}, scale[kSums] = {}, bias[kSums] = {};
#pragma unroll
  for (int k = 0; k < kSums; ++k) {  // not through shared memory: nothing waits for these yet
    const int64_t c = mine.c + k;
    if (c >= p.c) continue;
    mean[k] = a.mean[c];
    if (!a.relu_bias) continue;
    scale[k] = scaled(a.rstd[c], a.weight, c);
    bias[k] = a.relu_bias[c];
  }
  typename Share<T, kLanes>::Raw dy[kTurns], x[kTurns];
  mine.template backward<kTurns>(
      [&](int64_t at, int turn) {
        dy[turn] = mine.load(a.dy, at);
        x[turn] = mine.load(a.x, at);
      },
      [&](int64_t, int turn) {
        const auto gradient = mine.widen(dy[turn]), value = mine.widen(x[turn]);
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
          const int k = kChannelsLast ? lane : 0;
          const W v = value[lane];
          const W g = before_relu(a.relu_bias, gradient[lane], v, mean[k], scale[k], bias[k]);
          sums[0][k] += g;
          sums[1][k] += g * (v - mean[k]);
        }
      });
  column_sums(sums, shares.columns);
  mine.template for_channels<kSums>([&](int k, int64_t c) {
    results[mine.part * p.c + c] = {double(sums[0][k]), double(sums[1][k])};
  });
}

/// Mean and squares about it of channel c, from its parts. Distances are from the first part's
/// mean.
template <class Mine>
BRASA_DEVICE_FN Pair merge_statistics(const Mine& mine, int64_t c, const Pair* results) {
  const BatchNormParams& p = mine.p;
  const double n = double(p.n * p.s), shift = c < p.c ? results[c].first : 0;
  double sums[2][1] = {};
  double &offsets = sums[0][0], &squares = sums[1][0];
  for_parts(p, mine.shares, c, results, [&](int part, const Pair& pair) {
    const double count = double(mine.shares.count(part)), distance = pair.first - shift;
    offsets += count * distance;
    squares += pair.second + count * distance * distance;
  });
  column_sums(sums, mine.shares.columns);
  return {shift + offsets / n, squares - offsets * offsets / n};
}

/// Statistics of channel c, of the batch or given ones; the block of the first part writes them.
template <class T, class Mine>
BRASA_DEVICE_FN void find_statistics(const BatchNormForward<T>& a, const Mine& mine,
                                     const Pair* results, const OfChannels<Wide<T>>& found_here) {
  using W = Wide<T>;
  const BatchNormParams& p = mine.p;
  const int64_t c = mine.found_channel();
  const double n = double(p.n * p.s);
  // Read before the sums, so that nothing waits for it after them.
  const W weight = a.weight && c < p.c ? a.weight[c] : W(1),
          bias = a.bias && c < p.c ? a.bias[c] : W(0);
  const Pair found = p.training ? merge_statistics(mine, c, results) : Pair{};
  if (int(threadIdx.x) >= mine.shares.columns || c >= p.c) return;
  const W mean = p.training ? W(found.first) : a.running_mean[c];
  const double variance = p.training ? found.second / n : double(a.running_var[c]);
  const W rstd = W(::rsqrt(variance + p.eps));
  found_here.put(mean, a.weight ? rstd * weight : rstd, bias);
  if (mine.part > 0) return;
  a.mean[c] = mean;
  a.rstd[c] = rstd;
  if (!p.training || !a.running_mean) return;
  const double kept = 1 - p.momentum;
  a.running_mean[c] = W(kept * double(a.running_mean[c]) + p.momentum * found.first);
  a.running_var[c] = W(kept * double(a.running_var[c]) + p.momentum * (found.second / (n - 1)));
}

template <class T, class A, int kLanes>
__global__ void __launch_bounds__(kThreads, 2)
    normalize_kernel(BatchNormForward<T> a, BatchNormParams p, Shares shares, bool packs,
                     const Pair* results) {
  constexpr bool kAny = std::is_same_v<A, AnyActivation>;
  constexpr int kTurns = sizeof(T) == 8 ? 1 : kFlying<T, 2>;  // activations need room
  using W = Wide<T>;
  BRASA_SHARED(W, means, [kColumns]);
  BRASA_SHARED(W, scales, [kColumns]);
  BRASA_SHARED(W, biases, [kColumns]);
  const Share<T, kLanes> mine(p, shares, packs);
  find_statistics(a, mine, results, OfChannels<W>{means, scales, biases});
  __syncthreads();
  W mean[kLanes], scale[kLanes], bias[kLanes];
  mine.fetch(mean, means);
  mine.fetch(scale, scales);
  mine.fetch(bias, biases);
  typename Share<T, kLanes>::Raw x[kTurns] = {}, residual[kTurns] = {};
  mine.template backward<kTurns, kAny>(
      [&](int64_t at, int turn) {
        x[turn] = mine.load(a.x, at);
        if (a.residual) residual[turn] = mine.load(a.residual, at);
      },
      [&](int64_t at, int turn) {
        auto v = mine.widen(taken(x, turn));
#pragma unroll
        for (int k = 0; k < kLanes; ++k) {
          v[k] = normalized(v[k], mean[k], scale[k], bias[k]);
        }
        if (a.residual) {
          const auto other = mine.widen(taken(residual, turn));
#pragma unroll
          for (int k = 0; k < kLanes; ++k) v[k] += other[k];
        }
        if (a.pre_activation) mine.store(a.pre_activation, at, v);
        if constexpr (kAny) {
          activate_registers(p.activation, v.lane);
        } else {
#pragma unroll
          for (int k = 0; k < kLanes; ++k) v[k] = A::forward(v[k], W(0), W(0));
        }
        mine.store(a.y, at, v);
      });
}

/// What enters dx of channel c, from the parts' sums; the block of the first part writes the
/// gradients of its weight and bias.
template <class T, class Mine>
BRASA_DEVICE_FN void find_gradients(const BatchNormBackward<T>& a, const Mine& mine,
                                    const Pair* results, Wide<T> (&firsts)[kColumns],
                                    Wide<T> (&seconds)[kColumns]) {
  using W = Wide<T>;
  const BatchNormParams& p = mine.p;
  const int64_t c = mine.found_channel();
  double sums[2][1] = {};
  double &sum = sums[0][0], &products = sums[1][0];
  if (p.n * p.s > 0)
    for_parts(p, mine.shares, c, results, [&](int, const Pair& pair) {
      sum += pair.first;
      products += pair.second;
    });
  column_sums(sums, mine.shares.columns);
  if (int(threadIdx.x) >= mine.shares.columns || c >= p.c) return;
  const double n = double(p.n * p.s), rstd = double(a.rstd[c]);
  firsts[threadIdx.x] = p.training ? W(sum / n) : W(0);
  seconds[threadIdx.x] = p.training ? W(products * rstd * rstd / n) : W(0);
  if (mine.part > 0) return;
  if (a.dbias) a.dbias[c] = W(sum);
  if (a.dweight) a.dweight[c] = W(products * rstd);
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, 2)
    batch_gradient_kernel(BatchNormBackward<T> a, BatchNormParams p, Shares shares, bool packs,
                          const Pair* results) {
  constexpr int kTurns = kFlying<T, 2>;
  using W = Wide<T>;
  BRASA_SHARED(W, firsts, [kColumns]);
  BRASA_SHARED(W, seconds, [kColumns]);
  BRASA_SHARED(W, means, [kColumns]);
  BRASA_SHARED(W, scales, [kColumns]);
  BRASA_SHARED(W, biases, [kColumns]);
  const Share<T, kLanes> mine(p, shares, packs);
  if (!a.dx && mine.part > 0) return;
  const int64_t c = mine.found_channel();
  W of_mean = 0, of_scale = 0, of_bias = 0;  // read before the sums, so that nothing waits for it
  if (int(threadIdx.x) < shares.columns && c < p.c) {
    of_mean = a.mean[c];
    of_scale = scaled(a.rstd[c], a.weight, c);
    if (a.relu_bias) of_bias = a.relu_bias[c];
  }
  find_gradients(a, mine, results, firsts, seconds);
  if (!a.dx) return;
  if (int(threadIdx.x) < shares.columns)
    OfChannels<W>{means, scales, biases}.put(of_mean, of_scale, of_bias);
  __syncthreads();
  W first[kLanes], second[kLanes], mean[kLanes], scale[kLanes], bias[kLanes];
  mine.fetch(first, firsts);
  mine.fetch(second, seconds);
  mine.fetch(mean, means);
  mine.fetch(scale, scales);
  mine.fetch(bias, biases);
  typename Share<T, kLanes>::Raw dy[kTurns], x[kTurns];
  mine.template backward<kTurns>(
      [&](int64_t at, int turn) {
        dy[turn] = mine.load(a.dy, at);
        x[turn] = mine.load(a.x, at);
      },
      [&](int64_t at, int turn) {
        auto v = mine.widen(dy[turn]);
        const auto values = mine.widen(x[turn]);
#pragma unroll
        for (int k = 0; k < kLanes; ++k) {
          const W value = values[k];
          const W g = before_relu(a.relu_bias, v[k], value, mean[k], scale[k], bias[k]);
          v[k] = (g - first[k] - (value - mean[k]) * second[k]) * scale[k];
        }
        mine.store(a.dx, at, v);
      });
}

// ----------------------------------------------------------------------------------------
// launchers

static simt::LaunchConfig over_shares(Context ctx, const Shares& shares) {
  return {.grid = dim3(unsigned(shares.groups) * unsigned(shares.parts)),
          .block = dim3(kThreads),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}

/// Whether packs stay within a plane, or within the channels of a pixel.
template <class T> static bool has_packs(const BatchNormParams& p) {
  return (p.channels_last ? p.c : p.s) % simt::kPackLanes<T> == 0;
}
template <class... Arrays> static bool aligned(const Arrays*... arrays) {
  return (simt::pack_aligned(arrays) && ...);
}
template <class T> static Shares shares_of(const BatchNormParams& p) {
  return Shares(p, has_packs<T>(p) ? simt::kPackLanes<T> : 1);
}

/// f.operator()<lanes>(), and f.operator()<lanes, channels last>().
template <class T, class F> static void visit_lanes(const BatchNormParams& p, const F& f) {
  has_packs<T>(p) ? f.template operator()<simt::kPackLanes<T>>() : f.template operator()<1>();
}
template <class T, class F> static void visit_share(const BatchNormParams& p, const F& f) {
  visit_lanes<T>(p, [&]<int kLanes>() {
    constexpr bool kMany = kLanes > 1;  // one lane is of one channel in both layouts
    p.channels_last ? f.template operator()<kLanes, kMany>()
                    : f.template operator()<kLanes, false>();
  });
}

template <class T> size_t batch_norm_workspace(const BatchNormParams& p) {
  return p.c == 0 ? 0 : size_t(shares_of<T>(p).parts * p.c) * sizeof(Pair);
}

template <class T>
void batch_norm_forward(Context ctx, const BatchNormForward<T>& a, const BatchNormParams& p) {
  if (p.c == 0 || (p.training && p.n * p.s == 0)) return;
  const Shares shares = shares_of<T>(p);
  Pair* const results = static_cast<Pair*>(ctx.workspace);
  decltype(&statistics_kernel<T, 1, false>) take_statistics = nullptr;
  decltype(&normalize_kernel<T, Identity, 1>) normalize = nullptr;
  visit_share<T>(p, [&]<int kLanes, bool kChannelsLast>() {
    take_statistics = statistics_kernel<T, kLanes, kChannelsLast>;
  });
  visit_lanes<T>(p, [&]<int kLanes>() {
    switch (p.activation.kind) {
      case ActivationKind::none:
        normalize = normalize_kernel<T, Identity, kLanes>;
        break;
      case ActivationKind::relu:
        normalize = normalize_kernel<T, Relu, kLanes>;
        break;
      default:
        normalize = normalize_kernel<T, AnyActivation, kLanes>;
    }
  });
  const simt::LaunchConfig config = over_shares(ctx, shares);
  if (p.training) simt::launch(config, take_statistics, a.x, p, shares, aligned(a.x), results);
  simt::launch(config, normalize, a, p, shares, aligned(a.x, a.residual, a.pre_activation, a.y),
               results);
}

template <class T>
void batch_norm_backward(Context ctx, const BatchNormBackward<T>& a, const BatchNormParams& p) {
  if (p.c == 0) return;
  const Shares shares = shares_of<T>(p);
  Pair* const results = static_cast<Pair*>(ctx.workspace);
  decltype(&products_kernel<T, 1, false>) take_products = nullptr;
  decltype(&batch_gradient_kernel<T, 1>) gradient = nullptr;
  visit_share<T>(p, [&]<int kLanes, bool kChannelsLast>() {
    take_products = products_kernel<T, kLanes, kChannelsLast>;
  });
  visit_lanes<T>(p, [&]<int kLanes>() { gradient = batch_gradient_kernel<T, kLanes>; });
  const simt::LaunchConfig config = over_shares(ctx, shares);
  if (p.n * p.s > 0) simt::launch(config, take_products, a, p, shares, aligned(a.dy, a.x), results);
  simt::launch(config, gradient, a, p, shares, aligned(a.dy, a.x, a.dx), results);
}

BRASA_INSTANTIATE(batch_norm_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(batch_norm_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(batch_norm_backward, float, double, float16, bfloat16)

}  // namespace brasa::cuda
