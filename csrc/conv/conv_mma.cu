#include "conv/conv_mma.cuh"

namespace brasa::cuda {

template <class T, class Tile, bool kGradient, class Results>
static void launch_tile(simt::stream_t stream, const ConvCut& cut, int64_t groups,
                        const PixelOperand<T>& left, const ConvMatrix<T>& right,
                        const Results& results) {
  const TileOrder order{unsigned(simt::ceil_div<int64_t>(results.m, Tile::kRows)),
                        unsigned(simt::ceil_div<int64_t>(results.n, Tile::kColumns))};
  simt::launch({.grid = dim3(order.count(), unsigned(cut.splits), grid_z(groups)),
                .block = dim3(Tile::kThreads),
                .smem = size_t(Tile::kStages) * Tile::kStageBytes,
                .stream = stream},
               conv_mma_kernel<T, Tile, kGradient, Results>, left, right, order, cut, groups,
               results);
}

template <bool kGradient, class T, class Results>
static void launch(simt::stream_t stream, const ConvPlan& plan, int64_t groups,
                   const PixelOperand<T>& left, const ConvMatrix<T>& right,
                   const Results& results) {
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
                   const PixelOperand<T>& left, const ConvMatrix<T>& right, const PartSums& parts) {
  launch<true>(stream, plan, groups, left, right, parts);
}

#define BRASA_LAUNCH_CONV(T)                                                                       \
  template void launch_pixels<T>(simt::stream_t, const ConvPlan&, int64_t, const PixelOperand<T>&, \
                                 const ConvMatrix<T>&, const Results<T, PixelRows>&);              \
  template void launch_weight<T>(simt::stream_t, const ConvPlan&, int64_t, const PixelOperand<T>&, \
                                 const ConvMatrix<T>&, const PartSums&);
BRASA_LAUNCH_CONV(float)
BRASA_LAUNCH_CONV(float16)
BRASA_LAUNCH_CONV(bfloat16)

}  // namespace brasa::cuda
