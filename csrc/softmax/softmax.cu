#include "core/device.cuh"
#include "softmax/lines.cuh"
#include "softmax/softmax.h"

namespace brasa::cuda {

template <class T, template <class> class Group, int kLanes>
__global__ void __launch_bounds__(kLineThreads, 2)
    softmax_forward_kernel(const T* x, T* y, AxisShape shape, bool packs) {
  using W = Wide<T>;
  for_lines<W, Group, kLanes>(shape, packs, [&](const Line<W, Group, kLanes>& line) {
    const T* const from = x + line.offset;
    const auto found = line.max_and_sum(from);
    const W maximum = found.maximum;
    const W factor = W(1) / found.sum;
    line.each([&](int64_t j) {
      auto v = line.load(from, j);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) v[k] = vexp(v[k] - maximum) * factor;
      line.store(y + line.offset, j, v);
    });
  });
}

template <class T, template <class> class Group, int kLanes>
__global__ void __launch_bounds__(kLineThreads, 2)
    log_softmax_forward_kernel(const T* x, T* y, AxisShape shape, bool packs) {
  using W = Wide<T>;
  for_lines<W, Group, kLanes>(shape, packs, [&](const Line<W, Group, kLanes>& line) {
    const T* const from = x + line.offset;
    const auto found = line.max_and_sum(from);
    const W maximum = found.maximum;
    const W log_sum = vlog(found.sum);
    line.each([&](int64_t j) {
      auto v = line.load(from, j);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) v[k] = v[k] - maximum - log_sum;
      line.store(y + line.offset, j, v);
    });
  });
}

template <class T, template <class> class Group, int kLanes>
__global__ void __launch_bounds__(kLineThreads, 2)
    softmax_backward_kernel(const T* dy, const T* y, T* dx, AxisShape shape, bool packs) {
  using W = Wide<T>;
  for_lines<W, Group, kLanes>(shape, packs, [&](const Line<W, Group, kLanes>& line) {
    const T *const results = y + line.offset, *const gradients = dy + line.offset;
    const W dot = line.sum([&](int64_t j) {
      auto v = line.load(results, j);
      const auto g = line.load(gradients, j);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) v[k] *= g[k];
      return v;
    });
    line.each([&](int64_t j) {
      auto v = line.load(results, j);
      const auto g = line.load(gradients, j);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) v[k] *= g[k] - dot;
      line.store(dx + line.offset, j, v);
    });
  });
}

template <class T, template <class> class Group, int kLanes>
__global__ void __launch_bounds__(kLineThreads, 2)
    log_softmax_backward_kernel(const T* dy, const T* y, T* dx, AxisShape shape, bool packs) {
  using W = Wide<T>;
  for_lines<W, Group, kLanes>(shape, packs, [&](const Line<W, Group, kLanes>& line) {
    const T *const results = y + line.offset, *const gradients = dy + line.offset;
    const W sum = line.sum([&](int64_t j) { return line.load(gradients, j); });
    line.each([&](int64_t j) {
      const auto v = line.load(results, j);
      auto g = line.load(gradients, j);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) g[k] -= vexp(v[k]) * sum;
      line.store(dx + line.offset, j, g);
    });
  });
}

// ----------------------------------------------------------------------------------------
// launchers

#define BRASA_LAUNCH(kernel, ...)                                                   \
  if (shape.size() == 0) return;                                                    \
  choose_group<T>(shape, [&]<template <class> class Group, int kLanes>(dim3 grid) { \
    simt::launch({.grid = grid,                                                     \
                  .block = dim3(kLineThreads),                                      \
                  .stream = static_cast<simt::stream_t>(ctx.stream)},               \
                 kernel<T, Group, kLanes>, __VA_ARGS__, shape,                      \
                 lines_in_packs<T>(shape.n, __VA_ARGS__));                          \
  });

template <class T> void softmax_forward(Context ctx, const T* x, T* y, AxisShape shape) {
  BRASA_LAUNCH(softmax_forward_kernel, x, y)
}
template <class T> void log_softmax_forward(Context ctx, const T* x, T* y, AxisShape shape) {
  BRASA_LAUNCH(log_softmax_forward_kernel, x, y)
}
template <class T>
void softmax_backward(Context ctx, const T* dy, const T* y, T* dx, AxisShape shape) {
  BRASA_LAUNCH(softmax_backward_kernel, dy, y, dx)
}
template <class T>
void log_softmax_backward(Context ctx, const T* dy, const T* y, T* dx,
                          AxisShape shape){BRASA_LAUNCH(log_softmax_backward_kernel, dy, y, dx)}

BRASA_INSTANTIATE(softmax_forward, float, double, float16, bfloat16)
    BRASA_INSTANTIATE(softmax_backward, float, double, float16, bfloat16)
        BRASA_INSTANTIATE(log_softmax_forward, float, double, float16, bfloat16)
            BRASA_INSTANTIATE(log_softmax_backward, float, double, float16, bfloat16)

}  // namespace brasa::cuda
