#include "core/device.cuh"
#include "softmax/lines.cuh"
#include "softmax/softmax.h"

namespace brasa::cuda {

template <class T, template <class> class Group>
__global__ void __launch_bounds__(kLineThreads, 2)
    softmax_forward_kernel(const T* x, T* y, AxisShape shape) {
  for_lines<T, Group>(shape, [&](const Line<T, Group>& line) {
    const auto found = line.max_and_sum([&](int64_t j) { return x[line.at(j)]; });
    const T maximum = found.maximum;
    const T factor = T(1) / found.sum;
    line.each([&](int64_t j) { y[line.at(j)] = vexp(x[line.at(j)] - maximum) * factor; });
  });
}

template <class T, template <class> class Group>
__global__ void __launch_bounds__(kLineThreads, 2)
    log_softmax_forward_kernel(const T* x, T* y, AxisShape shape) {
  for_lines<T, Group>(shape, [&](const Line<T, Group>& line) {
    const auto found = line.max_and_sum([&](int64_t j) { return x[line.at(j)]; });
    const T maximum = found.maximum;
    const T log_sum = vlog(found.sum);
    line.each([&](int64_t j) { y[line.at(j)] = x[line.at(j)] - maximum - log_sum; });
  });
}

template <class T, template <class> class Group>
__global__ void __launch_bounds__(kLineThreads, 2)
    softmax_backward_kernel(const T* dy, const T* y, T* dx, AxisShape shape) {
  for_lines<T, Group>(shape, [&](const Line<T, Group>& line) {
    const T dot = line.sum([&](int64_t j) { return y[line.at(j)] * dy[line.at(j)]; });
    line.each([&](int64_t j) { dx[line.at(j)] = y[line.at(j)] * (dy[line.at(j)] - dot); });
  });
}

template <class T, template <class> class Group>
__global__ void __launch_bounds__(kLineThreads, 2)
    log_softmax_backward_kernel(const T* dy, const T* y, T* dx, AxisShape shape) {
  for_lines<T, Group>(shape, [&](const Line<T, Group>& line) {
    const T sum = line.sum([&](int64_t j) { return dy[line.at(j)]; });
    line.each([&](int64_t j) { dx[line.at(j)] = dy[line.at(j)] - vexp(y[line.at(j)]) * sum; });
  });
}

// ----------------------------------------------------------------------------------------
// launchers

#define BRASA_LAUNCH(kernel, ...)                                       \
  if (shape.size() == 0) return;                                        \
  choose_group<T>(shape, [&]<template <class> class Group>(dim3 grid) { \
    simt::launch({.grid = grid,                                         \
                  .block = dim3(kLineThreads),                          \
                  .stream = static_cast<simt::stream_t>(ctx.stream)},   \
                 kernel<T, Group>, __VA_ARGS__, shape);                 \
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

BRASA_INSTANTIATE(softmax_forward, float, double) BRASA_INSTANTIATE(softmax_backward, float, double)
    BRASA_INSTANTIATE(log_softmax_forward, float, double)
        BRASA_INSTANTIATE(log_softmax_backward, float, double)

}  // namespace brasa::cuda
