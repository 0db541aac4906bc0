#include "core/device.cuh"
#include "softmax/lines.cuh"
#include "softmax/softmax.h"

namespace brasa::cuda {

template <class T, template <class> class Group>
__global__ void __launch_bounds__(kLineThreads, 2)
    softmax_forward_kernel(const T* x, T* y, AxisShape shape) {
  using W = Wide<T>;
  for_lines<W, Group>(shape, [&](const Line<W, Group>& line) {
    const auto found = line.max_and_sum([&](int64_t j) { return simt::widen(x[line.at(j)]); });
    const W maximum = found.maximum;
    const W factor = W(1) / found.sum;
    line.each([&](int64_t j) {
      y[line.at(j)] = simt::narrow<T>(vexp(simt::widen(x[line.at(j)]) - maximum) * factor);
    });
  });
}

template <class T, template <class> class Group>
__global__ void __launch_bounds__(kLineThreads, 2)
    log_softmax_forward_kernel(const T* x, T* y, AxisShape shape) {
  using W = Wide<T>;
  for_lines<W, Group>(shape, [&](const Line<W, Group>& line) {
    const auto found = line.max_and_sum([&](int64_t j) { return simt::widen(x[line.at(j)]); });
    const W maximum = found.maximum;
    const W log_sum = vlog(found.sum);
    line.each([&](int64_t j) {
      y[line.at(j)] = simt::narrow<T>(simt::widen(x[line.at(j)]) - maximum - log_sum);
    });
  });
}

template <class T, template <class> class Group>
__global__ void __launch_bounds__(kLineThreads, 2)
    softmax_backward_kernel(const T* dy, const T* y, T* dx, AxisShape shape) {
  using W = Wide<T>;
  for_lines<W, Group>(shape, [&](const Line<W, Group>& line) {
    const W dot = line.sum(
        [&](int64_t j) { return simt::widen(y[line.at(j)]) * simt::widen(dy[line.at(j)]); });
    line.each([&](int64_t j) {
      const W result = simt::widen(y[line.at(j)]), gradient = simt::widen(dy[line.at(j)]);
      dx[line.at(j)] = simt::narrow<T>(result * (gradient - dot));
    });
  });
}

template <class T, template <class> class Group>
__global__ void __launch_bounds__(kLineThreads, 2)
    log_softmax_backward_kernel(const T* dy, const T* y, T* dx, AxisShape shape) {
  using W = Wide<T>;
  for_lines<W, Group>(shape, [&](const Line<W, Group>& line) {
    const W sum = line.sum([&](int64_t j) { return simt::widen(dy[line.at(j)]); });
    line.each([&](int64_t j) {
      const W probability = vexp(simt::widen(y[line.at(j)]));
      dx[line.at(j)] = simt::narrow<T>(simt::widen(dy[line.at(j)]) - probability * sum);
    });
  });
}

// ----------------------------------------------------------------------------------------
// launchers

#define BRASA_LAUNCH(kernel, ...)                                     \
  if (shape.size() == 0) return;                                      \
  choose_group(shape, [&]<template <class> class Group>(dim3 grid) {  \
    simt::launch({.grid = grid,                                       \
                  .block = dim3(kLineThreads),                        \
                  .stream = static_cast<simt::stream_t>(ctx.stream)}, \
                 kernel<T, Group>, __VA_ARGS__, shape);               \
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
