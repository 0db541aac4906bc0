// The kernel of large products on Hopper's tensor cores (sm_90a).
//
// A block has a warpgroup that loads and two that multiply: 64 rows of the tile each, or, where
// there are no more than 64, half of the columns. One thread keeps a ring of stages filled by the
// copy engine; a stage goes back when both warpgroups have multiplied it, one round late, so that a
// product is always under way. Blocks stay and take tiles in turn: while results are stored, the
// next tile's stages fill. Where there are few tiles, blocks of a cluster share the depth of one
// and add up their sums through each other's shared memory.
//
// Where all tiles have the same short right operand (64 channels of a convolution), it is loaded
// once and stays: the traffic from L2, 7 TB/s on an H100, falls by a third.
//
// Floor: 2 m n k operations at the tensor cores' rate. A round of 64 x 16 bits multiplies
// 128 x 256 x 64 in 1,024 cycles and reads 48 KiB, 48 bytes a cycle. Few rows cost the bytes of the
// right operand: rows that are not there are zeros that the copy engine does not read. Lost, on an
// H200: clusters of two blocks that load the right operand for each other (4096: 207 us, not 189;
// in clusters of four 340); results through registers and a stage of each warp, not the copy engine
// (8192: 5 %).
#pragma once

#include "matmul/gemm_cluster.cuh"
#include "matmul/gemm_tensor.h"
#include "matmul/tf32_split.cuh"
#include "matmul/tile_order.cuh"
#include "matmul/wgmma_panels.cuh"

namespace brasa::cuda {

constexpr int kWgmmaRows = 128, kWgmmaThreads = 384, kMultipliers = 2;

template <int kTileColumns, int kTileRows = kWgmmaRows> struct WgmmaTile {
  static constexpr bool kThrice = false;  ///< operands are split for 3xTF32
  static constexpr int kRows = kTileRows, kColumns = kTileColumns;
  static constexpr bool kOwnRows = kRows == kWgmmaRows;  ///< of a warpgroup, else it has columns
  static constexpr int kOwnColumns = kOwnRows ? kColumns : kColumns / kMultipliers;
  static constexpr int kLeftBytes = kRows * kLine128, kRightBytes = kColumns * kLine128;
  static constexpr int kStageBytes = kLeftBytes + kRightBytes;
  static constexpr int kStages = 192 * 1024 / kStageBytes, kMostStages = 12;
};

struct ThriceWgmma : WgmmaTile<128> {
  static constexpr bool kThrice = true;
};

/// Sums of a cluster take the place of stages. Results leave in panels by the copy engine, parts
/// and what the copy engine cannot write through a stage of each warp.
template <class Tile> struct WgmmaShared {
  union {
    unsigned char stage[Tile::kStages][Tile::kStageBytes];
    ClusterSums<Tile::kRows, Tile::kColumns> sums;
  };
  union {
    unsigned char panel[kMultipliers][2][kPanelBytes];
    WarpStage store[kMultipliers * 4];
  };
  float bias[kMultipliers][Tile::kOwnColumns];
  simt::Barrier full[Tile::kMostStages], empty[Tile::kMostStages];
};

/// What all blocks share out: units, numbered by tile, then by part of the depth, then by item; in
/// clusters, whose blocks have a unit each, by part first.
struct WgmmaWork {
  TileOrder order;
  int64_t units, k, split_depth, items;
  int splits, stages;
  int kept;  ///< bytes of the right operand that stay in shared memory, in front of the stages
  bool in_cluster;
  bool b_repeats;  ///< the right operand is the same for all items
  bool panels;     ///< results are stored by the copy engine
};

/// Chooses the stages. Where blocks have more than one tile and all have the same right operand, of
/// at most half of the stages' bytes, it stays, and stages are of the left one alone.
template <class T, class Tile> void plan_stages(WgmmaWork& work, int64_t blocks) {
  const int64_t rounds = simt::ceil_div<int64_t>(work.k, kLine128 / int64_t(sizeof(T)));
  const bool same = work.order.columns == 1 && work.splits == 1 && work.b_repeats;
  constexpr int kBytes = Tile::kStages * Tile::kStageBytes;
  const bool keeps = same && work.units > blocks && 2 * rounds * Tile::kRightBytes <= kBytes;
  work.kept = keeps ? int(rounds) * Tile::kRightBytes : 0;
  const int each = keeps ? Tile::kLeftBytes : Tile::kStageBytes;
  const int fit = (kBytes - work.kept) / each;
  work.stages = fit < Tile::kMostStages ? fit : Tile::kMostStages;
}

struct WgmmaUnit {
  int64_t row, column;  ///< of the tile
  int split, item;
  int first, rounds;  ///< of the depth, in lines

