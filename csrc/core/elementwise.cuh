// The loop of functions of one array.
#pragma once

#include "core/device.cuh"
#include "core/ptx_convert.cuh"

namespace brasa::simt {

/// y[i] = f(x[i]) for i < n, in packs where `packs` says that both are aligned for them. A thread
/// reads its next pack before it computes with the last one: a warp that computes for as long as
/// memory takes (gelu: 60 instructions per element) would otherwise wait for a quarter of its time.
/// y may be x. Fewer lanes than a pack has are for functions of which eight copies would be large.
template <int kFewer = 0, class T, class F>
BRASA_DEVICE_FN void map_packs(const T* x, T* y, int64_t n, bool packs, const F& f) {
  constexpr int kLanes = kFewer ? kFewer : kPackLanes<T>;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t whole = packs ? n / kLanes : 0;
  Lanes<Wide<T>, kLanes> v{}, next{};
  if (thread < whole) next = load_wide<kLanes>(x + thread * kLanes);
  for (int64_t i = thread; i < whole; i += stride) {
    v = next;
    if (i + stride < whole) next = load_wide<kLanes>(x + (i + stride) * kLanes);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) v[k] = f(v[k]);
    store_wide(y + i * kLanes, v);
  }
#pragma unroll 1
  for (int64_t i = whole * kLanes + thread; i < n; i += stride) y[i] = narrow<T>(f(widen(x[i])));
}

}  // namespace brasa::simt
