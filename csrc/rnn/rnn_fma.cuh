// The product of a warp in a recurrent step, by FMA (float32 and float64), and what it shares with
// the one on tensor cores (rnn_mma.cuh).
#pragma once

#include "core/device.cuh"

namespace brasa::cuda {

constexpr int kStepThreads = 256;
constexpr int kStepWarps = kStepThreads / simt::kWarpSize;
constexpr int kUnits = 8;      // of a block
constexpr int kRowGroups = 4;  // of a warp's lanes; each holds every fourth row

/// Elements of the depth that are copied together, 128 bytes; a slice, the depth of a warp, is
/// whole packs for every part, or whole steps of tensor cores.
template <class T> constexpr int kStepChunk = 128 / int(sizeof(T));
template <class T> constexpr int kSliceUnit = sizeof(T) == 2 ? 32 : 16;

/// Rows per lane: a block has 8, 16 or 32 rows; in 16 bits 16 or 32, which tensor cores take at
/// once; in float64 16, for 32 leave too few registers and few use it.
template <class T> constexpr int kFewRows = sizeof(T) == 4 ? 2 : 4;
constexpr int kSomeRows = 4;
template <class T> constexpr int kManyRows = sizeof(T) == 8 ? 4 : 8;

BRASA_DEVICE_FN int lane_of_warp() {
  return int(threadIdx.x) % simt::kWarpSize;
}
BRASA_DEVICE_FN int warp_of_block() {
  return int(threadIdx.x) / simt::kWarpSize;
}
BRASA_DEVICE_FN int row_of_lane() {
  return lane_of_warp() / kUnits;
}

/// kColumns sums per lane and row. Where a unit has several sums these are its columns; where it
/// has one, the lanes of a quarter share four units and take every fourth pack of the slice each.
template <class T, int kSums, int kRows> struct FmaStep {
  static constexpr int kParts = kSums == 1 ? 4 : 1, kColumns = kSums == 1 ? 4 : kSums;
  static constexpr bool kLines = false;

  static constexpr int kLanes = simt::kPackLanes<T>;
  // Rows end in a pack or two of padding: what a warp reads at once then lies in different banks.
  static constexpr int kStatePitch = kStepChunk<T> + (kParts == 1 ? 1 : 2) * kLanes;
  static constexpr int kSumPitch = simt::kWarpSize + 1;
  static constexpr int kSumsOfWarp = kRows * kColumns * kSumPitch;
  using Sums = T[kRows][kColumns];

  static constexpr int stages(bool resident) { return resident && kRows < kManyRows<T> ? 4 : 2; }

  static BRASA_DEVICE_FN int part() { return kParts == 1 ? 0 : lane_of_warp() % kParts; }
  /// Row of the weights that column c of this lane is.
  static BRASA_DEVICE_FN int weight_row(int c) {
    const int unit = lane_of_warp() % kUnits;
    return kParts == 1 ? c * kUnits + unit : unit / kParts * kColumns + c;
  }

  static BRASA_DEVICE_FN void multiply_chunk(const T* states, const T* weights, int weight_pitch,
                                             int width, Sums& sum) {
    const T* const my_states = states + row_of_lane() * kStatePitch;
#pragma unroll 2
    for (int at = part() * kLanes; at < width; at += kParts * kLanes) {
      simt::Pack<T, kLanes> w[kColumns];
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        w[c] = simt::load_pack<kLanes>(weights + weight_row(c) * weight_pitch + at);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const auto state = simt::load_pack<kLanes>(my_states + r * kRowGroups * kStatePitch + at);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
#pragma unroll
          for (int l = 0; l < kLanes; ++l) sum[r][c] += state[l] * w[c][l];
        }
      }
    }
  }

  /// Leaves the warp's sums at `to`.
  static BRASA_DEVICE_FN void put_sums(const Sums& sum, T* to) {
#pragma unroll
    for (int e = 0; e < kRows * kColumns; ++e)
      to[e * kSumPitch + lane_of_warp()] = sum[e / kColumns][e % kColumns];
  }

  /// The sums of what this thread owns; `all` are those of all warps, `stride` apart.
  static BRASA_DEVICE_FN void take_sums(const T* all, int stride, T (&total)[kSums]) {
    const int lane = lane_of_warp();
#pragma unroll
    for (int c = 0; c < kSums; ++c) {
      const int column = kParts == 1 ? c : part();
      const T* const from = all + (warp_of_block() * kColumns + column) * kSumPitch;
      total[c] = 0;
#pragma unroll
      for (int w = 0; w < kStepWarps; ++w) {
#pragma unroll
        for (int i = 0; i < kParts; ++i)
          total[c] += from[w * stride + (kParts == 1 ? lane : lane - part() + i)];
      }
    }
  }
};

}  // namespace brasa::cuda
