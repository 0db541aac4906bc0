// What the gather of conv_gather.cu multiplies: its pixels, taps and weights, and how the main loop
// of matrix products reads them.
#pragma once

#include "conv/conv_paths.cuh"
#include "conv/conv_tensor.cuh"
#include "matmul/gemm_finish.cuh"

namespace brasa::cuda {

/// One class of a gather (conv_axis.h), every group.
template <class T> struct GatherTask {
  Grid grid;
  int64_t batch, groups, group_in, group_out;
  const T* in;
  Layout5 in_layout;
  const T* w;  ///< [group][tap][input channel][output channel], zeros up to w_columns
  int64_t w_columns;
  T* out;
  Layout5 out_layout;

  BRASA_HOST_DEVICE_FN int64_t pixels() const {
    return batch * grid.axis[0].count * grid.axis[1].count * grid.axis[2].count;
  }
  BRASA_HOST_DEVICE_FN int64_t taps() const {
    return grid.axis[0].taps * grid.axis[1].taps * grid.axis[2].taps;
  }
  BRASA_HOST_DEVICE_FN int64_t depth() const { return taps() * group_in; }
};
template <class T>
BRASA_DEVICE_FN int64_t out_offset(const GatherTask<T>& task, int64_t index, int64_t column) {
  int64_t q[3];
  int64_t offset =
      split_pixel(index, task.grid, q) * task.out_layout.image + column * task.out_layout.channel;
#pragma unroll
  for (int d = 0; d < 3; ++d)
    offset +=
        (task.grid.axis[d].out_first + q[d] * task.grid.axis[d].out_step) * task.out_layout.step[d];
  return offset;
}

/// Where the weights of a gather lie; `columns` output channels of a group.
template <class T> struct GatherWeights {
  const T* w;
  int64_t columns, group, column, channel, tap[3];
};

/// A step of the depth: where it reads beside a pixel, and a bit for its tap.
struct alignas(16) DepthStep {
  int64_t offset;
  uint32_t tap;
};
constexpr int kSectionTaps = 32;  // bits

/// The pixels and weights of one tile, for multiply_rounds(). With packs, four channels of a pixel
/// are one load; without, a thread has the same pixels for all steps of a round, so that
/// neighbouring threads read neighbouring pixels. A pixel has a bit for each tap of the section
/// that lies in the image.
template <class T, class Tile, bool kPacks> struct GatherOperands {
  static constexpr int kLanes = Tile::kLanes, kDepth = Tile::kDepth, kThreadsOf = Tile::kThreads;
  using Left = FmaPart<T, Tile::kRows, kDepth, kThreadsOf>;
  using Right = FmaPart<T, Tile::kColumns, kDepth, kThreadsOf>;
  using Table = StepTable<DepthStep>;
  static constexpr int kStep = kPacks ? kLanes : 1;  // of the depth
  static constexpr int kPixels =
      kPacks ? Left::kPacks : (Tile::kRows + kThreadsOf - 1) / kThreadsOf;
  static_assert(kThreadsOf % (kDepth / kLanes) == 0 &&
                (Tile::kRows % kThreadsOf == 0 || kThreadsOf % Tile::kRows == 0));
  Table& table;
  Place (&places)[kSectionTaps];  ///< of the taps of a section
  const GatherTask<T>& task;
  int depth;  ///< of the section
  const T *in[kPixels], *w[Right::kPacks];
  uint32_t taps[kPixels];
  Left left;
  Right right;

  /// Begins a section of the depth at `begin`, of at most so many steps and taps; all threads call.
  BRASA_DEVICE_FN void start(int64_t group, int64_t row, int64_t column, int64_t begin,
                             int64_t end) {
    const int64_t first_tap = begin / task.group_in;
    const int64_t of_taps = (first_tap + kSectionTaps) * task.group_in;
    int64_t most = begin + kStep * Table::kSection;
    if (most > of_taps) most = of_taps;
    depth = int((end < most ? end : most) - begin);
    int64_t kernel[3], channel;
    for (int tap = int(threadIdx.x); tap < kSectionTaps; tap += kThreadsOf)
      if (first_tap + tap < task.taps())
        places[tap] = place_tap(task.grid, task.in_layout, (first_tap + tap) * task.group_in,
                                kernel, channel);
    table.fill(kThreadsOf, (depth + kStep - 1) / kStep, DepthStep{0, 0}, [&](int step) {
      const int64_t at = begin + step * kStep;
      const Place place = place_tap(task.grid, task.in_layout, at, kernel, channel);
      return DepthStep{place.offset, 1u << int(task.grid.channels.quotient(at) - first_tap)};
    });
    __syncthreads();
    find_pixels(group, row, task.taps() - first_tap);
    const T* const of_group = task.w + (group * task.depth() + begin) * task.w_columns;
#pragma unroll
    for (int k = 0; k < Right::kPacks; ++k) {
      int64_t c = column + Right::extent_of(k, false);
      if (c >= task.w_columns) c = task.w_columns - kLanes;  // nobody stores what it gives
      w[k] = of_group + Right::depth_of(k, false) * task.w_columns + c;
    }
  }
  BRASA_DEVICE_FN void find_pixels(int64_t group, int64_t first, int64_t taps_left) {
    const int64_t pixels = task.pixels();
    const int count = taps_left < kSectionTaps ? int(taps_left) : kSectionTaps;
#pragma unroll
    for (int k = 0; k < kPixels; ++k) {
      const int64_t r = first + (kPacks ? Left::extent_of(k, true) : Left::extent_of_element(k));
      const Place pixel = place_pixel(task.grid, task.in_layout, r < pixels ? r : 0);
      in[k] = task.in + group * task.group_in * task.in_layout.channel + pixel.offset;
      taps[k] = 0;
      for (int tap = 0; tap < count && r < pixels; ++tap)
        taps[k] |= uint32_t(inside(task.in_layout, pixel, places[tap])) << tap;
    }
  }

  BRASA_DEVICE_FN void fetch(unsigned round) {
    const DepthStep* const steps = table.step + round * (kDepth / kStep);
    if constexpr (kPacks)
      fetch_packs(steps[Left::depth_of(0, true) / kLanes]);
    else
      fetch_elements(steps);
    const int depth_left = depth - int(round) * kDepth;
#pragma unroll
    for (int k = 0; k < Right::kPacks; ++k) {
      simt::Pack<T, kLanes> pack{};
      if (Right::has(k) && Right::depth_of(k, false) < depth_left)
        pack = simt::load_pack<kLanes>(w[k]);
      right.pack[k] = pack;
      w[k] += kDepth * task.w_columns;
    }
  }
  BRASA_DEVICE_FN void fetch_packs(const DepthStep step) {
#pragma unroll
    for (int k = 0; k < Left::kPacks; ++k) {
      simt::Pack<T, kLanes> pack{};
      if (taps[k] & step.tap) pack = simt::load_pack<kLanes>(in[k] + step.offset);
      left.pack[k] = pack;
    }
  }
  BRASA_DEVICE_FN void fetch_elements(const DepthStep* steps) {
#pragma unroll
    for (int e = 0; e < Left::kElements; ++e) {
      const DepthStep step = steps[Left::depth_of_element(e)];
      T value = 0;
      if (taps[e % kPixels] & step.tap) value = in[e % kPixels][step.offset];
      left.pack[e / kLanes][e % kLanes] = value;
    }
  }
  BRASA_DEVICE_FN void store(FmaShared<T, Tile>& shared, unsigned copy) {
    right.store(false, shared.right[copy]);
    if constexpr (kPacks) {
      left.store(true, shared.left[copy]);
    } else {
      left.store_elements(shared.left[copy]);
    }
  }
};

}  // namespace brasa::cuda
