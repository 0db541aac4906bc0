// Convolutions on Hopper's tensor cores: the kernel of matmul/matmul_wgmma.cuh, whose left operand
// the copy engine gathers from an image. It walks the pixels of a grid by itself and fills in the
// padding; the loading thread tells it a tile's first pixel, a tap and a line of channels.
//
// The depth of a tap is whole lines, so an image of few channels would multiply zeros: those are
// left to conv_mma.cuh (conv_tensor.cu).
#include "conv/conv_tensor.cuh"
#include "core/driver.cuh"
#include "matmul/matmul_wgmma.cuh"

namespace brasa::cuda {

/// How pixels and taps are counted; pairs are of w and of h.
struct PixelWalk {
  simt::Divisor width, height, chunks, taps;  ///< chunks: lines of a tap; taps: of a row
  int first[2], step[2], apart[2], images, rows_of_taps;

  struct Place {
    int w, h, image;
  };
  BRASA_DEVICE_FN Place pixel(int64_t index) const {
    const auto w = int(width.take_remainder(index)), h = int(height.take_remainder(index));
    return {first[0] + w * step[0], first[1] + h * step[1], int(index)};
  }
  struct Tap {
    int channel, right, down;
    bool there;
  };
  template <class T> BRASA_DEVICE_FN Tap tap(int64_t line) const {
    const auto chunk = int(chunks.take_remainder(line)), across = int(taps.take_remainder(line));
    return {chunk * (kLine128 / int(sizeof(T))), across * apart[0], int(line) * apart[1],
            line < rows_of_taps};
  }
};

/// Rows are pixels, the depth is taps and channels.
template <class T> struct PixelLeft {
  static constexpr bool kAlong = true;
  static constexpr int kPixels = kWgmmaRows;  ///< of a box
  PixelWalk walk;

#if BRASA_HAS_WGMMA
  BRASA_DEVICE_FN void load(unsigned char* stage, const simt::TensorMap& map, simt::Barrier* full,
                            int first, int round, int) const {
    const auto at = walk.pixel(first);
    const auto tap = walk.tap<T>(round);
    simt::tma_load_pixels(stage, map, full, tap.channel, at.w, at.h, at.image, tap.right, tap.down);
  }
#endif
};

/// Rows are taps and channels, the depth is pixels.
template <class T> struct TapLeft {
  static constexpr bool kAlong = false;
  static constexpr int kPixels = kLine128 / int(sizeof(T));
  PixelWalk walk;

#if BRASA_HAS_WGMMA
  BRASA_DEVICE_FN void load(unsigned char* stage, const simt::TensorMap& map, simt::Barrier* full,
                            int first, int round, int) const {
    const auto at = walk.pixel(int64_t(round) * kPixels);
    for (int panel = 0; panel < kWgmmaRows / kPixels; ++panel) {
      const auto tap = walk.tap<T>(first / kPixels + panel);
      const int image = tap.there ? at.image : walk.images;  // behind the last one are zeros
      simt::tma_load_pixels(stage + panel * kPixels * kLine128, map, full, tap.channel, at.w, at.h,
                            image, tap.there ? tap.right : 0, tap.there ? tap.down : 0);
    }
  }
#endif
};

template <class T> static PixelWalk walk_of(const PixelOperand<T>& left) {
  constexpr int64_t kDepth = kLine128 / int64_t(sizeof(T));
  const Axis *w = &left.grid.axis[2], *h = &left.grid.axis[1];
  return {.width = simt::Divisor(w->count),
          .height = simt::Divisor(h->count),
          .chunks = simt::Divisor(simt::ceil_div(left.image.channels, kDepth)),
          .taps = simt::Divisor(w->taps),
          .first = {int(w->in_first), int(h->in_first)},
          .step = {int(w->in_step), int(h->in_step)},
          .apart = {int(w->tap_step), int(h->tap_step)},
          .images = int(left.pixels / (w->count * h->count)),
          .rows_of_taps = int(h->taps)};
}

template <class T>
static simt::TensorMap map_pixels(const PixelOperand<T>& left, const PixelWalk& walk, int pixels) {
  constexpr int64_t kItem = sizeof(T);
  const Layout5& layout = left.image.layout;
  simt::PixelBox box{};
  box.base = left.image.data, box.item_bytes = int(kItem), box.channels = left.image.channels;
  box.images = walk.images, box.stride[2] = layout.image * kItem, box.pixels = pixels;
  for (int d = 0; d < 2; ++d) {
    box.size[d] = layout.size[2 - d], box.stride[d] = layout.step[2 - d] * kItem;
    box.first[d] = walk.first[d], box.step[d] = walk.step[d];
    box.count[d] = int(left.grid.axis[2 - d].count);
  }
  return simt::make_pixel_map(box);
}

/// A matrix whose rows are `pitch` elements apart, in boxes of `lines` rows.
template <class T>
static simt::TensorMap map_matrix(const T* data, int64_t columns, int64_t rows, int64_t pitch,
                                  int lines) {
  constexpr int64_t kItem = sizeof(T);
  return simt::make_tensor_map({.base = data,
                                .item_bytes = int(kItem),
                                .extent = {columns, rows, 1},
                                .stride = {pitch * kItem, pitch * rows * kItem},
                                .lines = lines,
                                .items = 1});
}

template <class T, class Tile, class Left, class Rows>
static void launch_tile(simt::stream_t stream, const ConvCut& cut, const PixelOperand<T>& operand,
                        const ConvMatrix<T>& right, const Results<T, Rows>& results) {
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
  const simt::TensorMap y_map =
      work.panels ? map_matrix<T>(results.y, results.n, results.m, results.n, 64) : a_map;
  const int64_t most = simt::device_properties().multiprocessors;
  plan_stages<T, Tile>(work, most);
  simt::launch({.grid = dim3(unsigned(work.units < most ? work.units : most)),
                .block = dim3(kWgmmaThreads),
                .smem = sizeof(WgmmaShared<Tile>),
                .stream = stream},
               wgmma_kernel<T, Tile, Left, Left::kAlong, Rows>, a_map, b_map, y_map, work, left,
               results);
}

template <class Left, class T, class Rows>
static void launch(simt::stream_t stream, const ConvPlan& plan, const PixelOperand<T>& left,
                   const ConvMatrix<T>& right, const Results<T, Rows>& results) {
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
                          const ConvMatrix<T>& right, const Results<T>& results) {
  launch<TapLeft<T>>(stream, plan, left, right, results);
}

#define BRASA_WALK_PIXELS(T)                                                                     \
  template void launch_walked_pixels<T>(simt::stream_t, const ConvPlan&, const PixelOperand<T>&, \
                                        const ConvMatrix<T>&, const Results<T, PixelRows>&);
#define BRASA_WALK_WEIGHT(T)                                                                     \
  template void launch_walked_weight<T>(simt::stream_t, const ConvPlan&, const PixelOperand<T>&, \
                                        const ConvMatrix<T>&, const Results<T>&);
BRASA_WALK_PIXELS(float)
BRASA_WALK_PIXELS(float16)
BRASA_WALK_PIXELS(bfloat16)
BRASA_WALK_WEIGHT(float16)
BRASA_WALK_WEIGHT(bfloat16)

}  // namespace brasa::cuda
