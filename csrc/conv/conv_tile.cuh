// What the convolution's CUDA kernels share: where elements are read.
//
// A product over tiles in shared memory (matmul/gemm_fma.cuh) reads an element whose place is the
// sum of what its row and what its depth contribute, in image coordinates and in memory: both are
// worked out once per tile, and the inner loads only add and compare.
#pragma once

#include "conv/conv.h"
#include "conv/conv_axis.h"
#include "core/device.cuh"
#include "matmul/gemm_fma.cuh"

namespace brasa::cuda {

constexpr int kThreads = 256;        // of kernels without tiles
constexpr int64_t kFewChannels = 8;  // groups of fewer output channels have the direct kernels

/// An image array: steps in elements.
struct Layout5 {
  int64_t image, channel, step[3];
  int size[3];
};

static inline Layout5 layout_of_image(int64_t channels, const int64_t* size, bool channels_last) {
  const int64_t unit = channels_last ? channels : 1, pixels = size[0] * size[1] * size[2];
  return {channels * pixels,
          channels_last ? 1 : pixels,
          {size[1] * size[2] * unit, size[2] * unit, unit},
          {int(size[0]), int(size[1]), int(size[2])}};
}

/// The three axes of a gather, and what divides positions in their grids of pixels and taps.
struct Grid {
  Axis axis[3];
  simt::Divisor pixels[3], taps[3], channels;

  Grid(const Axis* axes, int64_t depth_channels) : channels(depth_channels) {
    for (int d = 0; d < 3; ++d) {
      axis[d] = axes[d];
      pixels[d] = simt::Divisor(axes[d].count);
      taps[d] = simt::Divisor(axes[d].taps);
    }
  }
};

/// What a row or a step of the depth contributes to a position in the image and to the offset
/// there.
struct Place {
  int at[3];
  int64_t offset;
};

constexpr int kOutside = -(1 << 30);  ///< a position that no tap brings into the image

/// Positions are 32 bits, for registers are scarce.
static inline void check_extents(const ConvParams& p) {
  constexpr int64_t kMost = int64_t(1) << 30;
  for (int d = 0; d < 3; ++d)
    if (p.in[d] + p.pad_begin[d] >= kMost || p.out[d] >= kMost ||
        p.kernel[d] * p.dilation[d] >= kMost || p.out[d] * p.stride[d] >= 2 * kMost)
      throw std::invalid_argument("conv: an extent of 2^30 or more is not supported on a GPU");
}

BRASA_DEVICE_FN bool inside(const Layout5& layout, const Place& a, const Place& b) {
  bool yes = true;
#pragma unroll
  for (int d = 0; d < 3; ++d) {
    yes &= unsigned(a.at[d] + b.at[d]) < unsigned(layout.size[d]);  // none is negative; no branch
  }
  return yes;
}

/// The q-th coordinates of pixel `index`; returns the image.
BRASA_DEVICE_FN int64_t split_pixel(int64_t index, const Grid& grid, int64_t* q) {
#pragma unroll
  for (int d = 2; d >= 0; --d) q[d] = grid.pixels[d].take_remainder(index);
  return index;
}

BRASA_DEVICE_FN Place place_pixel(const Grid& grid, const Layout5& layout, int64_t index) {
  int64_t q[3];
  Place place;
  place.offset = split_pixel(index, grid, q) * layout.image;
#pragma unroll
  for (int d = 0; d < 3; ++d) {
    place.at[d] = int(q[d] * grid.axis[d].in_step + grid.axis[d].in_first);
    place.offset += place.at[d] * layout.step[d];
  }
  return place;
}

/// Depth `index` = (tap, channel): where it reads, and with `kernel` which element of the kernel it
/// is.
BRASA_DEVICE_FN Place place_tap(const Grid& grid, const Layout5& layout, int64_t index,
                                int64_t* kernel, int64_t& channel) {
  channel = grid.channels.take_remainder(index);
  Place place;
  place.offset = channel * layout.channel;
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    const int64_t j = grid.taps[d].take_remainder(index);
    kernel[d] = grid.axis[d].kernel_first + j * grid.axis[d].kernel_step;
    place.at[d] = int(j * grid.axis[d].tap_step);
    place.offset += place.at[d] * layout.step[d];
  }
  return place;
}

/// Of what is outside of the image wherever it is read from.
BRASA_DEVICE_FN Place no_place() {
  return {{kOutside, 0, 0}, 0};
}

/// What the steps of a section of the depth contribute, worked out by all threads before its
/// rounds: a division inside of them would cost every warp, and registers that the sums need. The
/// last round of a section may read steps behind it, and the round behind it does.
template <class Step> struct StepTable {
  static constexpr int kSection = 512, kMostOfRound = 16;  // steps
  Step step[kSection + kMostOfRound];

  /// find(i) is step i, `none` is what stands behind the last. All threads call; a barrier follows.
  template <class Find>
  BRASA_DEVICE_FN void fill(int threads, int steps, const Step& none, const Find& find) {
    constexpr int kMost = kSection + kMostOfRound;
    const int count = steps + 2 * kMostOfRound < kMost ? steps + 2 * kMostOfRound : kMost;
#pragma unroll 1
    for (int i = int(threadIdx.x); i < count; i += threads) step[i] = i < steps ? find(i) : none;
  }
};

/// Whether neighbouring channels of every pixel are whole aligned packs.
template <class T> bool channels_in_packs(const T* image, const Layout5& layout, int64_t of_group) {
  constexpr int64_t kLanes = simt::kPackLanes<T>;
  return layout.channel == 1 && layout.step[2] % kLanes == 0 && of_group % kLanes == 0 &&
         simt::pack_aligned(image);
}

/// The sum over parts of from[part * size + i], for a warp's width of neighbours: a block's warps
/// deal out the parts, and the threads of the first have the sums. `live`: i is inside.
template <class T>
BRASA_DEVICE_FN T sum_parts(const T* from, int64_t i, int64_t size, int64_t parts, bool live) {
  constexpr int kWarps = kThreads / simt::kWarpSize;
  BRASA_SHARED(T, of_warp, [kWarps][simt::kWarpSize]);
  const int lane = int(threadIdx.x) % simt::kWarpSize, warp = int(threadIdx.x) / simt::kWarpSize;
  T sum = 0;
  if (live) {
#pragma unroll 8
    for (int64_t part = warp; part < parts; part += kWarps) sum += from[part * size + i];
  }
  __syncthreads();  // an earlier call may still be reading
  of_warp[warp][lane] = sum;
  __syncthreads();
  for (int w = 1; warp == 0 && w < kWarps; ++w) sum += of_warp[w][lane];
  return sum;
}

static inline simt::stream_t stream_of(Context ctx) {
  return static_cast<simt::stream_t>(ctx.stream);
}

/// Hands out parts of the workspace. Without one it only counts.
class Scratch {
 public:
  explicit Scratch(void* block) : block_(static_cast<unsigned char*>(block)) {}
  template <class U> U* take(int64_t count) {
    constexpr size_t kUnit = 256;
    U* part = block_ ? reinterpret_cast<U*>(block_ + used_) : nullptr;
    used_ += (size_t(count) * sizeof(U) + kUnit - 1) / kUnit * kUnit;
    return part;
  }
  size_t used() const { return used_; }

 private:
  unsigned char* block_;
  size_t used_ = 0;
};

static inline unsigned grid_z(int64_t groups) {
  return unsigned(groups < 65535 ? groups : 65535);
}

}  // namespace brasa::cuda
