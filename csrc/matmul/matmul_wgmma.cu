#include "core/driver.cuh"
#include "matmul/matmul_tensor.cuh"
#include "matmul/matmul_wgmma.cuh"

namespace brasa::cuda {

/// The tensor map of an operand whose tiles are `lines` rows (columns) high.
template <class T>
static simt::TensorMap map_operand(const TensorOperand& operand, const T* data, int64_t extent,
                                   int64_t depth, const BatchDims& batch, const int64_t* strides,
                                   int lines, bool& repeats) {
  constexpr int64_t kItem = sizeof(T), kDepth = kLine128 / kItem;
  simt::TensorBox box{.base = data, .item_bytes = int(kItem), .items = 1};
  const int64_t along = operand.along_depth ? depth : extent;
  const int64_t across = operand.along_depth ? extent : depth;
  box.extent[0] = along, box.extent[1] = across;
  box.stride[0] = operand.stride * kItem;
  const int64_t item = batch.rank > 0 ? strides[batch.rank - 1] : 0;
  repeats = item == 0;
  box.extent[2] = repeats ? 1 : batch.count;
  box.stride[1] = repeats ? across * box.stride[0] : item * kItem;
  box.lines = operand.along_depth ? lines : int(kDepth);
  return simt::make_tensor_map(box);
}

/// The tensor map of the results, in panels of 64 x 64; the left operand's where none is needed.
template <class T>
static simt::TensorMap map_results(const MatmulParams& p, T* y, const simt::TensorMap& unused,
                                   bool needed) {
  if (!needed) return unused;
  return simt::make_tensor_map(
      {.base = y,
       .item_bytes = int(sizeof(T)),
       .extent = {p.n, p.m, p.batch.count},
       .stride = {p.n * int64_t(sizeof(T)), p.m * p.n * int64_t(sizeof(T))},
       .lines = 64,
       .items = 1});
}

template <class T, class Tile, bool kLeftAlong, bool kRightAlong>
static void launch_wgmma_tile(simt::stream_t stream, const TensorPlan& plan, const T* a, const T* b,
                              const Results<T>& results) {
  using Left = MatrixLeft<T, Tile::kRows, kLeftAlong>;
  const MatmulParams& p = plan.p;
  WgmmaWork work{};
  Left left;
  work.order = {unsigned(simt::ceil_div<int64_t>(p.m, Tile::kRows)),
                unsigned(simt::ceil_div<int64_t>(p.n, Tile::kColumns))};
  work.splits = int(plan.splits), work.k = p.k, work.split_depth = plan.split_depth;
  work.items = p.batch.count, work.in_cluster = plan.in_cluster;
  work.units = int64_t(work.order.count()) * work.splits * work.items;
  const simt::TensorMap a_map =
      map_operand(plan.a, a, p.m, p.k, p.batch, p.batch.a_strides, Tile::kRows, left.repeats);
  const simt::TensorMap b_map =
      map_operand(plan.b, b, p.n, p.k, p.batch, p.batch.b_strides, Tile::kColumns, work.b_repeats);
  work.panels = leave_in_panels(results) && !work.in_cluster;
  const simt::TensorMap y_map = map_results(p, results.y, a_map, work.panels);
  const int64_t most = work.in_cluster ? work.units : simt::device_properties().multiprocessors;
  plan_stages<T, Tile>(work, most);
  simt::launch({.grid = dim3(unsigned(work.units < most ? work.units : most)),
                .block = dim3(kWgmmaThreads),
                .smem = sizeof(WgmmaShared<Tile>),
                .stream = stream,
                .cluster = work.in_cluster ? unsigned(work.splits) : 1},
               wgmma_kernel<T, Tile, Left, kRightAlong, Results<T>>, a_map, b_map, y_map, work,
               left, results);
}

template <class T, class Tile, bool kLeftAlong>
static void launch_wgmma_right(simt::stream_t stream, const TensorPlan& plan, const T* a,
                               const T* b, const Results<T>& results) {
  if constexpr (sizeof(T) == 2) {
    if (!plan.b.along_depth)
      return launch_wgmma_tile<T, Tile, kLeftAlong, false>(stream, plan, a, b, results);
  }
  launch_wgmma_tile<T, Tile, kLeftAlong, true>(stream, plan, a, b, results);
}

template <class T, int kColumns>
static void launch_wgmma_tall(simt::stream_t stream, const TensorPlan& plan, const T* a, const T* b,
                              const Results<T>& results) {
  if constexpr (sizeof(T) == 2) {
    if (!plan.a.along_depth)
      return launch_wgmma_right<T, WgmmaTile<kColumns>, false>(stream, plan, a, b, results);
  }
  launch_wgmma_right<T, WgmmaTile<kColumns>, true>(stream, plan, a, b, results);
}

template <class T>
void launch_wgmma(simt::stream_t stream, const TensorPlan& plan, const T* a, const T* b,
                  const Results<T>& results) {
  if constexpr (sizeof(T) == 4) {
    if (plan.thrice)
      return launch_wgmma_tile<T, ThriceWgmma, true, true>(stream, plan, a, b, results);
  }
  switch (plan.tile) {
    case TensorTile::wgmma_flat:
      return launch_wgmma_right<T, WgmmaTile<128, 64>, true>(stream, plan, a, b, results);
    case TensorTile::wgmma_64:
      return launch_wgmma_tall<T, 64>(stream, plan, a, b, results);
    case TensorTile::wgmma_128:
      return launch_wgmma_tall<T, 128>(stream, plan, a, b, results);
    case TensorTile::wgmma_192:
      return launch_wgmma_tall<T, 192>(stream, plan, a, b, results);
    default:
      return launch_wgmma_tall<T, 256>(stream, plan, a, b, results);
  }
}

#define BRASA_LAUNCH_WGMMA(T)                                                          \
  template void launch_wgmma<T>(simt::stream_t, const TensorPlan&, const T*, const T*, \
                                const Results<T>&);
BRASA_LAUNCH_WGMMA(float)
BRASA_LAUNCH_WGMMA(float16)
BRASA_LAUNCH_WGMMA(bfloat16)

}  // namespace brasa::cuda
