#include "probe/probe.h"

#include "core/elementwise.h"
#include "core/parallel.h"
#include "core/tiles.h"

namespace brasa::cpu::BRASA_ISA {

constexpr int kChains = kTileRows * kTileVectors;

template <class T> int64_t fma_loop(Context ctx, T* sink, int64_t rounds) {
  parallel_team(ctx, [&](int member, int, const Barrier&) {
    Vec<T> chain[kChains];
    // Factor and term keep the values near 1: denormals or infinities would run at another speed.
    const Vec<T> factor = broadcast(T(0.5)), term = broadcast(T(0.5));
#pragma GCC unroll 32
    for (int i = 0; i < kChains; ++i) chain[i] = broadcast(T(1) + T(i) / kChains);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
      for (int i = 0; i < kChains; ++i) chain[i] = fma(chain[i], factor, term);
    }
    Vec<T> total{};
#pragma GCC unroll 32
    for (int i = 0; i < kChains; ++i) total += chain[i];
    store(sink + member * 64 / int64_t(sizeof(T)), total);
  });
  return rounds * kChains * kLanes<T> * 2;
}

template <class T> void copy_loop(Context ctx, const T* x, T* y, int64_t n) {
  map_large(ctx, n, [](Vec<T> v) { return v; }, y, x);
}

BRASA_INSTANTIATE(fma_loop, float, double)
BRASA_INSTANTIATE(copy_loop, float, double)

}  // namespace brasa::cpu::BRASA_ISA
