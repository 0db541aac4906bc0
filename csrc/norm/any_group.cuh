// A group of softmax/lines.cuh that is known at run time only: one kernel instead of many, for what
// is rare.
#pragma once

#include "softmax/lines.cuh"

namespace brasa::cuda {

/// A part of a warp, a warp, or a block of up to kThreads threads; blocks have a group in their
/// first dimension. Sums have the order that WarpGroup and BlockGroup add in.
template <int kThreads> struct AnyGroup {
  static constexpr int kSize = 0, kBlock = kThreads;
  static BRASA_DEVICE_FN int rank() { return int(threadIdx.x); }
  template <class T> static BRASA_DEVICE_FN T sum(T v) {
    const int size = int(blockDim.x);
#pragma unroll 1
    for (int offset = (size < simt::kWarpSize ? size : simt::kWarpSize) / 2; offset > 0;
         offset /= 2)
      v += __shfl_xor_sync(simt::kFullMask, v, offset);
    if (size <= simt::kWarpSize) return v;
    BRASA_SHARED(T, of_warp, [kThreads / simt::kWarpSize]);
    __syncthreads();  // an earlier call may still be reading of_warp
    if (rank() % simt::kWarpSize == 0) of_warp[rank() / simt::kWarpSize] = v;
    __syncthreads();
    T total = of_warp[0];
#pragma unroll 1
    for (int warp = 1; warp < size / simt::kWarpSize; ++warp) total += of_warp[warp];
    return total;
  }
};

/// The block that is launched for groups as `Group` has them.
template <class Group> dim3 any_group() {
  return dim3(Group::kSize, Group::kBlock / Group::kSize);
}

}  // namespace brasa::cuda
