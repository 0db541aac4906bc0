// The steps of attention on Hopper's tensor cores (sm_90a), for operands of 16 bits.
//
// A block has a warpgroup that loads and several that multiply, 64 rows of the tile each. One
// thread brings boxes of rows by the copy engine, zeros beyond the operand, and barriers say when
// they have come and when they may be replaced. 64 features of a row are a line of 128 bytes; 128
// features are two panels of such lines. So rows meet rows along lines, and weights, which stay in
// registers as they were accumulated, meet rows across lines: nothing is transposed or returns to
// shared memory.
#pragma once

#include "attention/attention_mma.cuh"
#include "core/driver.cuh"
#include "matmul/matmul_wgmma.cuh"

namespace brasa::cuda {

/// An operand's rows for the copy engine. The batch is an inner and an outer dimension, of which
/// one that is repeated counts 0.
struct RowsMap {
  simt::TensorMap map;
  int inner, outer;
};

/// A batch whose positions, index = outer * count + inner, every operand walks in two strides.
struct BatchPlane {
  bool exists;
  int64_t count;  ///< of the inner dimension
  int split;      ///< the first of the dimensions that are the inner one
};

/// Which tile of rows of which position comes when. Blocks take them in turn, position after
/// position, whose keys and values are then in the L2 cache. Where tiles see more keys the later
/// they come, a block takes the first and the last, then the second and the last but one: pairs are
/// the same work.
struct AttentionWalk {
  int64_t tiles, count;
  bool pairs;

  /// What blocks take in turn.
  BRASA_HOST_DEVICE_FN int64_t units() const { return (pairs ? (tiles + 1) / 2 : tiles) * count; }

