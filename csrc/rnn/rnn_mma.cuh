// The product of a warp in a recurrent step on tensor cores (mma.sync, sm_80 and later): operands
// of 16 bits, sums in float32.
//
// 16 rows of states are the left operand, kUnits units the right one, a part for each sum of a
// unit; rows beyond the batch are zeros. A step takes 32 elements of the depth: ldmatrix loads the
// weights of a part for all of them at once, from rows along the depth, or, where neighbours in
// memory are units (the backward), from lines of kUnits, transposed on the way. Rows of 128 bytes
// end in 16 of padding, lines of 16 bytes need none: what ldmatrix reads at once lies in different
// banks.
#pragma once

#include "matmul/gemm_mma.cuh"
#include "rnn/rnn_fma.cuh"

namespace brasa::cuda {

/// kM tiles of 16 rows.
template <class T, int kSums, bool kAcross, int kM> struct MmaStep {
  static constexpr bool kLines = kAcross;
  static constexpr int kStep = kSliceUnit<T>, kPack = simt::kPackLanes<T>;
  static constexpr int kStatePitch = kStepChunk<T> + kPack;
  static constexpr int kSumsOfWarp = kM * 16 * kSums * kUnits;
  static_assert(kUnits == 8 && kStep == 32);
  /// Where a unit has one sum, a product would wait for the one before: the halves of a step have
  /// sums of their own, added up at the end.
  static constexpr int kChains = kSums == 1 ? 2 : 1;
  using Sums = float[kM][kSums * kChains][4];

  /// Copies are under way for all but one; 32 rows leave no room for a fourth.
  static constexpr int stages(bool resident) { return !resident ? 2 : kM == 1 ? 4 : 3; }

  /// Registers of 32 x kUnits weights from `at` on.
  static BRASA_DEVICE_FN void load_weights(const T* weights, int pitch, int part, int at,
                                           uint32_t (&b)[4]) {
    const int lane = lane_of_warp();
    if constexpr (kLines)
      simt::ldmatrix_x4_trans(b, weights + (at + lane) * kUnits);
    else
      simt::ldmatrix_x4(b,
                        weights + (part * kUnits + lane % kUnits) * pitch + at + lane / 8 * kPack);
  }

  static BRASA_DEVICE_FN void multiply_chunk(const T* states, const T* weights, int weight_pitch,
                                             int width, Sums& sum) {
    const int lane = lane_of_warp();
    const T* const my_states = states + lane % 16 * kStatePitch + lane / 16 * kPack;
#pragma unroll kChains
    for (int at = 0; at < width; at += kStep) {
      uint32_t a[kM][2][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          simt::ldmatrix_x4(a[m][half], my_states + 16 * m * kStatePitch + at + 16 * half);
      }
#pragma unroll
      for (int part = 0; part < kSums; ++part) {
        uint32_t b[4];
        load_weights(weights, weight_pitch, part, at, b);
        const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          multiply_step<T>(sum[m][part], a[m][0], first);
          multiply_step<T>(sum[m][kChains == 2 ? 1 : part], a[m][1], second);
        }
      }
    }
  }

  /// Leaves the warp's sums at `to`: for each part rows of kUnits.
  static BRASA_DEVICE_FN void put_sums(const Sums& sum, float* to) {
    float* const mine = to + lane_of_warp() * 2;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int part = 0; part < kSums; ++part) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          simt::Pack<float, 2> pair;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            pair[i] = sum[m][part][2 * half + i];
            if constexpr (kChains == 2) pair[i] += sum[m][1][2 * half + i];
          }
          simt::store_pack<2>(mine + ((part * kM + m) * 16 + 8 * half) * kUnits, pair);
        }
      }
    }
  }

  /// The sums of what this thread owns; `all` are those of all warps, `stride` apart.
  static BRASA_DEVICE_FN void take_sums(const float* all, int stride, float (&total)[kSums]) {
    const float* const mine = all + warp_of_block() * simt::kWarpSize + lane_of_warp();
#pragma unroll
    for (int part = 0; part < kSums; ++part) {
      total[part] = 0;
#pragma unroll
      for (int w = 0; w < kStepWarps; ++w)
        total[part] += mine[w * stride + part * kSumsOfWarp / kSums];
    }
  }
};

}  // namespace brasa::cuda
