#include "core/device.cuh"
#include "loss/loss.h"
#include "softmax/lines.cuh"

namespace brasa::cuda {

constexpr int kReduceThreads = 256;
constexpr int64_t kReduceBlocks =
    256;  // partial sums of losses and weights; a constant: they fix the rounding

/// In place of a class: the position takes no part, or its class is out of range.
constexpr int64_t kIgnored = -1, kOutside = -2;

template <class T>
BRASA_DEVICE_FN int64_t class_of(const CrossEntropyParams<T>& p, int64_t position) {
  const int64_t c = p.classes.wide ? p.classes.wide[position] : int64_t(p.classes.narrow[position]);
  return c == p.ignore_index ? kIgnored : c < 0 || c >= p.shape.n ? kOutside : c;
}
template <class T> BRASA_DEVICE_FN Wide<T> weight_of(const CrossEntropyParams<T>& p, int64_t c) {
  return c < 0 ? Wide<T>(0) : p.weight ? p.weight[c] : Wide<T>(1);
}
/// Weight of class c whatever the target.
template <class T> BRASA_DEVICE_FN Wide<T> class_weight(const CrossEntropyParams<T>& p, int64_t c) {
  return p.weight ? p.weight[c] : Wide<T>(1);
}
/// w_c q_c at element `at` of class c.
template <class T>
BRASA_DEVICE_FN Wide<T> weighted_target(const CrossEntropyParams<T>& p, int64_t c, int64_t at) {
  using W = Wide<T>;
  const W q = p.probabilities[at] * W(1 - p.label_smoothing) + W(p.label_smoothing) / W(p.shape.n);
  return q * class_weight(p, c);
}

/// What multiplies the loss of every class: its target, or its weight where labels are smoothed.
template <class T>
BRASA_DEVICE_FN Wide<T> share_of_loss(const CrossEntropyParams<T>& p, int64_t c, int64_t at) {
  return p.probabilities ? weighted_target(p, c, at) : class_weight(p, c);
}

/// f(c) for kLanes classes from c on.
template <class W, int kLanes, class F>
BRASA_DEVICE_FN simt::Lanes<W, kLanes> lanes_of(int64_t c, const F& f) {
  simt::Lanes<W, kLanes> values;
#pragma unroll
  for (int k = 0; k < kLanes; ++k) values[k] = f(c + k);
  return values;
}

template <class T, class Group, int kLanes, bool kKeeps>
__global__ void __launch_bounds__(Group::kBlock, kLineBlocks<Wide<T>, Group, kLanes, 1>)
    cross_entropy_forward_kernel(const T* x, CrossEntropyParams<T> p, bool packs, Wide<T>* losses,
                                 Wide<T>* statistics) {
  using W = Wide<T>;
  for_lines<W, Group, kLanes, kKeeps>(p.shape, packs, [&](const auto& line) {
    const auto found = line.max_and_sum(line.hold(x + line.offset, -infinity<W>()));
    const W maximum = found.maximum, log_sum = vlog(found.sum);
    const auto minus_log = [&](int64_t j) {
      return (maximum - simt::widen(x[line.at(j)])) + log_sum;
    };
    W loss = 0;
    if (p.probabilities || p.label_smoothing != 0)
      loss = line.walk_sum([&](auto j) {
        return lanes_of<W, kLanes>(
            j, [&](int64_t c) { return share_of_loss(p, c, line.at(c)) * minus_log(c); });
      });
    if (!p.probabilities) {
      const int64_t c = class_of(p, line.index);
      const W spread = loss;
      loss = c == kIgnored   ? W(0)
             : c == kOutside ? W(0) / W(0)
                             : W(1 - p.label_smoothing) * weight_of(p, c) * minus_log(c);
      if (p.label_smoothing != 0 && c >= 0) loss += W(p.label_smoothing) / W(p.shape.n) * spread;
    }
    if (line.leads()) {
      losses[line.index] = loss;
      if (statistics) {
        statistics[line.index] = maximum;
        statistics[p.shape.outer * p.shape.inner + line.index] = log_sum;
      }
    }
  });
}

/// Adds what losses and weights kReduceBlocks blocks have each; one block then adds those.
template <class T>
__global__ void __launch_bounds__(kReduceThreads)
    sum_positions_kernel(const Wide<T>* losses, CrossEntropyParams<T> p, double* partial) {
  double loss = 0, weight = 0;
  const int64_t step = int64_t(gridDim.x) * kReduceThreads;
#pragma unroll 1
  for (int64_t i = int64_t(blockIdx.x) * kReduceThreads + threadIdx.x;
       i < p.shape.outer * p.shape.inner; i += step) {
    loss += losses[i];
    weight += p.probabilities ? 1.0 : double(weight_of(p, class_of(p, i)));
  }
  loss = simt::block_reduce_sum(loss);
  weight = simt::block_reduce_sum(weight);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = loss;
    partial[kReduceBlocks + blockIdx.x] = weight;
  }
}

