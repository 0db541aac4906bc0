// What the gradient of the weight multiplies: x and dy at the same pixels, and how the main loop of
// matrix products reads them.
#pragma once

#include "conv/conv_paths.cuh"
#include "conv/conv_tensor.cuh"
#include "matmul/gemm_store.cuh"

namespace brasa::cuda {

/// The gradient of the weight: x and dy read at the same pixels.
template <class T> struct WeightTask {
  Grid grid;
  int64_t batch, groups, group_in, group_out, parts;
  const T* x;
  Layout5 x_layout;
  const T* dy;
  T* out;  ///< parts: [part][group][tap, channel][output channel]

  BRASA_HOST_DEVICE_FN int64_t pixels() const {
    return batch * grid.axis[0].count * grid.axis[1].count * grid.axis[2].count;
  }
  BRASA_HOST_DEVICE_FN int64_t taps() const {
    return grid.axis[0].taps * grid.axis[1].taps * grid.axis[2].taps;
  }
  BRASA_HOST_DEVICE_FN int64_t rows() const { return taps() * group_in; }
  BRASA_HOST_DEVICE_FN int64_t weights() const { return groups * group_out * rows(); }
};

/// The inputs and gradients of one tile, for multiply_rounds(). With packs, four channels of a
/// pixel are one load.
template <class T, class Tile, bool kPacks> struct WeightOperands {
  static constexpr int kLanes = Tile::kLanes, kDepth = Tile::kDepth, kThreadsOf = Tile::kThreads;
  using Left = FmaPart<T, Tile::kRows, kDepth, kThreadsOf>;
  using Right = FmaPart<T, Tile::kColumns, kDepth, kThreadsOf>;
  static constexpr int kOfRow = kPacks ? Tile::kRows / kLanes : Tile::kRows;  // loads of a step
  static constexpr int kPlaces = (kOfRow + kThreadsOf - 1) / kThreadsOf;
  static_assert(kOfRow % kThreadsOf == 0 || kThreadsOf % kOfRow == 0);
  StepTable<Place>& table;
  const WeightTask<T>& task;
  int64_t begin, end;  ///< pixels of the section
  int columns_left;    ///< of the group, from the tile's first on
  Place tap[kPlaces];
  const T *x, *dy[Right::kPacks];
  Left left;
  Right right;

  BRASA_DEVICE_FN void find_rows(int64_t first) {
#pragma unroll
    for (int k = 0; k < kPlaces; ++k) {
      const int64_t r = first + (kPacks ? Left::extent_of(k, false) : Left::extent_of_element(k));
      int64_t kernel[3], channel;
      tap[k] =
          r < task.rows() ? place_tap(task.grid, task.x_layout, r, kernel, channel) : no_place();
    }
  }
  /// Begins a section of the pixels at `first`; all threads call. Returns its rounds.
  BRASA_DEVICE_FN unsigned start(int64_t group, int64_t column, int64_t first, int64_t part_end) {
    begin = first;
    end = part_end - begin < StepTable<Place>::kSection ? part_end
                                                        : begin + StepTable<Place>::kSection;
    x = task.x + group * task.group_in * task.x_layout.channel;
    const int64_t channels = task.groups * task.group_out;
    const T* const of_group = task.dy + begin * channels + group * task.group_out + column;
#pragma unroll
    for (int k = 0; k < Right::kPacks; ++k) {
      int i = Right::extent_of(k, false);
      if (kPacks && i >= columns_left) i = columns_left - kLanes;  // nobody stores what it gives
      dy[k] = of_group + Right::depth_of(k, false) * channels + i;
    }
    table.fill(kThreadsOf, int(end - begin), no_place(),
               [&](int step) { return place_pixel(task.grid, task.x_layout, begin + step); });
    __syncthreads();
    return unsigned(simt::ceil_div<int64_t>(end - begin, kDepth));
  }

  BRASA_DEVICE_FN void fetch(unsigned round) {
    fetch_left(table.step + round * kDepth);
    const int depth = int(end - begin) - int(round) * kDepth;  // that is left
#pragma unroll
    for (int k = 0; k < Right::kPacks; ++k) {
      simt::Pack<T, kLanes> pack{};
      const int p = Right::depth_of(k, false);
      if constexpr (kPacks) {
        if (Right::has(k) && p < depth) pack = simt::load_pack<kLanes>(dy[k]);
      } else {
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane)
          if (Right::has(k) && p < depth && Right::extent_of(k, false) + lane < columns_left)
            pack[lane] = dy[k][lane];
      }
      right.pack[k] = pack;
      dy[k] += kDepth * task.groups * task.group_out;
    }
  }
  BRASA_DEVICE_FN void fetch_left(const Place* pixels) {
    if constexpr (kPacks) {
#pragma unroll
      for (int k = 0; k < Left::kPacks; ++k) {
        const Place pixel = pixels[Left::depth_of(k, false)];
        simt::Pack<T, kLanes> pack{};
        if (inside(task.x_layout, tap[k % kPlaces], pixel))
          pack = simt::load_pack<kLanes>(x + tap[k % kPlaces].offset + pixel.offset);
        left.pack[k] = pack;
      }
    } else {
#pragma unroll
      for (int e = 0; e < Left::kElements; ++e) {
        const Place pixel = pixels[Left::depth_of_element(e)];
        const bool read = inside(task.x_layout, tap[e % kPlaces], pixel);
        left.pack[e / kLanes][e % kLanes] = read ? x[tap[e % kPlaces].offset + pixel.offset] : T(0);
      }
    }
  }
  BRASA_DEVICE_FN void store(FmaShared<T, Tile>& shared, unsigned copy) {
    right.store(false, shared.right[copy]);
    if constexpr (kPacks) {
      left.store(false, shared.left[copy]);
    } else {
      left.store_elements(shared.left[copy]);
    }
  }
};

}  // namespace brasa::cuda
