// The kernel of large products on Hopper's tensor cores (sm_90a).
//
// A block has a warpgroup that loads and two that multiply, 64 rows of the tile each. One thread
// keeps a ring of stages filled by the copy engine; a stage goes back when both warpgroups have
// multiplied it, one round late, so that a product is always under way. Blocks stay and take tiles
// in turn: while results are stored, the next tile's stages fill.
//
// Floor: 2 m n k operations at the tensor cores' rate. A round of 64 x 16 bits multiplies
// 128 x 256 x 64 in 1,024 cycles and reads 48 KiB, 48 bytes a cycle. Lost, on an H200: clusters of
// two blocks that load the right operand for each other (4096: 207 us, not 189; in clusters of four
// 340); results through registers and a stage of each warp, not the copy engine (8192: 5 %).
#pragma once

#include "core/ptx_mma.cuh"
#include "core/ptx_wgmma.cuh"
#include "matmul/gemm_store.cuh"
#include "matmul/gemm_tensor.h"
#include "matmul/tile_order.cuh"

namespace brasa::cuda {

constexpr int kWgmmaRows = 128, kWgmmaThreads = 384, kMultipliers = 2;
constexpr int kGroupThreads = 128, kLine128 = 128;

template <int kTileColumns> struct WgmmaTile {
  static constexpr int kColumns = kTileColumns;
  static constexpr int kLeftBytes = kWgmmaRows * kLine128, kRightBytes = kColumns * kLine128;
  static constexpr int kStageBytes = kLeftBytes + kRightBytes;
  static constexpr int kStages = 192 * 1024 / kStageBytes;
};

constexpr int kPanelBytes = 64 * kLine128;  ///< results of a warpgroup, 64 columns of 16 bits

/// Finished results leave in panels by the copy engine, others through a stage of each warp.
template <class Tile> struct WgmmaShared {
  unsigned char stage[Tile::kStages][Tile::kStageBytes];
  union {
    unsigned char panel[kMultipliers][2][kPanelBytes];
    WarpStage store[kMultipliers * 4];
  };
  simt::Barrier full[Tile::kStages], empty[Tile::kStages];
};

/// What all blocks share out: units, numbered by tile, then by part of the depth, then by item.
struct WgmmaWork {
  TileOrder order;
  int64_t units, k, split_depth, items;
  int splits;
  bool b_repeats;  ///< the right operand is the same for all items
  bool panels;     ///< results of 16 bits are stored as they are, by the copy engine
};

struct WgmmaUnit {
  int64_t row, column;  ///< of the tile
  int split, item;
  int first, rounds;  ///< of the depth, in lines