template <class T>
__global__ void __launch_bounds__(kReduceThreads)
    finish_reduction_kernel(const double* partial, int64_t count, bool mean, T* loss, T* divisor) {
  double total = 0, weight = 0;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < count; i += kReduceThreads) {
    total += partial[i];
    weight += partial[kReduceBlocks + i];
  }
  total = simt::block_reduce_sum(total);
  weight = simt::block_reduce_sum(weight);
  if (threadIdx.x != 0) return;
  const double by = mean ? weight : 1.0;
  loss[0] = T(total / by);
  if (divisor) divisor[0] = T(by);
}

/// What the gradient of a position takes from its loss.
template <class W> struct Position {
  W maximum, log_sum, scale;

  template <class T>
  BRASA_DEVICE_FN Position(const CrossEntropyParams<T>& p, int64_t index, const W* dy,
                           const W* statistics, const W* divisor)
      : maximum(statistics[index]),
        log_sum(statistics[p.shape.outer * p.shape.inner + index]),
        scale(p.reduction == Reduction::none ? dy[index] : dy[0] / divisor[0]) {}

  /// scale gradient(probability, class) in place of the logits from class j on.
  template <class Values, class Place, class F>
  BRASA_DEVICE_FN Values gradients(Values v, Place j, const F& gradient) const {
    constexpr int kLanes = sizeof(Values) / sizeof(W);
#pragma unroll
    for (int k = 0; k < kLanes; ++k)
      v[k] = scale * gradient(vexp(v[k] - maximum - log_sum), Place(j + k));
    return v;
  }
};

template <class T, class Group, int kLanes, bool kKeeps>
__global__ void __launch_bounds__(Group::kBlock, kLineBlocks<Wide<T>, Group, kLanes, 1>)
    cross_entropy_backward_kernel(const Wide<T>* dy, const T* x, CrossEntropyParams<T> p,
                                  bool packs, const Wide<T>* statistics, const Wide<T>* divisor,
                                  T* dx) {
  using W = Wide<T>;
  for_lines<W, Group, kLanes, kKeeps>(p.shape, packs, [&](const auto& line) {
    const auto held = line.hold(x + line.offset);  // first: nothing else is worth its wait
    const Position<W> of_line(p, line.index, dy, statistics, divisor);
    const int64_t own = class_of(p, line.index);
    const W weight = weight_of(p, own);
    line.each([&](auto j, int turn) {
      const auto gradient = [&](W probability, auto c) {
        return own < 0 ? W(0) : weight * (c == decltype(c)(own) ? probability - W(1) : probability);
      };
      line.store(dx + line.offset, j, of_line.gradients(line.get(held, j, turn), j, gradient));
    });
  });
}

/// The same of probabilities for targets, and of smoothed labels, where every class has a share.
template <class T, class Group, int kLanes>
__global__ void __launch_bounds__(Group::kBlock, kLineBlocks<Wide<T>, Group, kLanes, 1>)
    spread_backward_kernel(const Wide<T>* dy, const T* x, CrossEntropyParams<T> p, bool packs,
                           const Wide<T>* statistics, const Wide<T>* divisor, T* dx) {
  using W = Wide<T>;
  for_lines<W, Group, kLanes, false>(p.shape, packs, [&](const auto& line) {
    const Position<W> of_line(p, line.index, dy, statistics, divisor);
    const int64_t own = p.probabilities ? 0 : class_of(p, line.index);
    const W kept = p.probabilities ? W(0) : W(1 - p.label_smoothing) * weight_of(p, own);
    const W share = p.probabilities ? W(1) : W(p.label_smoothing) / W(p.shape.n);
    const W sum = p.probabilities || p.weight ? line.walk_sum([&](auto j) {
      return lanes_of<W, kLanes>(j, [&](int64_t c) { return share_of_loss(p, c, line.at(c)); });
    })
                                              : W(p.shape.n);
    const W all = p.probabilities ? sum : kept + share * sum;
    line.walk([&](auto j) {
      const auto gradient = [&](W probability, int64_t c) {
        if (p.probabilities) return all * probability - weighted_target(p, c, line.at(c));
        return own < 0 ? W(0)
                       : all * probability - share * class_weight(p, c) - (c == own ? kept : W(0));
      };
      const auto v = line.load(x + line.offset, j);
      line.store(dx + line.offset, j, of_line.gradients(v, j, gradient));
    });
  });
}

