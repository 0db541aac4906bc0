#include "core/device.cuh"
#include "softmax/lines.cuh"
#include "softmax/softmax.h"

namespace brasa::cuda {

template <class T, class Group, int kLanes, bool kKeeps>
__global__ void __launch_bounds__(Group::kBlock, kLineBlocks<Wide<T>, Group, kLanes, 1>)
    softmax_forward_kernel(const T* x, T* y, AxisShape shape, bool packs) {
  using W = Wide<T>;
  for_lines<W, Group, kLanes, kKeeps>(shape, packs, [&](const auto& line) {
    auto held = line.hold(x + line.offset, -infinity<W>());
    W maximum = 0, factor;
    if constexpr (kKeeps) {
      factor = line.exponentials(held);
    } else {
      const auto found = line.max_and_sum(held);
      maximum = found.maximum;
      factor = W(1) / found.sum;
    }
    line.each([&](auto j, int turn) {
      auto v = line.get(held, j, turn);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) v[k] = (kKeeps ? v[k] : vexp(v[k] - maximum)) * factor;
      line.store(y + line.offset, j, v);
    });
  });
}

template <class T, class Group, int kLanes, bool kKeeps>
__global__ void __launch_bounds__(Group::kBlock, kLineBlocks<Wide<T>, Group, kLanes, 1>)
    log_softmax_forward_kernel(const T* x, T* y, AxisShape shape, bool packs) {
  using W = Wide<T>;
  for_lines<W, Group, kLanes, kKeeps>(shape, packs, [&](const auto& line) {
    const auto held = line.hold(x + line.offset, -infinity<W>());
    const auto found = line.max_and_sum(held);
    const W maximum = found.maximum, log_sum = vlog(found.sum);
    line.each([&](auto j, int turn) {
      auto v = line.get(held, j, turn);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) v[k] = v[k] - maximum - log_sum;
      line.store(y + line.offset, j, v);
    });
  });
}

template <class T, class Group, int kLanes, bool kKeeps>
__global__ void __launch_bounds__(Group::kBlock, kLineBlocks<Wide<T>, Group, kLanes, 2>)
    softmax_backward_kernel(const T* dy, const T* y, T* dx, AxisShape shape, bool packs) {
  using W = Wide<T>;
  for_lines<W, Group, kLanes, kKeeps>(shape, packs, [&](const auto& line) {
    const auto results = line.hold(y + line.offset), gradients = line.hold(dy + line.offset);
    const W dot = line.sum([&](auto j, int turn) {
      auto v = line.get(results, j, turn);
      const auto g = line.get(gradients, j, turn);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) v[k] *= g[k];
      return v;
    });
    line.each([&](auto j, int turn) {
      auto v = line.get(results, j, turn);
      const auto g = line.get(gradients, j, turn);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) v[k] *= g[k] - dot;
      line.store(dx + line.offset, j, v);
    });
  });
}

template <class T, class Group, int kLanes, bool kKeeps>
__global__ void __launch_bounds__(Group::kBlock, kLineBlocks<Wide<T>, Group, kLanes, 2>)
    log_softmax_backward_kernel(const T* dy, const T* y, T* dx, AxisShape shape, bool packs) {
  using W = Wide<T>;
  for_lines<W, Group, kLanes, kKeeps>(shape, packs, [&](const auto& line) {
    const auto results = line.hold(y + line.offset), gradients = line.hold(dy + line.offset);
    const W sum = line.sum([&](auto j, int turn) { return line.get(gradients, j, turn); });
    line.each([&](auto j, int turn) {
      const auto v = line.get(results, j, turn);
      auto g = line.get(gradients, j, turn);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) g[k] -= vexp(v[k]) * sum;
      line.store(dx + line.offset, j, g);
    });
  });
}

// ----------------------------------------------------------------------------------------
// launchers

#define BRASA_LAUNCH(arrays_held, kernel, ...)                                                  \
  if (shape.size() == 0) return;                                                                \
  choose_group<T, arrays_held>(                                                                 \
      ctx, shape, [&]<class Group, int kLanes, bool kKeeps>(const simt::LaunchConfig& config) { \
        simt::launch(config, kernel<T, Group, kLanes, kKeeps>, __VA_ARGS__, shape,              \
                     in_packs(__VA_ARGS__));                                                    \
      });

template <class T> void softmax_forward(Context ctx, const T* x, T* y, AxisShape shape) {
  BRASA_LAUNCH(1, softmax_forward_kernel, x, y)
}
template <class T> void log_softmax_forward(Context ctx, const T* x, T* y, AxisShape shape) {
  BRASA_LAUNCH(1, log_softmax_forward_kernel, x, y)
}
template <class T>
void softmax_backward(Context ctx, const T* dy, const T* y, T* dx, AxisShape shape) {
  BRASA_LAUNCH(2, softmax_backward_kernel, dy, y, dx)
}
template <class T>
void log_softmax_backward(Context ctx, const T* dy, const T* y, T* dx,
                          AxisShape shape){BRASA_LAUNCH(2, log_softmax_backward_kernel, dy, y, dx)}

BRASA_INSTANTIATE(softmax_forward, float, double, float16, bfloat16)
    BRASA_INSTANTIATE(softmax_backward, float, double, float16, bfloat16)
        BRASA_INSTANTIATE(log_softmax_forward, float, double, float16, bfloat16)
            BRASA_INSTANTIATE(log_softmax_backward, float, double, float16, bfloat16)

}  // namespace brasa::cuda