  template <class T, class Tile>
  static BRASA_DEVICE_FN WgmmaUnit at(const WgmmaWork& work, int64_t unit) {
    constexpr int64_t kDepth = kLine128 / int64_t(sizeof(T));
    unsigned row, column;
    work.order.place(unsigned(unit % work.order.count()), row, column);
    const int64_t rest = unit / work.order.count();
    WgmmaUnit u;
    u.split = int(rest % work.splits), u.item = int(rest / work.splits);
    u.row = int64_t(row) * kWgmmaRows;
    u.column = int64_t(column) * Tile::kColumns;
    const int64_t begin = u.split * work.split_depth;
    const int64_t depth = work.k - begin < work.split_depth ? work.k - begin : work.split_depth;
    u.first = int(begin / kDepth);
    u.rounds = int((depth + kDepth - 1) / kDepth);
    return u;
  }
};

/// Which stage of the ring comes next, and the parity of its phase.
template <int kStages> struct RingPlace {
  int stage = 0;
  unsigned parity = 0;
  BRASA_DEVICE_FN void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

#if BRASA_HAS_WGMMA

/// load(to, x, y) for the boxes of an operand's tile of `lines` lines: along the depth one, across
/// it panels of 64 rows.
template <class T, bool kAlong, class Load>
BRASA_DEVICE_FN void load_operand(unsigned char* to, int first, int lines, int round,
                                  const Load& load) {
  constexpr int kDepth = kLine128 / int(sizeof(T));
  if constexpr (kAlong) {
    load(to, round * kDepth, first);
  } else {
    for (int panel = 0; panel < lines / kDepth; ++panel)
      load(to + panel * kDepth * kLine128, first + panel * kDepth, round * kDepth);
  }
}

#endif

/// The left operand of a product of matrices. Other left operands have what this has.
template <class T, bool kAlongDepth> struct MatrixLeft {
  static constexpr bool kAlong = kAlongDepth;
  bool repeats;  ///< the same for all items

#if BRASA_HAS_WGMMA
  /// Loads its part of a stage: rows from `first` on.
  BRASA_DEVICE_FN void load(unsigned char* stage, const simt::TensorMap& map, simt::Barrier* full,
                            int first, int round, int item) const {
    load_operand<T, kAlong>(stage, first, kWgmmaRows, round, [&](void* to, int x, int y) {
      simt::tma_load(to, map, full, x, y, repeats ? 0 : item);
    });
  }
#endif
};

#if BRASA_HAS_WGMMA

/// The loading thread: all units of its block, stage by stage.
template <class T, class Tile, class Left, bool kRightAlong>
BRASA_DEVICE_FN void load_units(WgmmaShared<Tile>& shared, const simt::TensorMap& a_map,
                                const simt::TensorMap& b_map, const WgmmaWork& work,
                                const Left& left) {
  RingPlace<Tile::kStages> ring;
  for (int64_t unit = blockIdx.x; unit < work.units; unit += gridDim.x) {
    const auto u = WgmmaUnit::at<T, Tile>(work, unit);
    const int b_item = work.b_repeats ? 0 : u.item;
    for (int round = u.first; round < u.first + u.rounds; ++round, ring.advance()) {
      unsigned char* stage = shared.stage[ring.stage];
      simt::Barrier* full = &shared.full[ring.stage];
      simt::barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
      simt::barrier_expect(full, Tile::kStageBytes);
      left.load(stage, a_map, full, int(u.row), round, u.item);
      load_operand<T, kRightAlong>(
          stage + Tile::kLeftBytes, int(u.column), Tile::kColumns, round,
          [&](void* to, int x, int y) { simt::tma_load(to, b_map, full, x, y, b_item); });
    }
  }
}

/// Starts the products of a stage: a group of four.
template <class T, class Tile, bool kLeftAlong, bool kRightAlong>
BRASA_DEVICE_FN void multiply_stage(const unsigned char* stage, int multiplier, bool first,
                                    float (&sum)[Tile::kColumns / 2]) {
  constexpr int kSteps = kLine128 / 32, kDepth = kLine128 / int(sizeof(T));
  constexpr int kPanel = kDepth * kLine128;                    // bytes, of lines across the depth
  constexpr int kAlongStep = 32, kAcrossStep = 16 * kLine128;  // bytes from step to step
  const unsigned char* left = stage + multiplier * 64 * kLine128;
  simt::wgmma_fence();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const uint64_t a =
        simt::wgmma_operand(left, step * (kLeftAlong ? kAlongStep : kAcrossStep), kPanel);
    const uint64_t b = simt::wgmma_operand(stage + Tile::kLeftBytes,
                                           step * (kRightAlong ? kAlongStep : kAcrossStep), kPanel);
    simt::wgmma<T, Tile::kColumns, kLeftAlong, kRightAlong>(sum, a, b, !first || step > 0);
  }
  simt::wgmma_commit();
}

/// Stores a warpgroup's results in panels of 64 columns: two take turns, one being filled while the
/// copy engine reads the other; where there is one to a tile, the tile before has it, too.
template <class T, class Tile>
BRASA_DEVICE_FN void store_panels(WgmmaShared<Tile>& shared, const simt::TensorMap& y_map,
                                  int multiplier, int64_t row, int64_t column, int item,
                                  const float (&sum)[Tile::kColumns / 2]) {
  const int thread = int(threadIdx.x) % kGroupThreads, lane = thread % simt::kWarpSize;
  const int line = thread / simt::kWarpSize * kStageRows + lane % 8 + lane / 8 % 2 * 8;
#pragma unroll
  for (int p = 0; p < Tile::kColumns / 64; ++p) {
    unsigned char* panel = shared.panel[multiplier][p % 2];
    if (thread == 0) simt::tma_store_wait<(Tile::kColumns > 64 ? 1 : 0)>();
    simt::bar_sync(1 + multiplier, kGroupThreads);
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int at = 4 * (8 * p + j + w / 2) + 2 * (w % 2);
        words[w] = simt::narrow_pair<T>(sum[at], sum[at + 1]);
      }
      const int piece = (j + lane / 16) ^ (line & 7);
      simt::stmatrix_x4(panel + line * kLine128 + piece * 16, words);
    }
    simt::tma_store_fence();
    simt::bar_sync(1 + multiplier, kGroupThreads);
    if (thread == 0)
      simt::tma_store(y_map, panel, int(column) + 64 * p, int(row) + 64 * multiplier, item);
  }
}

