#include "matmul/matmul_mma.cuh"
#include "matmul/matmul_tensor.cuh"

namespace brasa::cuda {

constexpr int64_t kMaxGridZ = 65535;

template <class T, class Tile, bool kLeftAlong, bool kRightAlong>
static void launch_tile(simt::stream_t stream, const TensorPlan& plan, const T* a, const T* b,
                        const Results<T>& results) {
  const MatmulParams& p = plan.p;
  const TileOrder order{unsigned(simt::ceil_div<int64_t>(p.m, Tile::kRows)),
                        unsigned(simt::ceil_div<int64_t>(p.n, Tile::kColumns))};
  const int64_t items = p.batch.count < kMaxGridZ ? p.batch.count : kMaxGridZ;
  const unsigned cluster = plan.in_cluster ? unsigned(plan.splits) : 1;
  simt::launch(
      {.grid = dim3(order.count() * cluster, unsigned(plan.splits) / cluster, unsigned(items)),
       .block = dim3(Tile::kThreads),
       .smem = size_t(Tile::kStages) * Tile::kStageBytes,
       .stream = stream,
       .cluster = cluster},
      mma_kernel<T, Tile, kLeftAlong, kRightAlong>, p, order, plan.a.stride, plan.b.stride,
      plan.split_depth, cluster, a, b, results);
}

template <class T, class Tile, bool kLeftAlong>
static void launch_right(simt::stream_t stream, const TensorPlan& plan, const T* a, const T* b,
                         const Results<T>& results) {
  plan.b.along_depth ? launch_tile<T, Tile, kLeftAlong, true>(stream, plan, a, b, results)
                     : launch_tile<T, Tile, kLeftAlong, false>(stream, plan, a, b, results);
}

template <class T, class Tile>
static void launch_both(simt::stream_t stream, const TensorPlan& plan, const T* a, const T* b,
                        const Results<T>& results) {
  plan.a.along_depth ? launch_right<T, Tile, true>(stream, plan, a, b, results)
                     : launch_right<T, Tile, false>(stream, plan, a, b, results);
}

template <class T>
void launch_mma(simt::stream_t stream, const TensorPlan& plan, const T* a, const T* b,
                const Results<T>& results) {
  if constexpr (sizeof(T) == 4) {
    if (plan.thrice) return launch_tile<T, ThriceTile, true, true>(stream, plan, a, b, results);
  }
  switch (plan.tile) {
    case TensorTile::few_rows:
      return launch_right<T, FewRowsTile, true>(stream, plan, a, b, results);
    case TensorTile::flat:
      return launch_right<T, FlatTile, true>(stream, plan, a, b, results);
    case TensorTile::small:
      return launch_both<T, SmallTile>(stream, plan, a, b, results);
    default:
      return launch_both<T, LargeTile>(stream, plan, a, b, results);
  }
}

#define BRASA_LAUNCH_MMA(T)                                                          \
  template void launch_mma<T>(simt::stream_t, const TensorPlan&, const T*, const T*, \
                              const Results<T>&);
BRASA_LAUNCH_MMA(float)
BRASA_LAUNCH_MMA(float16)
BRASA_LAUNCH_MMA(bfloat16)

}  // namespace brasa::cuda
