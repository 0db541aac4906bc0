// Backward data of a convolution in strides on Hopper's tensor cores: the residue classes of its
// pixels, each a product with taps of its own, in one launch.
//
// Tiles of all classes are dealt to the blocks that stay, those of the most taps first, so that
// what one block has more than another is a tile of the fewest. The weights of all classes lie side
// by side in the depth. A class's pixels are every so many of dx: the copy engine walks them as an
// image of their own and writes finished panels. A class that no tap meets is zeros.
//
// Floor: as in matmul_wgmma.cuh. Before, each class was a launch, its results went through
// registers row by row, and 128 to 128 channels of 3x3 in strides of 2 (64 x 56 x 56) took 101 us
// on an H100, four times 21 us whatever the taps and 2 us for each tap.
#include "conv/conv_walk.cuh"

namespace brasa::cuda {

/// The tiles of one class.
struct ClassShare {
  PixelWalk walk;
  TileOrder order;
  int64_t first_unit;
  int first_round, rounds;
};
struct ClassWork {
  int count;
  int64_t units;
  ClassShare share[kMostClasses];
};
struct ClassMaps {
  simt::TensorMap left[kMostClasses], results[kMostClasses], right;
};

/// A tile: of which class, and where.
struct ClassUnit {
  int index;
  int64_t row;
  int column;

  template <class Tile> static BRASA_DEVICE_FN ClassUnit at(const ClassWork& work, int64_t unit) {
    int index = 0;
    while (index + 1 < work.count && work.share[index + 1].first_unit <= unit) ++index;
    const ClassShare& share = work.share[index];
    unsigned row, column;
    share.order.place(unsigned(unit - share.first_unit), row, column);
    return {index, int64_t(row) * kWgmmaRows, int(column) * Tile::kColumns};
  }
};

#if BRASA_HAS_WGMMA

/// The loading thread.
template <class T, class Tile>
BRASA_DEVICE_FN void load_classes(WgmmaShared<Tile>& shared, const ClassMaps& maps,
                                  const ClassWork& work) {
  constexpr int kDepth = kLine128 / int(sizeof(T));
  RingPlace<Tile::kStages> ring;
  for (int64_t unit = blockIdx.x; unit < work.units; unit += gridDim.x) {
    const auto u = ClassUnit::at<Tile>(work, unit);
    const ClassShare& share = work.share[u.index];
    const auto at = share.walk.pixel(u.row);
    auto tap = share.walk.tap<T>(0);
    for (int round = 0; round < share.rounds; ++round, ring.advance()) {
      unsigned char* stage = shared.stage[ring.stage];
      simt::Barrier* full = &shared.full[ring.stage];
      simt::barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
      simt::barrier_expect(full, Tile::kStageBytes);
      simt::tma_load_pixels(stage, maps.left[u.index], full, tap.channel, at.w, at.h, at.image,
                            tap.right, tap.down);
      simt::tma_load(stage + Tile::kLeftBytes, maps.right, full,
                     (share.first_round + round) * kDepth, u.column, 0);
      share.walk.advance<T>(tap);
    }
  }
}

/// Stores a warpgroup's 64 pixels in panels of 64 channels, which take turns: pair(i) is the sums i
/// and i + 1.
template <class T, class Tile, class Pair>
BRASA_DEVICE_FN void store_class(WgmmaShared<Tile>& shared, const simt::TensorMap& map,
                                 const PixelWalk& walk, int multiplier, int64_t row, int column,
                                 const Pair& pair) {
  const int thread = int(threadIdx.x) % kGroupThreads, lane = thread % simt::kWarpSize;
  const int line = thread / simt::kWarpSize * kStageRows + lane % 8 + lane / 8 % 2 * 8;
  const auto at = walk.place(row);
#pragma unroll
  for (int p = 0; p < Tile::kColumns / 64; ++p) {
    unsigned char* panel = shared.panel[multiplier][p % 2];
    if (thread == 0) simt::tma_store_wait<(Tile::kColumns > 64 ? 1 : 0)>();
    simt::bar_sync(1 + multiplier, kGroupThreads);
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) words[w] = pair(4 * (8 * p + j + w / 2) + 2 * (w % 2));
      const int piece = (j + lane / 16) ^ (line & 7);
      simt::stmatrix_x4(panel + line * kLine128 + piece * 16, words);
    }
    simt::tma_store_fence();
    simt::bar_sync(1 + multiplier, kGroupThreads);
    if (thread == 0 && at.image < walk.images)
      simt::tma_store_pixels(map, panel, column + 64 * p, at.w, at.h, at.image);
  }
}

