#include "core/device.cuh"
#include "optim/optim.h"
#include "optim/rules.h"

namespace brasa::cuda {

constexpr int kThreads = 256;
/// Tensors of one launch: their table travels in the kernel's arguments, of which there are 4 KiB.
/// ResNet-18 has 62; with two launches each of them had its own tail.
constexpr int64_t kTableTensors = 70;
/// Packs of 16 bytes that a thread reads of every array before it writes any.
constexpr int kPacks = 2;
/// Elements of a block. Small, so that the last ones of a launch end together.
template <class T> constexpr int64_t kBlockChunk = kThreads * kPacks * simt::kPackLanes<T>;

template <class T> struct StepTable {
  StepTensor<T> tensors[kTableTensors];
  int count;
};

/// `params` with the numbers that the device has.
template <class Params> BRASA_DEVICE_FN Params read_params(Params params, StepNumbers numbers) {
  if (numbers.all) {
    const int skipped = numbers.guard ? numbers.guard->skipped : 0;
    const int row = skipped < numbers.rows ? skipped : numbers.rows - 1;
    auto* const number = reinterpret_cast<double*>(&params);
#pragma unroll
    for (int i = 0; i < Params::kNumbers; ++i) number[i] = numbers.all[row * Params::kNumbers + i];
  }
  if (numbers.scale) params.scale = *numbers.scale;
  return params;
}

/// This block's part of a tensor.
template <class T> struct Chunk {
  const StepTensor<T>& tensor;
  int64_t from, to;
};

template <class T> BRASA_DEVICE_FN Chunk<T> chunk_of(const StepTable<T>& table) {
  // The tensor of the chunk: the last one whose first chunk is not after it.
  int low = 0, high = table.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table.tensors[middle].first_chunk <= int64_t(blockIdx.x))
      low = middle;
    else
      high = middle;
  }
  const StepTensor<T>& t = table.tensors[low];
  const int64_t from = (int64_t(blockIdx.x) - t.first_chunk) * kBlockChunk<T>;
  return {t, from, from + kBlockChunk<T> < t.size ? from + kBlockChunk<T> : t.size};
}

/// kPacks packs of an array, a block's threads side by side; those that do not fit before `to` are
/// zero, and are not written.
template <class T> struct Packs {
  static constexpr int kLanes = simt::kPackLanes<T>;
  simt::Pack<T, kLanes> pack[kPacks];

  static BRASA_DEVICE_FN int64_t at(int64_t from, int k) {
    return from + (int64_t(k) * kThreads + threadIdx.x) * kLanes;
  }
  BRASA_DEVICE_FN void read(const T* array, int64_t from, int64_t to) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      pack[k] = {};
      if (at(from, k) + kLanes <= to) pack[k] = simt::load_pack<kLanes>(array + at(from, k));
    }
  }
  BRASA_DEVICE_FN void write(T* array, int64_t from, int64_t to) const {
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
      if (at(from, k) + kLanes <= to) simt::store_pack(array + at(from, k), pack[k]);
  }
};

/// One after another: what packs leave over of a tensor, or all of an unaligned one.
template <class T, class Rule>
BRASA_DEVICE_FN void step_singles(const StepTensor<T>& t, int64_t from, int64_t to,
                                  const Rule& rule) {
#pragma unroll 1
  for (int64_t i = from + threadIdx.x; i < to; i += kThreads) {
    T p = t.param[i], s[kStepStates] = {};
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) s[k] = t.state[k][i];
    rule.apply(p, t.grad[i], s);
    t.param[i] = p;
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) t.state[k][i] = s[k];
  }
}

template <class T, class Rule>
BRASA_DEVICE_FN void step_packs(const StepTensor<T>& t, int64_t from, int64_t to,
                                const Rule& rule) {
  Packs<T> param, grad, state[kStepStates];
  param.read(t.param, from, to);
  grad.read(t.grad, from, to);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) state[k].read(t.state[k], from, to);
#pragma unroll
  for (int i = 0; i < kPacks; ++i)
#pragma unroll
    for (int lane = 0; lane < Packs<T>::kLanes; ++lane) {
      T s[kStepStates] = {};
#pragma unroll
      for (int k = 0; k < Rule::kStates; ++k) s[k] = state[k].pack[i][lane];
      rule.apply(param.pack[i][lane], grad.pack[i][lane], s);
#pragma unroll
      for (int k = 0; k < Rule::kStates; ++k) state[k].pack[i][lane] = s[k];
    }
  param.write(t.param, from, to);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) state[k].write(t.state[k], from, to);
}

