// Convolutions on Hopper's tensor cores: the kernel of matmul/matmul_wgmma.cuh, whose left operand
// the copy engine gathers from an image. It walks the pixels of a grid by itself and fills in the
// padding; the loading thread tells it a tile's first pixel, a tap and a line of channels.
//
// The depth of a tap is whole lines, so an image of few channels would multiply zeros: those are
// left to conv_mma.cuh (conv_tensor.cu).
#include "conv/conv_walk.cuh"

namespace brasa::cuda {

/// Rows are pixels, the depth is taps and channels.
template <class T> struct PixelLeft {
  static constexpr bool kAlong = true;
  static constexpr int kPixels = kWgmmaRows;  ///< of a box
  PixelWalk walk;

#if BRASA_HAS_WGMMA
  struct Cursor {
    const PixelWalk& walk;
    PixelWalk::Place at;
    PixelWalk::Tap tap;
    BRASA_DEVICE_FN void load(unsigned char* stage, const simt::TensorMap& map,
                              simt::Barrier* full) {
      simt::tma_load_pixels(stage, map, full, tap.channel, at.w, at.h, at.image, tap.right,
                            tap.down);
      walk.template advance<T>(tap);
    }
  };
  BRASA_DEVICE_FN Cursor start(int first, int round, int) const {
    return {walk, walk.pixel(first), walk.template tap<T>(round)};
  }
#endif
};

/// Rows are taps and channels, the depth is pixels. The loading thread has 850 cycles for a round,
/// and divisions would take most of them: taps stay, and pixels are stepped on.
template <class T> struct TapLeft {
  static constexpr bool kAlong = false;
  static constexpr int kPixels = kLine128 / int(sizeof(T)), kPanels = kWgmmaRows / kPixels;
  PixelWalk walk;

#if BRASA_HAS_WGMMA
  struct Cursor {
    const PixelWalk& walk;
    PixelWalk::Place at, step;  ///< in pixels of the grid
    PixelWalk::Tap tap[kPanels];
    BRASA_DEVICE_FN void load(unsigned char* stage, const simt::TensorMap& map,
                              simt::Barrier* full) {
      const int w = walk.first[0] + at.w * walk.step[0], h = walk.first[1] + at.h * walk.step[1];
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        const int image = tap[p].there ? at.image : walk.images;  // behind the last one are zeros
        simt::tma_load_pixels(stage + p * kPixels * kLine128, map, full, tap[p].channel, w, h,
                              image, tap[p].right, tap[p].down);
      }
      walk.advance(at, step);
    }
  };
  BRASA_DEVICE_FN Cursor start(int first, int round, int) const {
    Cursor cursor{walk, walk.place(int64_t(round) * kPixels), walk.place(kPixels), {}};
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      cursor.tap[p] = walk.template tap<T>(first / kPixels + p);
      if (!cursor.tap[p].there) cursor.tap[p].right = cursor.tap[p].down = 0;
    }
    return cursor;
  }
#endif
};

template <class T, class Tile, class Left, class Results>
static void launch_tile(simt::stream_t stream, const ConvCut& cut, const PixelOperand<T>& operand,
                        const ConvMatrix<T>& right, const Results& results) {
  constexpr int kDepth = kLine128 / int(sizeof(T));
  const Left left{walk_of(operand)};
  WgmmaWork work{};
  work.order = {unsigned(simt::ceil_div<int64_t>(results.m, kWgmmaRows)),
                unsigned(simt::ceil_div<int64_t>(results.n, Tile::kColumns))};
  work.splits = int(cut.splits), work.k = cut.depth, work.split_depth = cut.split_depth;
  work.items = 1, work.b_repeats = true;
  work.units = int64_t(work.order.count()) * work.splits;
  work.panels = leave_in_panels(results);
  const simt::TensorMap a_map = map_pixels(operand, left.walk, Left::kPixels);
  const simt::TensorMap b_map =
      Left::kAlong ? map_matrix(right.data, cut.depth, results.n, right.stride, Tile::kColumns)
                   : map_matrix(right.data, results.n, cut.depth, right.stride, kDepth);
  simt::TensorMap y_map = a_map;
  if constexpr (!std::is_same_v<Results, PartSums>) {
    if (work.panels) y_map = map_matrix<T>(results.y, results.n, results.m, results.n, 64);
  }
  const int64_t most = simt::device_properties().multiprocessors;
  plan_stages<T, Tile>(work, most);
  simt::launch({.grid = dim3(unsigned(work.units < most ? work.units : most)),
                .block = dim3(kWgmmaThreads),
                .smem = sizeof(WgmmaShared<Tile>),
                .stream = stream},
               wgmma_kernel<T, Tile, Left, Left::kAlong, Results>, a_map, b_map, y_map, work, left,
               results);
}

template <class Left, class T, class Results>
static void launch(simt::stream_t stream, const ConvPlan& plan, const PixelOperand<T>& left,
                   const ConvMatrix<T>& right, const Results& results) {
  switch (plan.tile) {
    case ConvTile::wgmma_wide:
      return launch_tile<T, WgmmaTile<256>, Left>(stream, plan.cut, left, right, results);
    case ConvTile::wgmma:
      return launch_tile<T, WgmmaTile<128>, Left>(stream, plan.cut, left, right, results);
    default:
      return launch_tile<T, WgmmaTile<64>, Left>(stream, plan.cut, left, right, results);
  }
}

template <class T>
void launch_walked_pixels(simt::stream_t stream, const ConvPlan& plan, const PixelOperand<T>& left,
                          const ConvMatrix<T>& right, const Results<T, PixelRows>& results) {
  launch<PixelLeft<T>>(stream, plan, left, right, results);
}

template <class T>
void launch_walked_weight(simt::stream_t stream, const ConvPlan& plan, const PixelOperand<T>& left,
                          const ConvMatrix<T>& right, const PartSums& parts) {
  launch<TapLeft<T>>(stream, plan, left, right, parts);
}

#define BRASA_WALK_PIXELS(T)                                                                     \
  template void launch_walked_pixels<T>(simt::stream_t, const ConvPlan&, const PixelOperand<T>&, \
                                        const ConvMatrix<T>&, const Results<T, PixelRows>&);
#define BRASA_WALK_WEIGHT(T)                                                                     \
  template void launch_walked_weight<T>(simt::stream_t, const ConvPlan&, const PixelOperand<T>&, \
                                        const ConvMatrix<T>&, const PartSums&);
BRASA_WALK_PIXELS(float)
BRASA_WALK_PIXELS(float16)
BRASA_WALK_PIXELS(bfloat16)
BRASA_WALK_WEIGHT(float16)
BRASA_WALK_WEIGHT(bfloat16)

}  // namespace brasa::cuda
