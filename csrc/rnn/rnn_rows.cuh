// What the recurrent kernels on CUDA share: rows, lengths, clipped activations and their slopes,
// and the states before the first step.
#pragma once

#include "core/activations.h"
#include "core/device.cuh"
#include "rnn/rnn.h"
#include "rnn/rnn_tile.cuh"

namespace brasa::cuda {

constexpr int kStateThreads = 256;

/// The time that the forward pass is at; the backward walks the steps the other way round.
BRASA_DEVICE_FN int64_t time_of(const RnnParams& p, int64_t step) {
  return p.reverse ? p.steps - 1 - step : step;
}
BRASA_DEVICE_FN int64_t row_of(const RnnParams& p, int64_t t, int64_t b) {
  return t * p.row_step + b * p.row_batch;
}

/// A sample whose length is none lives to the end, on states of NaN.
BRASA_DEVICE_FN bool is_alive(const RnnParams& p, int64_t t, int64_t b) {
  if (!p.lengths) return true;
  const int64_t length = p.lengths[b];
  return t < length || length < 0;
}
BRASA_DEVICE_FN bool is_length(const RnnParams& p, int64_t b) {
  return !p.lengths || (p.lengths[b] >= 0 && p.lengths[b] <= p.steps);
}

/// The state before the living row (t, b): that of the row before, or the first one.
template <class T>
BRASA_DEVICE_FN T state_before(const RnnParams& p, const T* states, const T* start, int64_t width,
                               int64_t t, int64_t b, int64_t k) {
  const int64_t before = p.reverse ? t + 1 : t - 1;
  if (before >= 0 && before < p.steps && is_alive(p, before, b))
    return states[row_of(p, before, b) * width + k];
  return start ? start[b * width + k] : T(0);
}

/// Activations of what is limited to [-limit, limit], and their slopes in terms of the result: 0 at
/// either limit.
template <class T> struct Clipped {
  T limit;

  BRASA_DEVICE_FN T clip(T x) const { return x > limit ? limit : x < -limit ? -limit : x; }
  BRASA_DEVICE_FN T sigmoid(T x) const { return vsigmoid(clip(x)); }
  BRASA_DEVICE_FN T tanh(T x) const { return vtanh(clip(x)); }
  BRASA_DEVICE_FN T relu(T x) const { return Relu::forward(clip(x), T(0), T(0)); }

  BRASA_DEVICE_FN T sigmoid_slope(T y) const {
    if (limit < infinity<T>() && (y == vsigmoid(limit) || y == vsigmoid(-limit))) return T(0);
    return y * (T(1) - y);
  }
  BRASA_DEVICE_FN T tanh_slope(T y) const {
    if (limit < infinity<T>() && abs(y) == vtanh(limit)) return T(0);
    return T(1) - y * y;
  }
  BRASA_DEVICE_FN T relu_slope(T y) const {
    return y == limit ? T(0) : Relu::derivative(y, T(0), T(0));
  }
};

/// state = from, or 0; NaN for a sample whose length is none. `first` is the plane that step 0
/// reads, or has no data.
template <class T>
__global__ void __launch_bounds__(kStateThreads)
    start_states_kernel(RnnParams p, const T* from, T* state, int64_t width, Exchange<T> first) {
  const int64_t stride = int64_t(gridDim.x) * kStateThreads;
  for (int64_t i = int64_t(blockIdx.x) * kStateThreads + threadIdx.x; i < p.batch * width;
       i += stride) {
    const int64_t b = i / width;
    const T value = !is_length(p, b) ? T(0) / T(0) : from ? from[i] : T(0);
    state[i] = value;
    if (first.data) first.row(0, b)[i % width] = value;
  }
}

template <class T>
void start_states(Context ctx, const RnnParams& p, const T* from, T* state, int64_t width,
                  const Exchange<T>& first = {}) {
  if (p.batch * width == 0) return;
  simt::launch({.grid = simt::blocks_for(p.batch * width, kStateThreads),
                .block = dim3(kStateThreads),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               start_states_kernel<T>, p, from, state, width, first);
}

/// Elements of the exchanged rows of states, in two planes, and of what the second product of a
/// step reads, in one.
struct ExchangeSizes {
  int64_t states, second;

  int64_t elements(int64_t batch) const {
    return batch * (2 * step_pitch(states) + step_pitch(second));
  }
};

/// Both, in the workspace and filled with 0.
template <class T> struct Exchanges {
  Exchange<T> states, second;

  Exchanges(Context ctx, const RnnParams& p, const ExchangeSizes& sizes)
      : states{static_cast<T*>(ctx.workspace), step_pitch(sizes.states), p.batch, 2},
        second{states.data + 2 * p.batch * states.pitch, step_pitch(sizes.second), p.batch, 1} {
    const size_t bytes = size_t(sizes.elements(p.batch)) * sizeof(T);
    if (bytes) simt::memset_async(ctx.workspace, 0, bytes, static_cast<simt::stream_t>(ctx.stream));
  }
};

}  // namespace brasa::cuda
