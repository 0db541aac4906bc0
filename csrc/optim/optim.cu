#include "core/device.cuh"
#include "optim/optim.h"
#include "optim/rules.h"

namespace brasa::cuda {

constexpr int kThreads = 256;
/// Tensors of one launch: their table travels in the kernel's arguments, of which there are 4 KiB.
constexpr int64_t kTableTensors = 56;

template <class T> struct StepTable {
  StepTensor<T> tensors[kTableTensors];
  int count;
};

/// `params` with the numbers that the device has.
template <class Params> BRASA_DEVICE_FN Params read_params(Params params, StepNumbers numbers) {
  if (numbers.all) {
    auto* const number = reinterpret_cast<double*>(&params);
#pragma unroll
    for (int i = 0; i < Params::kNumbers; ++i) number[i] = numbers.all[i];
  }
  if (numbers.scale) params.scale = *numbers.scale;
  return params;
}

/// f(tensor, i) for the elements of this block's chunk.
template <class T, class F> BRASA_DEVICE_FN void for_chunk(const StepTable<T>& table, const F& f) {
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
  const int64_t from = (int64_t(blockIdx.x) - t.first_chunk) * kStepChunk;
  const int64_t to = from + kStepChunk < t.size ? from + kStepChunk : t.size;
  for (int64_t i = from + threadIdx.x; i < to; i += kThreads) f(t, i);
}

template <class T, class Rule, class Params>
__global__ void __launch_bounds__(kThreads, 2)
    step_kernel(StepTable<T> table, Params params, StepNumbers numbers) {
  const Rule rule(read_params(params, numbers));
  for_chunk(table, [&](const StepTensor<T>& t, int64_t i) {
    T p = t.param[i], s[kStepStates] = {};
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) s[k] = t.state[k][i];
    rule.apply(p, t.grad[i], s);
    t.param[i] = p;
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) t.state[k][i] = s[k];
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    unscale_kernel(StepTable<T> table, T scale, int32_t* found) {
  bool finite = true;
  for_chunk(table, [&](const StepTensor<T>& t, int64_t i) {
    const T x = t.param[i];
    finite = finite && x - x == T(0);
    if (scale != T(1)) t.param[i] = x * scale;
  });
  if (!finite) atomicExch(found, 1);
}

// ----------------------------------------------------------------------------------------
// launchers

/// One launch for every kTableTensors tensors.
template <class T, class Kernel, class... Arguments>
void launch_tables(Context ctx, const StepList<T>& list, Kernel kernel,
                   const Arguments&... arguments) {
  for (int64_t first = 0; first < list.count; first += kTableTensors) {
    const int64_t count = list.count - first < kTableTensors ? list.count - first : kTableTensors;
    const int64_t begin = list.tensors[first].first_chunk;
    const int64_t end =
        first + count < list.count ? list.tensors[first + count].first_chunk : list.chunks;
    if (end == begin) continue;
    StepTable<T> table{};
    table.count = int(count);
    for (int64_t i = 0; i < count; ++i) {
      table.tensors[i] = list.tensors[first + i];
      table.tensors[i].first_chunk -= begin;
    }
    simt::launch({.grid = dim3(unsigned(end - begin)),
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
void unscale_gradients(Context ctx, StepList<T> list, double scale, int32_t* found) {
  launch_tables(ctx, list, unscale_kernel<T>, scale, found);
}

BRASA_INSTANTIATE(sgd_step, float, double)
BRASA_INSTANTIATE(adam_step, float, double)
BRASA_INSTANTIATE(rmsprop_step, float, double)
BRASA_INSTANTIATE(adagrad_step, float, double)
BRASA_INSTANTIATE(adadelta_step, float, double)
BRASA_INSTANTIATE(unscale_gradients, float, double)

}  // namespace brasa::cuda
