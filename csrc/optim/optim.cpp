#include "optim/optim.h"

#include "core/elementwise.h"
#include "optim/rules.h"

namespace brasa::cpu::BRASA_ISA {
namespace {

/// Up to this many elements one thread steps alone: it takes some 10 us.
constexpr int64_t kSerialStep = 32 * 1024;

/// Element i and the live - 1 after it.
template <class T, class Rule>
BRASA_INLINE void step_vector(const StepTensor<T>& t, const Rule& rule, int64_t i, int64_t live) {
  Vec<T> p = read(t.param + i, live), s[kStepStates] = {};
  for (int k = 0; k < Rule::kStates; ++k) s[k] = read(t.state[k] + i, live);
  rule.apply(p, read(t.grad + i, live), s);
  write(t.param + i, p, live);
  for (int k = 0; k < Rule::kStates; ++k) write(t.state[k] + i, s[k], live);
}

template <class T, class Rule>
void step_range(const StepTensor<T>& tensor, const Rule& rule, int64_t begin, int64_t end) {
  const StepTensor<T> t = tensor;
  const Rule r = rule;
  int64_t i = begin;
  for (; i + kLanes<T> <= end; i += kLanes<T>) step_vector(t, r, i, kLanes<T>);
  if (i < end) step_vector(t, r, i, end - i);
}

/// The last tensor whose first chunk is not after `chunk`.
template <class T> int64_t tensor_of_chunk(const StepList<T>& list, int64_t chunk) {
  int64_t low = 0, high = list.count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (list.tensors[middle].first_chunk <= chunk ? low : high) = middle;
  }
  return low;
}

/// f(tensor, begin, end) for the chunks of all tensors.
template <class T, class F> void for_chunks(Context ctx, const StepList<T>& list, const F& f) {
  if (list.elements <= kSerialStep) ctx.threads = 1;
  parallel_for(ctx, list.chunks, 1, [&](int64_t begin, int64_t end) {
    int64_t t = tensor_of_chunk(list, begin);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      while (t + 1 < list.count && list.tensors[t + 1].first_chunk <= chunk) ++t;
      const StepTensor<T>& tensor = list.tensors[t];
      const int64_t from = (chunk - tensor.first_chunk) * kStepChunk;
      const int64_t left = tensor.size - from;
      f(tensor, from, from + (left < kStepChunk ? left : kStepChunk));
    }
  });
}

template <class T, class Params>
void step_all(Context ctx, StepList<T> list, const Params& params) {
  with_rule<T>(params, [&](const auto& rule) {
    for_chunks(ctx, list, [&](const StepTensor<T>& tensor, int64_t begin, int64_t end) {
      step_range(tensor, rule, begin, end);
    });
  });
}

/// Whether an element of g is infinite or NaN; each is multiplied with `scale`, where that is
/// not 1.
template <class T> bool unscale_range(T* g, T scale, int64_t begin, int64_t end) {
  Vec<T> differences{};  // x - x is 0 for numbers
  for (int64_t i = begin; i < end; i += kLanes<T>) {
    const int64_t live = end - i < kLanes<T> ? end - i : kLanes<T>;
    const Vec<T> x = read(g + i, live);
    differences += x - x;
    if (scale != T(1)) write(g + i, x * scale, live);
  }
  return fold_lanes(differences, [](auto a, auto b) { return a + b; }) != T(0);
}

}  // namespace

template <class T> void sgd_step(Context ctx, StepList<T> list, SgdParams params, StepNumbers) {
  step_all(ctx, list, params);
}
template <class T> void adam_step(Context ctx, StepList<T> list, AdamParams params, StepNumbers) {
  step_all(ctx, list, params);
}
template <class T>
void rmsprop_step(Context ctx, StepList<T> list, RmspropParams params, StepNumbers) {
  step_all(ctx, list, params);
}
template <class T>
void adagrad_step(Context ctx, StepList<T> list, AdagradParams params, StepNumbers) {
  step_all(ctx, list, params);
}
template <class T>
void adadelta_step(Context ctx, StepList<T> list, AdadeltaParams params, StepNumbers) {
  step_all(ctx, list, params);
}

template <class T>
void unscale_gradients(Context ctx, StepList<T> list, double scale, const double*, int32_t* found) {
  for_chunks(ctx, list, [&](const StepTensor<T>& tensor, int64_t begin, int64_t end) {
    if (unscale_range(tensor.param, T(scale), begin, end))
      __atomic_store_n(found, 1, __ATOMIC_RELAXED);
  });
}

template <class T> void update_scale(Context, ScaleState* state, StepGuard* guards, int64_t count) {
  *state = next_scale(*state, guards, count);
}

BRASA_INSTANTIATE(sgd_step, float, double)
BRASA_INSTANTIATE(adam_step, float, double)
BRASA_INSTANTIATE(rmsprop_step, float, double)
BRASA_INSTANTIATE(adagrad_step, float, double)
BRASA_INSTANTIATE(adadelta_step, float, double)
BRASA_INSTANTIATE(unscale_gradients, float, double)
BRASA_INSTANTIATE(update_scale, double)

}  // namespace brasa::cpu::BRASA_ISA
