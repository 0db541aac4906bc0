#include "conv/conv_mma.cuh"

namespace brasa::cuda {

template <class T, class Tile, bool kGradient, class Rows>
static void launch_tile(simt::stream_t stream, const ConvCut& cut, int64_t groups,
                        const PixelOperand<T>& left, const ConvMatrix<T>& right,
                        const Results<T, Rows>& results) {
  const TileOrder order{unsigned(simt::ceil_div<int64_t>(results.m, Tile::kRows)),
                        unsigned(simt::ceil_div<int64_t>(results.n, Tile::kColumns))};
  simt::launch({.grid = dim3(order.count(), unsigned(cut.splits), grid_z(groups)),
                .block = dim3(Tile::kThreads),
                .smem = size_t(Tile::kStages) * Tile::kStageBytes,
                .stream = stream},
               conv_mma_kernel<T, Tile, kGradient, Rows>, left, right, order, cut, groups, results);
}

template <bool kGradient, class T, class Rows>
static void launch(simt::stream_t stream, const ConvPlan& plan, int64_t groups,
                   const PixelOperand<T>& left, const ConvMatrix<T>& right,
                   const Results<T, Rows>& results) {
  switch (plan.tile) {
    case ConvTile::large:
      return launch_tile<T, LargeTile, kGradient>(stream, plan.cut, groups, left, right, results);
    case ConvTile::tall:
      return launch_tile<T, TallTile, kGradient>(stream, plan.cut, groups, left, right, results);
    default:
      return launch_tile<T, SmallTile, kGradient>(stream, plan.cut, groups, left, right, results);
  }
}

template <class T>
void launch_pixels(simt::stream_t stream, const ConvPlan& plan, int64_t groups,
                   const PixelOperand<T>& left, const ConvMatrix<T>& right,
                   const Results<T, PixelRows>& results) {
  launch<false>(stream, plan, groups, left, right, results);
}

template <class T>
void launch_weight(simt::stream_t stream, const ConvPlan& plan, int64_t groups,
                   const PixelOperand<T>& left, const ConvMatrix<T>& right,
                   const Results<T>& results) {
  launch<true>(stream, plan, groups, left, right, results);
}

#define BRASA_LAUNCH_CONV(T)                                                                       \
  template void launch_pixels<T>(simt::stream_t, const ConvPlan&, int64_t, const PixelOperand<T>&, \
                                 const ConvMatrix<T>&, const Results<T, PixelRows>&);              \
  template void launch_weight<T>(simt::stream_t, const ConvPlan&, int64_t, const PixelOperand<T>&, \
                                 const ConvMatrix<T>&, const Results<T>&);
BRASA_LAUNCH_CONV(float)
BRASA_LAUNCH_CONV(float16)
BRASA_LAUNCH_CONV(bfloat16)

}  // namespace brasa::cuda
