// What the recurrent kernels on CUDA share: rows, lengths, clipped activations and their slopes,
// and the states before the first step.
#pragma once

#include "core/activations.h"
#include "core/device.cuh"
#include "core/ptx_convert.cuh"
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
BRASA_DEVICE_FN Wide<T> state_before(const RnnParams& p, const T* states, const T* start,
                                     int64_t width, int64_t t, int64_t b, int64_t k) {
  const int64_t before = p.reverse ? t + 1 : t - 1;
  if (before >= 0 && before < p.steps && is_alive(p, before, b))
    return simt::widen(states[row_of(p, before, b) * width + k]);
  return start ? simt::widen(start[b * width + k]) : Wide<T>(0);
}

/// Activations of what is limited to [-limit, limit], and their slopes in terms of the result as it
/// was stored: 0 at either limit.
template <class T> struct Clipped {
  using W = Wide<T>;
  W limit;

  explicit Clipped(const RnnParams& p) : limit(W(p.clip)) {}

  BRASA_DEVICE_FN W clip(W x) const { return x > limit ? limit : x < -limit ? -limit : x; }
  BRASA_DEVICE_FN W sigmoid(W x) const { return vsigmoid(clip(x)); }
  BRASA_DEVICE_FN W tanh(W x) const { return vtanh(clip(x)); }
  BRASA_DEVICE_FN W relu(W x) const { return Relu::forward(clip(x), W(0), W(0)); }

  static BRASA_DEVICE_FN W stored(W y) { return simt::widen(simt::narrow<T>(y)); }
  BRASA_DEVICE_FN W sigmoid_slope(W y) const {
    if (limit < infinity<W>() && (y == stored(vsigmoid(limit)) || y == stored(vsigmoid(-limit))))
      return W(0);
    return y * (W(1) - y);
  }
  BRASA_DEVICE_FN W tanh_slope(W y) const {
    if (limit < infinity<W>() && abs(y) == stored(vtanh(limit))) return W(0);
    return W(1) - y * y;
  }
  BRASA_DEVICE_FN W relu_slope(W y) const {
    return y == stored(limit) ? W(0) : Relu::derivative(y, W(0), W(0));
  }
};

/// Rows of states that are carried from step to step, in 16 bits unrounded beside what is returned
/// of them.
template <class T> struct Carried {
  Wide<T>* state;
  T* rounded;  ///< of 16 bits, or null

  /// In `result`, if that is wanted and can hold them, or in scratch memory.
  Carried(Wide<T>* scratch, T* result) : state(scratch), rounded(nullptr) {
    if constexpr (sizeof(T) == 2)
      rounded = result;
    else if (result)
      state = result;
  }
  BRASA_DEVICE_FN Wide<T> get(int64_t at) const { return state[at]; }
  BRASA_DEVICE_FN void put(int64_t at, Wide<T> value) const {
    state[at] = value;
    if constexpr (sizeof(T) == 2) {
      if (rounded) rounded[at] = simt::narrow<T>(value);
    }
  }
};

/// state = from, or 0; NaN for a sample whose length is none. `first` is the plane that step 0
/// reads, or has no data.
template <class T>
__global__ void __launch_bounds__(kStateThreads)
    start_states_kernel(RnnParams p, const T* from, Carried<T> state, int64_t width,
                        Exchange<T> first) {
  const int64_t stride = int64_t(gridDim.x) * kStateThreads;
#pragma unroll 1
  for (int64_t i = int64_t(blockIdx.x) * kStateThreads + threadIdx.x; i < p.batch * width;
       i += stride) {
    const int64_t b = i / width;
    Wide<T> value = from ? simt::widen(from[i]) : Wide<T>(0);
    if (!is_length(p, b)) value = Wide<T>(0) / Wide<T>(0);
    state.put(i, value);
    if (first.data) first.row(0, b)[i - b * width] = simt::narrow<T>(value);
  }
}

template <class T>
void start_states(Context ctx, const RnnParams& p, const T* from, const Carried<T>& state,
                  int64_t width, const Exchange<T>& first = {}) {
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

  template <class T> int64_t elements(int64_t batch) const {
    return batch * (2 * step_pitch<T>(states) + step_pitch<T>(second));
  }
  /// With the carried states.
  template <class T> size_t bytes(const RnnParams& p) const {
    return size_t(elements<T>(p.batch)) * sizeof(T) +
           size_t(p.batch * (p.state + p.hidden)) * sizeof(Wide<T>);
  }
};

/// The workspace: both, filled with 0, and room for carried states.
template <class T> struct Exchanges {
  Exchange<T> states, second;
  Wide<T>*h, *c;

  Exchanges(Context ctx, const RnnParams& p, const ExchangeSizes& sizes)
      : states{static_cast<T*>(ctx.workspace), step_pitch<T>(sizes.states), p.batch, 2},
        second{states.data + 2 * p.batch * states.pitch, step_pitch<T>(sizes.second), p.batch, 1} {
    const int64_t elements = sizes.elements<T>(p.batch);
    h = reinterpret_cast<Wide<T>*>(states.data + elements), c = h + p.batch * p.state;
    const size_t bytes = size_t(elements) * sizeof(T);
    if (bytes) simt::memset_async(ctx.workspace, 0, bytes, static_cast<simt::stream_t>(ctx.stream));
  }
};

}  // namespace brasa::cuda