  template <class T, class Tile>
  static BRASA_DEVICE_FN WgmmaUnit at(const WgmmaWork& work, int64_t unit) {
    constexpr int64_t kDepth = kLine128 / int64_t(sizeof(T));
    unsigned row, column;
    WgmmaUnit u;
    if (work.in_cluster) u.split = int(unit % work.splits), unit /= work.splits;
    work.order.place(unsigned(unit % work.order.count()), row, column);
    unit /= work.order.count();
    if (!work.in_cluster) u.split = int(unit % work.splits), unit /= work.splits;
    u.item = int(unit);
    u.row = int64_t(row) * Tile::kRows;
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
  BRASA_DEVICE_FN void advance(int stages = kStages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

/// Where the operands of a round are: in one stage, or the right one where it stays.
template <class Tile> struct StagePlace {
  unsigned char *left, *right;

  BRASA_DEVICE_FN StagePlace(unsigned char* stage) : left(stage), right(stage + Tile::kLeftBytes) {}
  BRASA_DEVICE_FN StagePlace(WgmmaShared<Tile>& shared, const WgmmaWork& work, int stage, int round)
      : StagePlace(shared.stage[0] + stage * Tile::kStageBytes) {
    if (work.kept == 0) return;
    left = shared.stage[0] + work.kept + stage * Tile::kLeftBytes;
    right = shared.stage[0] + round * Tile::kRightBytes;
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
template <class T, int kRows, bool kAlongDepth> struct MatrixLeft {
  static constexpr bool kAlong = kAlongDepth;
  bool repeats;  ///< the same for all items

#if BRASA_HAS_WGMMA
  /// Loads its part of one stage after another: rows from `first` on, lines from `round` on.
  struct Cursor {
    int first, round, item;
    BRASA_DEVICE_FN void load(unsigned char* stage, const simt::TensorMap& map,
                              simt::Barrier* full) {
      load_operand<T, kAlong>(stage, first, kRows, round++, [&](void* to, int x, int y) {
        simt::tma_load(to, map, full, x, y, item);
      });
    }
  };
  BRASA_DEVICE_FN Cursor start(int first, int round, int item) const {
    return {first, round, repeats ? 0 : item};
  }
#endif
};

#if BRASA_HAS_WGMMA

/// The loading thread: all units of its block, stage by stage.
template <class T, class Tile, class Left, bool kRightAlong>
BRASA_DEVICE_FN void load_units(WgmmaShared<Tile>& shared, const simt::TensorMap& a_map,
                                const simt::TensorMap& b_map, const WgmmaWork& work,
                                const Left& left) {
  RingPlace<Tile::kMostStages> ring;
  for (int64_t unit = blockIdx.x; unit < work.units; unit += gridDim.x) {
    const auto u = WgmmaUnit::at<T, Tile>(work, unit);
    const int b_item = work.b_repeats ? 0 : u.item;
    auto cursor = left.start(int(u.row), u.first, u.item);
    const bool both = work.kept == 0 || unit == blockIdx.x;
    for (int round = u.first; round < u.first + u.rounds; ++round, ring.advance(work.stages)) {
      const StagePlace<Tile> at(shared, work, ring.stage, round);
      simt::Barrier* full = &shared.full[ring.stage];
      simt::barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
      simt::barrier_expect(full, both ? Tile::kStageBytes : Tile::kLeftBytes);
      cursor.load(at.left, a_map, full);
      if (both)
        load_operand<T, kRightAlong>(
            at.right, int(u.column), Tile::kColumns, round,
            [&](void* to, int x, int y) { simt::tma_load(to, b_map, full, x, y, b_item); });
    }
  }
}

/// Whether blocks of a cluster may share the depth of a tile.
template <class Left> constexpr bool kMayCluster = false;
template <class T, int kRows, bool kAlong>
constexpr bool kMayCluster<MatrixLeft<T, kRows, kAlong>> = true;

/// Starts the products of a stage: a group of four, or six of split operands.
template <class T, class Tile, bool kLeftAlong, bool kRightAlong>
BRASA_DEVICE_FN void multiply_stage(const StagePlace<Tile>& stage, int multiplier, bool first,
                                    float (&sum)[Tile::kOwnColumns / 2]) {
  constexpr int kProducts = Tile::kThrice ? kSplitProducts : kLine128 / 32;
  constexpr int kDepth = kLine128 / int(sizeof(T));
  constexpr int kPanel = kDepth * kLine128;                    // bytes, of lines across the depth
  constexpr int kAlongStep = 32, kAcrossStep = 16 * kLine128;  // bytes from step to step
  constexpr int kRight = Tile::kOwnRows ? 0 : Tile::kOwnColumns * kLine128;
  const unsigned char* left = stage.left + (Tile::kOwnRows ? multiplier * 64 * kLine128 : 0);
  const unsigned char* right = stage.right + multiplier * kRight;
  simt::wgmma_fence();
#pragma unroll
  for (int p = 0; p < kProducts; ++p) {
    const int of_left = Tile::kThrice ? split_left(p) : p;
    const int of_right = Tile::kThrice ? split_right(p) : p;
    const uint64_t a =
        simt::wgmma_operand(left, of_left * (kLeftAlong ? kAlongStep : kAcrossStep), kPanel);
    const uint64_t b =
        simt::wgmma_operand(right, of_right * (kRightAlong ? kAlongStep : kAcrossStep), kPanel);
    simt::wgmma<T, Tile::kOwnColumns, kLeftAlong, kRightAlong>(sum, a, b, !first || p > 0);
  }
  simt::wgmma_commit();
}

/// What a multiplying warpgroup does of all units of its block.
template <class T, class Tile, class Left, bool kRightAlong, class Results> struct Multiplier {
  using Sums = float[Tile::kOwnColumns / 2];
  WgmmaShared<Tile>& shared;
  const simt::TensorMap& y_map;
  const WgmmaWork& work;
  const Results& results;
  const int number = int(threadIdx.x) / kGroupThreads - 1;
  const int thread = int(threadIdx.x) % kGroupThreads, warp = thread / simt::kWarpSize;
  RingPlace<Tile::kMostStages> ring{};
  unsigned turn = 0;  ///< of the panels

  BRASA_DEVICE_FN int own_row() const { return Tile::kOwnRows ? number * 64 : 0; }
  BRASA_DEVICE_FN int own_column() const { return Tile::kOwnRows ? 0 : number * Tile::kOwnColumns; }
  BRASA_DEVICE_FN void give_back(int stage) const {
    if (thread == 0) simt::barrier_arrive(&shared.empty[stage]);
  }

  BRASA_DEVICE_FN void multiply(int rounds, Sums& sum) {
    int before = 0;
#pragma unroll 1
    for (int round = 0; round < rounds; ++round) {
      simt::barrier_wait(&shared.full[ring.stage], ring.parity);
      const StagePlace<Tile> stage(shared, work, ring.stage, round);
      multiply_stage<T, Tile, Left::kAlong, kRightAlong>(stage, number, round == 0, sum);
      if (round > 0) {
        simt::wgmma_wait<1>();
        give_back(before);
      }
      before = ring.stage;
      ring.advance(work.stages);
    }
    simt::wgmma_wait<0>();
    simt::wgmma_done(sum);
    give_back(before);
  }

  /// The same of split operands, whose line has sums of its own: tensor cores cut what they add.
  /// The other warpgroup multiplies while this one waits and adds.
  BRASA_DEVICE_FN void multiply_split(int rounds, Sums& sum) {
#pragma unroll
    for (float& s : sum) s = 0.0f;
#pragma unroll 1
    for (int round = 0; round < rounds; ++round) {
      simt::barrier_wait(&shared.full[ring.stage], ring.parity);
      const StagePlace<Tile> stage(shared, work, ring.stage, round);
      Sums line;
      multiply_stage<T, Tile, Left::kAlong, kRightAlong>(stage, number, true, line);
      simt::wgmma_wait<0>();
      simt::wgmma_done(line);
      give_back(ring.stage);
      ring.advance(work.stages);
#pragma unroll
      for (int i = 0; i < Tile::kOwnColumns / 2; ++i) sum[i] += line[i];
    }
  }

  /// In a cluster the block has one unit, and its sums replace the stages, which both warpgroups
  /// are done with.
  BRASA_DEVICE_FN void share(const Sums& sum) const {
    simt::bar_sync(1 + kMultipliers, kMultipliers * kGroupThreads);
    share_sums<Tile::kOwnColumns>(shared.sums, own_row() + warp * kStageRows, own_column(),
                                  [&](int j, int e) { return sum[4 * j + e]; });
    simt::cluster_sync();
  }

  /// Stores through a stage of each warp, of a cluster's sums what is this warp's.
  BRASA_DEVICE_FN void store_rows(const WgmmaUnit& u, const Sums& sum) const {
    constexpr int kPieces = Tile::kOwnColumns / kStageColumns;
    const bool shares = kMayCluster<Left> && work.in_cluster;
    const int of_block = number * 4 + warp;
    WarpStage& stage = shared.store[of_block];
    const ClusterPieces<Tile::kRows, Tile::kColumns> pieces(shares ? unsigned(work.splits) : 1,
                                                            of_block, kMultipliers * 4);
    Results r = results;
    r.offset = u.item * r.m * r.n;
    if (r.parts) r.parts += u.split * work.items * r.m * r.n;
    if (shares) share(sum);
    store_pieces(
        r, stage, shares ? pieces.count() : kPieces,
        [&](int p) {
          const StagePiece at =
              shares ? pieces.at(p)
                     : own_piece<Tile::kOwnColumns>(own_row() + warp * kStageRows, own_column(), p);
          return StagePiece{u.row + at.row, u.column + at.column, at.rows};
        },
        [&](int p) {
          if (shares)
            pieces.fill(shared.sums, p, stage);
          else
            fill_stage<kPieces, Tile::kOwnColumns>(
                stage, p, [&](int, int j, int e) { return sum[4 * j + e]; });
        });
    if (shares) simt::cluster_sync();  // others' shared memory is read until then
  }

  BRASA_DEVICE_FN void multiply_and_finish(const WgmmaUnit& u) {
    const int64_t row = u.row + own_row(), column = u.column + own_column();
    TileBias<T, Tile::kOwnColumns> bias;
    if (work.panels) bias.load(results.epilogue, column, results.n);
    Sums sum;
    if constexpr (Tile::kThrice)
      multiply_split(u.rounds, sum);
    else
      multiply(u.rounds, sum);
    if (work.panels && results.epilogue.is_trivial()) {
      store_panels<true, T, Tile::kOwnColumns>(shared.panel[number], turn, shared.bias[number],
                                               y_map, results, 1 + number, row, column, u.item,
                                               sum);
    } else if (work.panels) {
      bias.share(results.epilogue, shared.bias[number]);
      store_panels<false, T, Tile::kOwnColumns>(shared.panel[number], turn, shared.bias[number],
                                                y_map, results, 1 + number, row, column, u.item,
                                                sum);
    } else {
      store_rows(u, sum);
    }
  }

  BRASA_DEVICE_FN void all_units() {
    for (int64_t unit = blockIdx.x; unit < work.units; unit += gridDim.x) {
      const auto u = WgmmaUnit::at<T, Tile>(work, unit);
      if constexpr (std::is_same_v<Results, PartSums>) {
        Sums sum;
        multiply(u.rounds, sum);
        store_rows(u, sum);
      } else {
        multiply_and_finish(u);
      }
    }
    if (thread == 0) simt::tma_store_wait<0>();  // the block's shared memory is read until then
  }
};

#endif

template <class T, class Tile, class Left, bool kRightAlong, class Results>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    wgmma_kernel(const __grid_constant__ simt::TensorMap a_map,
                 const __grid_constant__ simt::TensorMap b_map,
                 const __grid_constant__ simt::TensorMap y_map, WgmmaWork work, Left left,
                 Results results) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(WgmmaShared<Tile>, shared);
  if (threadIdx.x == 0) {
    for (int s = 0; s < work.stages; ++s) {
      simt::barrier_init(&shared->full[s], 1);
      simt::barrier_init(&shared->empty[s], kMultipliers);
    }
    simt::barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < kGroupThreads) {
    simt::release_registers<40>();
    if (threadIdx.x == 0) load_units<T, Tile, Left, kRightAlong>(*shared, a_map, b_map, work, left);
    if (kMayCluster<Left> && work.in_cluster) {
      simt::cluster_sync();
      simt::cluster_sync();
    }
  } else {
    simt::acquire_registers<232>();
    Multiplier<T, Tile, Left, kRightAlong, Results>{*shared, y_map, work, results}.all_units();
  }
#endif
}

/// Whether the copy engine writes such results: whole rows of 16-byte pieces, finished by what all
/// accumulators can have side by side.
inline bool leave_in_panels(const PartSums&) {
  return false;
}
template <class T, class Rows> bool leave_in_panels(const Results<T, Rows>& results) {
  return results.packs && !results.parts && results.rows.pitch() == results.n &&
         is_common<T>(results.epilogue.activation.kind);
}

}  // namespace brasa::cuda