// ----------------------------------------------------------------------------------------
// launchers

/// choose_group() for lines that are never kept: a few kernels do.
template <class T, class F>
static void choose_walking_group(Context ctx, AxisShape shape, const F& f) {
  const auto with = [&]<class Group, int kLanes>() {
    f.template operator()<Group, kLanes>(over_lines<Group>(ctx, shape.lines()));
  };
  const auto of_rows = [&]<int kLanes>() {
    constexpr int64_t kOfWarp = 1024;
    shape.n <= kOfWarp ? with.template operator()<WarpGroup<simt::kWarpSize>, kLanes>()
                       : with.template operator()<BlockGroup<kLineThreads>, kLanes>();
  };
  if (shape.inner != 1) return with.template operator()<ThreadGroup, 1>();
  if constexpr (sizeof(T) < 8) {
    if (in_whole_packs<T>(shape.n)) return of_rows.template operator()<simt::kPackLanes<T>>();
  }
  of_rows.template operator()<1>();
}

template <class T> size_t cross_entropy_workspace(const CrossEntropyParams<T>& params) {
  if (params.reduction == Reduction::none) return 0;
  return 2 * kReduceBlocks * sizeof(double) + size_t(params.shape.lines()) * sizeof(Wide<T>);
}

template <class T>
void cross_entropy_forward(Context ctx, const T* logits, CrossEntropyParams<T> params,
                           Wide<T>* losses, Wide<T>* statistics, Wide<T>* divisor) {
  const auto stream = static_cast<simt::stream_t>(ctx.stream);
  const bool reduced = params.reduction != Reduction::none;
  double* const partial = static_cast<double*>(ctx.workspace);
  Wide<T>* const of_position =
      reduced ? reinterpret_cast<Wide<T>*>(partial + 2 * kReduceBlocks) : losses;
  if (params.shape.size() > 0) {
    choose_group<T, 1>(ctx, params.shape,
                       [&]<class Group, int kLanes, bool kKeeps>(const simt::LaunchConfig& config) {
                         simt::launch(config,
                                      cross_entropy_forward_kernel<T, Group, kLanes, kKeeps>,
                                      logits, params, in_packs(logits), of_position, statistics);
                       });
  }
  if (!reduced) return;
  int64_t blocks = simt::ceil_div(params.shape.lines(), int64_t(kReduceThreads));
  blocks = blocks < 1 ? 1 : blocks > kReduceBlocks ? kReduceBlocks : blocks;
  simt::launch({.grid = dim3(unsigned(blocks)), .block = dim3(kReduceThreads), .stream = stream},
               sum_positions_kernel<T>, of_position, params, partial);
  simt::launch({.block = dim3(kReduceThreads), .stream = stream}, finish_reduction_kernel<Wide<T>>,
               partial, blocks, params.reduction == Reduction::mean, losses, divisor);
}

template <class T>
void cross_entropy_backward(Context ctx, const Wide<T>* dy, const T* logits,
                            CrossEntropyParams<T> params, const Wide<T>* statistics,
                            const Wide<T>* divisor, T* dlogits) {
  if (params.shape.size() == 0) return;
  const bool packs = in_packs(logits, dlogits);
  if (params.probabilities || params.label_smoothing != 0)
    return choose_walking_group<T>(
        ctx, params.shape, [&]<class Group, int kLanes>(const simt::LaunchConfig& config) {
          simt::launch(config, spread_backward_kernel<T, Group, kLanes>, dy, logits, params, packs,
                       statistics, divisor, dlogits);
        });
  choose_group<T, 1>(ctx, params.shape,
                     [&]<class Group, int kLanes, bool kKeeps>(const simt::LaunchConfig& config) {
                       simt::launch(config, cross_entropy_backward_kernel<T, Group, kLanes, kKeeps>,
                                    dy, logits, params, packs, statistics, divisor, dlogits);
                     });
}

BRASA_INSTANTIATE(cross_entropy_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(cross_entropy_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(cross_entropy_backward, float, double, float16, bfloat16)

}  // namespace brasa::cuda