/// A multiplying warpgroup.
template <class T, class Tile>
BRASA_DEVICE_FN void multiply_classes(WgmmaShared<Tile>& shared, const ClassMaps& maps,
                                      const ClassWork& work) {
  const int multiplier = int(threadIdx.x) / kGroupThreads - 1;
  const bool speaks = threadIdx.x % kGroupThreads == 0;
  const auto give_back = [&](int stage) {
    if (speaks) simt::barrier_arrive(&shared.empty[stage]);
  };
  RingPlace<Tile::kStages> ring;
  for (int64_t unit = blockIdx.x; unit < work.units; unit += gridDim.x) {
    const auto u = ClassUnit::at<Tile>(work, unit);
    const ClassShare& share = work.share[u.index];
    float sum[Tile::kColumns / 2];
    int before = 0;
#pragma unroll 1
    for (int round = 0; round < share.rounds; ++round) {
      simt::barrier_wait(&shared.full[ring.stage], ring.parity);
      multiply_stage<T, Tile, true, true>(shared.stage[ring.stage], multiplier, round == 0, sum);
      if (round > 0) {
        simt::wgmma_wait<1>();
        give_back(before);
      }
      before = ring.stage;
      ring.advance();
    }
    simt::wgmma_wait<0>();
    simt::wgmma_done(sum);
    if (share.rounds > 0) give_back(before);
    const bool zero = share.rounds == 0;
    store_class<T, Tile>(
        shared, maps.results[u.index], share.walk, multiplier, u.row + 64 * multiplier, u.column,
        [&](int i) { return zero ? 0u : simt::narrow_pair<T>(sum[i], sum[i + 1]); });
  }
  if (speaks) simt::tma_store_wait<0>();  // the block's shared memory is read until then
}

#endif

template <class T, class Tile>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    class_kernel(const __grid_constant__ ClassMaps maps, const __grid_constant__ ClassWork work) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(WgmmaShared<Tile>, shared);
  if (threadIdx.x == 0) {
    for (int s = 0; s < Tile::kStages; ++s) {
      simt::barrier_init(&shared->full[s], 1);
      simt::barrier_init(&shared->empty[s], kMultipliers);
    }
    simt::barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < kGroupThreads) {
    simt::release_registers<40>();
    if (threadIdx.x == 0) load_classes<T, Tile>(*shared, maps, work);
  } else {
    simt::acquire_registers<232>();
    multiply_classes<T, Tile>(*shared, maps, work);
  }
#endif
}

/// The pixels of a class, as an image of its own.
template <class T>
static simt::TensorMap map_class(const ConvClass& c, const Layout5& layout, T* dx, int64_t channels,
                                 int images) {
  constexpr int64_t kItem = sizeof(T);
  simt::PixelBox box{};
  box.item_bytes = int(kItem), box.channels = channels, box.images = images, box.pixels = 64;
  box.stride[2] = layout.image * kItem;
  for (int d = 0; d < 2; ++d) {
    const Axis& axis = c.axis[2 - d];
    dx += axis.out_first * layout.step[2 - d];
    box.size[d] = axis.count, box.count[d] = int(axis.count), box.step[d] = 1;
    box.stride[d] = axis.out_step * layout.step[2 - d] * kItem;
  }
  box.base = dx;
  return simt::make_pixel_map(box);
}

template <class T, class Tile>
static void launch_tile(simt::stream_t stream, const ConvClasses& classes,
                        const TensorImage<T>& image, int64_t images, const ConvMatrix<T>& right,
                        T* dx, const Layout5& layout, int64_t columns) {
  constexpr int64_t kDepth = kLine128 / int64_t(sizeof(T));
  const int64_t lines = simt::ceil_div(image.channels, kDepth);
  ClassMaps maps{};
  ClassWork work{.count = classes.count, .units = 0, .share = {}};
  for (int i = 0; i < classes.count; ++i) {
    const ConvClass& c = classes.of[i];
    const int64_t pixels = images * c.axis[1].count * c.axis[2].count;
    const PixelOperand<T> operand{image, Grid(c.axis, image.channels), pixels};
    const PixelWalk walk = walk_of(operand);
    const TileOrder order{unsigned(simt::ceil_div<int64_t>(pixels, kWgmmaRows)),
                          unsigned(simt::ceil_div<int64_t>(columns, Tile::kColumns))};
    maps.results[i] = map_class(c, layout, dx, columns, walk.images);
    maps.left[i] = c.taps() > 0 ? map_pixels(operand, walk, kWgmmaRows) : maps.results[i];
    work.share[i] = {walk, order, work.units, int(c.first_tap * lines), int(c.taps() * lines)};
    work.units += order.count();
  }
  maps.right = map_matrix(right.data, right.stride, columns, right.stride, Tile::kColumns);
  const int64_t most = simt::device_properties().multiprocessors;
  simt::launch({.grid = dim3(unsigned(smaller(work.units, most))),
                .block = dim3(kWgmmaThreads),
                .smem = sizeof(WgmmaShared<Tile>),
                .stream = stream},
               class_kernel<T, Tile>, maps, work);
}

template <class T>
void launch_classes(simt::stream_t stream, ConvTile tile, const ConvClasses& classes,
                    const TensorImage<T>& image, int64_t images, const ConvMatrix<T>& right, T* dx,
                    const Layout5& layout, int64_t columns) {
  const auto launch = [&]<int kColumns>() {
    launch_tile<T, WgmmaTile<kColumns>>(stream, classes, image, images, right, dx, layout, columns);
  };
  if (tile == ConvTile::wgmma_wide) return launch.template operator()<256>();
  if (tile == ConvTile::wgmma) return launch.template operator()<128>();
  launch.template operator()<64>();
}

#define BRASA_LAUNCH_CLASSES(T)                                                             \
  template void launch_classes<T>(simt::stream_t, ConvTile, const ConvClasses&,             \
                                  const TensorImage<T>&, int64_t, const ConvMatrix<T>&, T*, \
                                  const Layout5&, int64_t);
BRASA_LAUNCH_CLASSES(float16)
BRASA_LAUNCH_CLASSES(bfloat16)

}  // namespace brasa::cuda