template <class T, class Rule, class Params>
__global__ void __launch_bounds__(kThreads, 2)
    step_kernel(StepTable<T> table, Params params, StepNumbers numbers) {
  if (numbers.guard && numbers.guard->overflow) return;
  const Rule rule(read_params(params, numbers));
  const auto [t, from, to] = chunk_of(table);
  bool packs = simt::pack_aligned(t.param) && simt::pack_aligned(t.grad);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) packs = packs && simt::pack_aligned(t.state[k]);
  if (packs) step_packs(t, from, to, rule);
  step_singles(t, packs ? to - to % simt::kPackLanes<T> : from, to, rule);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    unscale_kernel(StepTable<T> table, T scale, const double* scale_at, int32_t* found) {
  if (scale_at) scale = T(*scale_at);
  const auto [t, from, to] = chunk_of(table);
  bool finite = true;
  const auto change = [&](T& x) {
    finite = finite && x - x == T(0);
    x *= scale;
  };
  const bool packs = simt::pack_aligned(t.param);
  if (packs) {
    Packs<T> mine;
    mine.read(t.param, from, to);
#pragma unroll
    for (int i = 0; i < kPacks; ++i)
#pragma unroll
      for (int lane = 0; lane < Packs<T>::kLanes; ++lane) change(mine.pack[i][lane]);
    if (scale != T(1)) mine.write(t.param, from, to);
  }
  const int64_t rest = packs ? to - to % simt::kPackLanes<T> : from;
  for (int64_t i = rest + threadIdx.x; i < to; i += kThreads) {
    T x = t.param[i];
    change(x);
    if (scale != T(1)) t.param[i] = x;
  }
  if (!finite) atomicExch(found, 1);
}

__global__ void update_scale_kernel(ScaleState* state, StepGuard* guards, int64_t count) {
  *state = next_scale(*state, guards, count);
}

// ----------------------------------------------------------------------------------------
// launchers

/// One launch for every kTableTensors tensors, cut into chunks of this device.
template <class T, class Kernel, class... Arguments>
void launch_tables(Context ctx, const StepList<T>& list, Kernel kernel,
                   const Arguments&... arguments) {
  for (int64_t first = 0; first < list.count; first += kTableTensors) {
    StepTable<T> table{};
    table.count = int(list.count - first < kTableTensors ? list.count - first : kTableTensors);
    int64_t chunks = 0;
    for (int i = 0; i < table.count; ++i) {
      table.tensors[i] = list.tensors[first + i];
      table.tensors[i].first_chunk = chunks;
      chunks += simt::ceil_div(table.tensors[i].size, kBlockChunk<T>);
    }
    if (chunks == 0) continue;
    simt::launch({.grid = dim3(unsigned(chunks)),
                  .block = dim3(kThreads),
                  .stream = static_cast<simt::stream_t>(ctx.stream)},
                 kernel, table, arguments...);
  }
}

template <class T, class Params>
void step_all(Context ctx, StepList<T> list, const Params& params, StepNumbers numbers) {
  with_rule<T>(params, [&]<class Rule>(const Rule&) {
    launch_tables(ctx, list, step_kernel<T, Rule, Params>, params, numbers);
  });
}

template <class T>
void sgd_step(Context ctx, StepList<T> list, SgdParams params, StepNumbers numbers) {
  step_all(ctx, list, params, numbers);
}
template <class T>
void adam_step(Context ctx, StepList<T> list, AdamParams params, StepNumbers numbers) {
  step_all(ctx, list, params, numbers);
}
template <class T>
void rmsprop_step(Context ctx, StepList<T> list, RmspropParams params, StepNumbers numbers) {
  step_all(ctx, list, params, numbers);
}
template <class T>
void adagrad_step(Context ctx, StepList<T> list, AdagradParams params, StepNumbers numbers) {
  step_all(ctx, list, params, numbers);
}
template <class T>
void adadelta_step(Context ctx, StepList<T> list, AdadeltaParams params, StepNumbers numbers) {
  step_all(ctx, list, params, numbers);
}

template <class T>
void unscale_gradients(Context ctx, StepList<T> list, double scale, const double* scale_at,
                       int32_t* found) {
  launch_tables(ctx, list, unscale_kernel<T>, scale, scale_at, found);
}

template <class T>
void update_scale(Context ctx, ScaleState* state, StepGuard* guards, int64_t count) {
  simt::launch(
      {.grid = dim3(1), .block = dim3(1), .stream = static_cast<simt::stream_t>(ctx.stream)},
      update_scale_kernel, state, guards, count);
}

BRASA_INSTANTIATE(sgd_step, float, double)
BRASA_INSTANTIATE(adam_step, float, double)
BRASA_INSTANTIATE(rmsprop_step, float, double)
BRASA_INSTANTIATE(adagrad_step, float, double)
BRASA_INSTANTIATE(adadelta_step, float, double)
BRASA_INSTANTIATE(unscale_gradients, float, double)
BRASA_INSTANTIATE(update_scale, double)

}  // namespace brasa::cuda