/// A multiplying warpgroup: all units of its block.
template <class T, class Tile, bool kLeftAlong, bool kRightAlong, class Rows>
BRASA_DEVICE_FN void multiply_units(WgmmaShared<Tile>& shared, const simt::TensorMap& y_map,
                                    const WgmmaWork& work, Results<T, Rows> results) {
  const int multiplier = int(threadIdx.x) / kGroupThreads - 1;
  const unsigned thread = threadIdx.x % kGroupThreads;
  const int warp = int(thread) / simt::kWarpSize;
  const auto give_back = [&](int stage) {
    if (thread == 0) simt::barrier_arrive(&shared.empty[stage]);
  };
  float* const parts = results.parts;
  RingPlace<Tile::kStages> ring;
  for (int64_t unit = blockIdx.x; unit < work.units; unit += gridDim.x) {
    const auto u = WgmmaUnit::at<T, Tile>(work, unit);
    float sum[Tile::kColumns / 2];
    int before = 0;
#pragma unroll 1
    for (int round = 0; round < u.rounds; ++round) {
      simt::barrier_wait(&shared.full[ring.stage], ring.parity);
      multiply_stage<T, Tile, kLeftAlong, kRightAlong>(shared.stage[ring.stage], multiplier,
                                                       round == 0, sum);
      if (round > 0) {
        simt::wgmma_wait<1>();
        give_back(before);
      }
      before = ring.stage;
      ring.advance();
    }
    simt::wgmma_wait<0>();
    simt::wgmma_done(sum);
    give_back(before);
    if constexpr (sizeof(T) == 2) {
      if (work.panels) {
        store_panels<T, Tile>(shared, y_map, multiplier, u.row, u.column, u.item, sum);
        continue;
      }
    }
    results.offset = u.item * results.m * results.n;
    if (parts) results.parts = parts + u.split * work.items * results.m * results.n;
    store_accumulators<Tile::kColumns>(results, shared.store[multiplier * 4 + warp],
                                       u.row + multiplier * 64 + warp * kStageRows, u.column,
                                       [&](int j, int e) { return sum[4 * j + e]; });
  }
  if (thread == 0) simt::tma_store_wait<0>();  // the block's shared memory is read until then
}

#endif

template <class T, class Tile, class Left, bool kRightAlong, class Rows>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    wgmma_kernel(const __grid_constant__ simt::TensorMap a_map,
                 const __grid_constant__ simt::TensorMap b_map,
                 const __grid_constant__ simt::TensorMap y_map, WgmmaWork work, Left left,
                 Results<T, Rows> results) {
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
    if (threadIdx.x == 0) load_units<T, Tile, Left, kRightAlong>(*shared, a_map, b_map, work, left);
  } else {
    simt::acquire_registers<232>();
    multiply_units<T, Tile, Left::kAlong, kRightAlong>(*shared, y_map, work, results);
  }
#endif
}

}  // namespace brasa::cuda