  /// Calls f(tile, position) for those of this block.
  template <class F> BRASA_DEVICE_FN void each(const F& f) const {
    const int64_t of_position = units() / count;
    for (int64_t unit = blockIdx.x; unit < units(); unit += gridDim.x) {
      const int64_t position = unit / of_position, last = tiles - 1 - unit % of_position;
      const int64_t first = tiles - 1 - last;
      for (int64_t tile = last;; tile = first) {
        f(tile, position);
        if (!pairs || tile == first) break;
      }
    }
  }
};

constexpr int kGroupWarps = kGroupThreads / simt::kWarpSize;

/// Bytes of `rows` rows of kFeatures features.
template <int kFeatures> BRASA_HOST_DEVICE_FN constexpr int rows_bytes(int rows) {
  return rows * kFeatures * 2;
}

#if BRASA_HAS_WGMMA

/// A warp that multiplies has read what the barrier's rows were. Every warp says so, not one for
/// its group: a slow one may still read sums, or wait for rows that are at once replaced.
BRASA_DEVICE_FN void arrive_warp(simt::Barrier& barrier) {
  __syncwarp();
  if (threadIdx.x % simt::kWarpSize == 0) simt::barrier_arrive(&barrier);
}

/// Starts copying a box of rows, panel by panel, whose bytes `full` expects.
template <int kFeatures, int kRows>
BRASA_DEVICE_FN void load_rows(unsigned char* to, const RowsMap& rows, simt::Barrier* full,
                               int64_t first, int inner, int outer) {
#pragma unroll
  for (int panel = 0; panel < kFeatures / 64; ++panel)
    simt::tma_load(to + panel * kRows * kLine128, rows.map, full, panel * 64, int(first),
                   inner * rows.inner, outer * rows.outer);
}

/// sum = 64 rows of `left`, whose panels have kLeftRows, times all kRows of `right`. A group.
template <class T, int kFeatures, int kLeftRows, int kRows>
BRASA_DEVICE_FN void start_rows_by_rows(const unsigned char* left, const unsigned char* right,
                                        float (&sum)[kRows / 2]) {
  simt::wgmma_fence();
#pragma unroll
  for (int step = 0; step < kFeatures / 16; ++step) {
    const int panel = step / 4, skip = step % 4 * 32;
    simt::wgmma<T, kRows, true, true>(
        sum, simt::wgmma_operand(left + panel * kLeftRows * kLine128, skip, 0),
        simt::wgmma_operand(right + panel * kRows * kLine128, skip, 0), step > 0);
  }
  simt::wgmma_commit();
}

/// sum (+)= 64 rows of weights times kRows rows. A group.
template <class T, int kFeatures, int kRows>
BRASA_DEVICE_FN void start_weights_by_rows(const uint32_t (&weights)[kRows / 16][4],
                                           const unsigned char* right, bool accumulate,
                                           float (&sum)[kFeatures / 2]) {
  simt::wgmma_fence();
#pragma unroll
  for (int step = 0; step < kRows / 16; ++step)
    simt::wgmma_from_registers<T, kFeatures, false>(
        sum, weights[step], simt::wgmma_operand(right, step * 16 * kLine128, kRows * kLine128),
        accumulate || step > 0);
  simt::wgmma_commit();
}

/// Accumulators, rounded, as a left operand.
template <class T, int kColumns>
BRASA_DEVICE_FN void pack_rows(const float (&s)[kColumns / 2],
                               uint32_t (&packed)[kColumns / 16][4]) {
#pragma unroll
  for (int i = 0; i < kColumns / 2; i += 2)
    packed[i / 8][i % 8 / 2] = simt::narrow_pair<T>(s[i], s[i + 1]);
}

#endif

// --------------------------------------------------------------------------------------- launchers

/// The one stride in which dimensions `first` to `end` of the batch are walked; -1: there is none.
inline int64_t walked_stride(const AttentionParams& p, const AttentionStrides& x, int first,
                             int end) {
  int64_t stride = 0, count = 1;
  for (int d = end - 1; d >= first; --d) {
    if (p.shape[d] == 1) continue;
    if (count == 1) stride = x.batch[d];
    if (x.batch[d] != stride * count || stride < 0) return -1;
    count *= p.shape[d];
  }
  return stride;
}

/// An array whose rows the copy engine is to read.
struct RowsOperand {
  const void* data;
  const AttentionStrides& strides;
  int64_t rows;
};

/// Whether the copy engine can read them as they lie, with the batch folded so.
inline bool has_rows_map(const RowsOperand& x, const AttentionParams& p, const BatchPlane& plane) {
  constexpr int64_t kItems = 8, kMost = int64_t(1) << 31;  // items of 16 bytes
  const int64_t inner = walked_stride(p, x.strides, plane.split, p.rank);
  const int64_t outer = walked_stride(p, x.strides, 0, plane.split);
  const int64_t row = x.rows > 1 ? x.strides.row : kItems;
  return inner >= 0 && outer >= 0 && row > 0 && x.rows < kMost &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && (row | inner | outer) % kItems == 0;
}

/// Whether cards take these kernels. On an H200 a first version waited for ever: its groups asked
/// for 65,536 registers of the 64,512 that the block has, which the emulator counts since then. The
/// cure has run on the emulator alone, so cards stay with mma.sync until one has passed the tests
/// with this set.
constexpr bool kWgmmaOnCards = false;

/// The plane in which the copy engine reads all of them, if this attention is one for wgmma.
inline BatchPlane wgmma_plane(const AttentionParams& p, const AttentionMask<float>& mask,
                              std::initializer_list<RowsOperand> operands) {
  BatchPlane plane{};
  if (!kWgmmaOnCards && !BRASA_EMULATED_DEVICE) return plane;
  if (simt::device_properties().capability != 90 || mask || p.dropout > 0 || !(p.scale > 0) ||
      p.s == 0 || p.ev == 0 || p.count >= int64_t(1) << 31)
    return plane;
  for (; plane.split <= p.rank; ++plane.split) {
    plane.exists = true;
    for (const RowsOperand& x : operands) plane.exists = plane.exists && has_rows_map(x, p, plane);
    if (plane.exists) break;
  }
  plane.count = 1;
  for (int d = plane.split; d < p.rank; ++d) plane.count *= p.shape[d];
  return plane;
}

/// Tiles of `of_tile` rows; in pairs where these are enough to keep all multiprocessors busy.
inline AttentionWalk attention_walk(const AttentionParams& p, int64_t rows, int of_tile) {
  AttentionWalk walk{simt::ceil_div<int64_t>(rows, of_tile), p.count, p.causal};
  walk.pairs = walk.pairs && walk.units() >= simt::device_properties().multiprocessors;
  return walk;
}

/// A block for each multiprocessor, or for each unit where there are fewer.
template <class Tile, class Shared>
simt::LaunchConfig wgmma_grid(Context ctx, const AttentionWalk& walk) {
  const int64_t most = simt::device_properties().multiprocessors;
  return {.grid = dim3(unsigned(walk.units() < most ? walk.units() : most)),
          .block = dim3(Tile::kThreads),
          .smem = sizeof(Shared),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}

/// The map of `rows` rows in boxes of `lines`.
template <class T>
RowsMap map_rows(const T* data, const AttentionParams& p, const AttentionStrides& x, int64_t rows,
                 int64_t features, const BatchPlane& plane, int lines) {
  constexpr int64_t kAny = 256, kItem = sizeof(T);  // a multiple of 16, no less than a row
  const int64_t inner = walked_stride(p, x, plane.split, p.rank);
  const int64_t outer = walked_stride(p, x, 0, plane.split);
  const auto bytes = [](int64_t stride) { return stride > 0 ? stride * kItem : kAny; };
  return {
      simt::make_tensor_map(
          {.base = data,
           .item_bytes = int(kItem),
           .extent = {features, rows, inner ? plane.count : 1, outer ? p.count / plane.count : 1},
           .stride = {bytes(rows > 1 ? x.row : 0), bytes(inner), bytes(outer)},
           .lines = lines,
           .items = 1}),
      inner != 0, outer != 0};
}

}  // namespace brasa::cuda
