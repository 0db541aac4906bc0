// The product of tiles in FMA, the core of matrix products and convolutions in float32 and float64
// on CUDA.
//
// What bounds it is not the FMA units but who feeds them. A multiprocessor of Hopper has 128 of
// them in float32 and issues one instruction per clock to each quarter, so every instruction that
// is no FMA costs its slot; and the registers of a quarter are two banks that read one register
// per clock each, so a product that finds two of its three registers in one bank costs two clocks.
// - A thread has 8 x 16 results: 6 loads from shared memory in 128 products (8 x 8: 8 in 128).
// - Products go there and back again over the rows of a thread: from one to the next a factor
//   stays, in the operand cache, and the sum is in the bank that the other factor is not in. The
//   compiler then finds registers with 82 to 112 conflicts in 1024 products; row by row in one
//   direction there were 231, along the columns first 234.
// - What a step multiplies is loaded during the step before, across the barrier too; what a round
//   multiplies is on its way to registers during the round before.
// - Blocks are four warps and two share a multiprocessor, so that one multiplies while the other
//   waits at its barrier. One block of eight warps left these waits bare.
// By that count a round is 1024 products of 1207 to 1248 clocks, 82 to 85 % of the peak (before:
// 74 %, and 74 % is what was measured on an H200). A round of depth 16 would be 83 %, without
// registers for what convolutions remember.
//
// Threads copy packs of 16 bytes where elements are neighbours in memory, along the depth or along
// the extent (the rows of the left tile, the columns of the right one). Elements behind the end of
// the depth are zeros; rows and columns outside repeat others, and nobody stores what they give.
#pragma once

#include "core/epilogue.cuh"

namespace brasa::cuda {

/// Warps of 8 x 4 threads, kWarpsDown x kWarpsAcross of them, of kRowsOfThread x kColumnsOfThread
/// results a thread; kBlocks blocks share a multiprocessor.
template <class T, int kRowsOfThread, int kColumnsOfThread, int kWarpsDown, int kWarpsAcross,
          int kDepthOfRound, int kBlocksAtOnce>
struct FmaTile {
  static constexpr int kLanes = simt::kPackLanes<T>;
  static constexpr int kPerRow = kRowsOfThread, kPerColumn = kColumnsOfThread;
  static constexpr int kDown = 8 * kWarpsDown, kAcross = 4 * kWarpsAcross;  // threads
  static constexpr int kThreads = kDown * kAcross;
  static constexpr int kRows = kDown * kPerRow, kColumns = kAcross * kPerColumn;
  static constexpr int kDepth = kDepthOfRound, kBlocks = kBlocksAtOnce;

  static BRASA_DEVICE_FN int thread_row() {
    const int thread = int(threadIdx.x), warp = thread / simt::kWarpSize;
    return warp / kWarpsAcross * 8 + thread % simt::kWarpSize / 4;
  }
  static BRASA_DEVICE_FN int thread_column() {
    const int thread = int(threadIdx.x), warp = thread / simt::kWarpSize;
    return warp % kWarpsAcross * 4 + thread % 4;
  }
  /// Which of the tile's rows (or columns) a thread's i-th is: packs, spread over the tile.
  static BRASA_DEVICE_FN int row(int i) {
    return (i / kLanes * kDown + thread_row()) * kLanes + i % kLanes;
  }
  static BRASA_DEVICE_FN int column(int j) {
    return (j / kLanes * kAcross + thread_column()) * kLanes + j % kLanes;
  }
};

using FmaLarge = FmaTile<float, 8, 16, 2, 2, 8, 2>;   // 128 x 128 results
using FmaMedium = FmaTile<float, 8, 8, 2, 2, 8, 3>;   // 128 x 64
using FmaSmall = FmaTile<float, 4, 8, 2, 2, 16, 4>;   // 64 x 64
using FmaDouble = FmaTile<double, 4, 4, 2, 4, 8, 1>;  // 64 x 64; larger ones leave the registers

/// Elements of one operand for a round, [depth][extent]. Rows are a pack longer than the tile: they
/// then start in different banks.
template <class T, int kExtent, int kDepth>
using FmaSide = T[kDepth][kExtent + simt::kPackLanes<T>];

/// Both operands, twice.
template <class T, class Tile> struct FmaShared {
  FmaSide<T, Tile::kRows, Tile::kDepth> left[2];
  FmaSide<T, Tile::kColumns, Tile::kDepth> right[2];
};

/// A thread's part of the elements that one round brings of one operand.
template <class T, int kExtent, int kDepth, int kThreads> struct FmaPart {
  static constexpr int kLanes = simt::kPackLanes<T>, kAll = kExtent * kDepth / kLanes;
  static constexpr int kPacks = (kAll + kThreads - 1) / kThreads;
  simt::Pack<T, kLanes> pack[kPacks];

  /// Where pack k begins.
  static BRASA_DEVICE_FN int extent_of(int k, bool along_depth) {
    const int e = int(threadIdx.x) + k * kThreads;
    return along_depth ? e / (kDepth / kLanes) : e % (kExtent / kLanes) * kLanes;
  }
  static BRASA_DEVICE_FN int depth_of(int k, bool along_depth) {
    const int e = int(threadIdx.x) + k * kThreads;
    return along_depth ? e % (kDepth / kLanes) * kLanes : e / (kExtent / kLanes);
  }
  static BRASA_DEVICE_FN bool has(int k) {
    return kAll % kThreads == 0 || int(threadIdx.x) + k * kThreads < kAll;
  }
  BRASA_DEVICE_FN void store(bool along_depth, FmaSide<T, kExtent, kDepth>& side) const {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (!has(k)) continue;
      const int i = extent_of(k, along_depth), p = depth_of(k, along_depth);
      if (!along_depth) {
        simt::store_pack<kLanes>(&side[p][i], pack[k]);
        continue;
      }
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) side[p + lane][i] = pack[k][lane];
    }
  }

  /// Where element e stands, of those that are loaded one by one and kept in the packs.
  static constexpr int kElements = kPacks * kLanes;
  static BRASA_DEVICE_FN int extent_of_element(int e) {
    return (int(threadIdx.x) + e * kThreads) % kExtent;
  }
  static BRASA_DEVICE_FN int depth_of_element(int e) {
    return (int(threadIdx.x) + e * kThreads) / kExtent;
  }
  BRASA_DEVICE_FN void store_elements(FmaSide<T, kExtent, kDepth>& side) const {
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      side[depth_of_element(e)][extent_of_element(e)] = pack[e / kLanes][e % kLanes];
  }
};

/// What a thread multiplies in one step of the depth.
template <class T, class Tile> struct Fragments {
  T a[Tile::kPerRow], b[Tile::kPerColumn];

  BRASA_DEVICE_FN void load(const FmaShared<T, Tile>& shared, unsigned copy, int p) {
    constexpr int kLanes = Tile::kLanes;
#pragma unroll
    for (int i = 0; i < Tile::kPerRow; i += kLanes) {
      const auto pack = simt::load_pack<kLanes>(&shared.left[copy][p][Tile::row(i)]);
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) a[i + lane] = pack[lane];
    }
#pragma unroll
    for (int j = 0; j < Tile::kPerColumn; j += kLanes) {
      const auto pack = simt::load_pack<kLanes>(&shared.right[copy][p][Tile::column(j)]);
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) b[j + lane] = pack[lane];
    }
  }
};

constexpr int64_t kSplitDepth = 128;  // parts of a depth are multiples of it

/// Where part `part` of `parts` begins.
BRASA_HOST_DEVICE_FN int64_t part_begin(int64_t depth, int64_t parts, int64_t part) {
  return part == parts ? depth : depth / kSplitDepth * part / parts * kSplitDepth;
}

/// Clock cycles that rows x columns x depth take in `splits` parts of the depth, roughly: those of
/// the multiprocessor with most tiles, at least the latency of a round's loads in every round, and
/// what it costs to add parts up (a launch, and to write and read them at 1.2 KB a cycle). Of an
/// H100; fixed, for what it decides decides rounding.
template <class Tile>
int64_t estimate_fma(int64_t rows, int64_t columns, int64_t depth, int64_t batch, int64_t splits) {
  constexpr int64_t kMultiprocessors = 132, kLaunch = 6000, kTile = 2500, kBytesPerCycle = 1200;
  constexpr int64_t kMathLanes = 128, kLatency = 900;
  constexpr int64_t kResults = Tile::kPerRow * Tile::kPerColumn;
  constexpr int64_t kPercent = kResults >= 128  ? 80
                               : kResults >= 64 ? 70
                               : kResults >= 32 ? 60
                                                : 45;
  const int64_t tiles = simt::ceil_div<int64_t>(rows, Tile::kRows) *
                        simt::ceil_div<int64_t>(columns, Tile::kColumns) * batch * splits;
  if (tiles == 0) return 0;
  const int64_t most = simt::ceil_div(tiles, kMultiprocessors);
  const int64_t waves = simt::ceil_div<int64_t>(most, Tile::kBlocks);
  const int64_t warps = (most < Tile::kBlocks ? most : Tile::kBlocks) * Tile::kThreads / 32;
  const int64_t busy = warps >= 8 ? 100 : warps >= 4 ? 80 : 22 * warps;  // percent
  const int64_t steps = simt::ceil_div(depth, splits);
  const int64_t products =
      most * Tile::kRows * Tile::kColumns * steps / kMathLanes * 10000 / (kPercent * busy);
  const int64_t latency = waves * steps / Tile::kDepth * kLatency;
  const int64_t parts =
      splits > 1 ? kLaunch + splits * batch * rows * columns * 8 / kBytesPerCycle : 0;
  return (products > latency ? products : latency) + waves * kTile + parts;
}

/// Calls f(splits) for numbers of parts, up to `most`, that fill a GPU evenly.
template <class Tile, class F>
void for_splits(int64_t rows, int64_t columns, int64_t batch, int64_t most, const F& f) {
  constexpr int64_t kMultiprocessors = 132, kMostWaves = 16;
  const int64_t tiles = simt::ceil_div<int64_t>(rows, Tile::kRows) *
                        simt::ceil_div<int64_t>(columns, Tile::kColumns) * batch;
  f(int64_t(1));
  for (int64_t waves = 1; waves <= kMostWaves; waves += (waves + 1) / 2) {
    const int64_t splits = tiles > 0 ? waves * kMultiprocessors / tiles : 0;
    if (splits > 1) f(splits < most ? splits : most);
    if (splits >= most) break;
  }
}

template <class T, class Tile> using FmaSums = T[Tile::kPerRow][Tile::kPerColumn];

/// There and back again: from one multiplication to the next one factor stays, so that with the sum
/// two registers are read, one of either bank.
template <class T, class Tile>
BRASA_DEVICE_FN void multiply(const Fragments<T, Tile>& f, FmaSums<T, Tile>& sum) {
#pragma unroll
  for (int j = 0; j < Tile::kPerColumn; ++j) {
#pragma unroll
    for (int e = 0; e < Tile::kPerRow; ++e) {
      const int i = j % 2 ? Tile::kPerRow - 1 - e : e;
      sum[i][j] += f.a[i] * f.b[j];
    }
  }
}

/// sum += the product over all rounds. operands.fetch(round) starts the loads of a round, zeros
/// behind the last one, and operands.store(copy) writes what they brought to that copy of the
/// tiles; all threads call.
template <class T, class Tile, class Operands>
BRASA_DEVICE_FN void multiply_rounds(unsigned rounds, FmaShared<T, Tile>& shared,
                                     Operands& operands, FmaSums<T, Tile>& sum) {
  static_assert(Tile::kDepth % 2 == 0);
  if (rounds == 0) return;
  operands.fetch(0);
  operands.store(shared, 0);
  __syncthreads();
  Fragments<T, Tile> f[2];
  f[0].load(shared, 0, 0);
#pragma unroll 1
  for (unsigned round = 0; round < rounds; ++round) {
    operands.fetch(round + 1);
#pragma unroll
    for (int p = 0; p < Tile::kDepth; ++p) {
      if (p + 1 < Tile::kDepth) {
        f[(p + 1) % 2].load(shared, round % 2, p + 1);
      } else {
        operands.store(shared, 1 - round % 2);
        __syncthreads();
        f[0].load(shared, 1 - round % 2, 0);
      }
      multiply<T, Tile>(f[p % 2], sum);
    }
  }
  __syncthreads();  // others still read what another product would overwrite
}

/// Where results are: row `r` of the product begins at rows(r), its columns are `step` apart.
/// `packs` says that they may be written 16 bytes at a time.
template <class Rows> struct FmaResults {
  int64_t m, n, step;
  bool packs;
  Rows rows;
};

template <class T, class Rows>
BRASA_DEVICE_FN void read_results(const FmaResults<Rows>& r, const T* from, int live,
                                  T (&to)[simt::kPackLanes<T>]) {
  constexpr int kLanes = simt::kPackLanes<T>;
  simt::Pack<T, kLanes> pack{};
  if (r.packs) {
    pack = simt::load_pack<kLanes>(from);
  } else {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane)
      if (lane < live) pack[lane] = from[lane * r.step];
  }
#pragma unroll
  for (int lane = 0; lane < kLanes; ++lane) to[lane] = pack[lane];
}
template <class T, class Rows>
BRASA_DEVICE_FN void write_results(const FmaResults<Rows>& r, T* to, int live,
                                   const T (&from)[simt::kPackLanes<T>]) {
  constexpr int kLanes = simt::kPackLanes<T>;
  if (r.packs) {
    simt::Pack<T, kLanes> pack;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) pack[lane] = from[lane];
    simt::store_pack<kLanes>(to, pack);
    return;
  }
#pragma unroll
  for (int lane = 0; lane < kLanes; ++lane)
    if (lane < live) to[lane * r.step] = from[lane];
}

/// v + bias + residual, kept where the backward pass wants it; `at` is the offset of the pack.
template <class T, class Rows>
BRASA_DEVICE_FN void add_operands(const FmaResults<Rows>& r, const Epilogue<T>& e, int64_t column,
                                  int64_t at, int live, T (&v)[simt::kPackLanes<T>]) {
  constexpr int kLanes = simt::kPackLanes<T>;
  if (e.bias) {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane)
      if (lane < live) v[lane] += e.bias[column + lane];
  }
  if (e.residual) {
    T some[kLanes];
    read_results(r, e.residual + at, live, some);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) v[lane] += some[lane];
  }
  if (e.pre_activation) write_results(r, e.pre_activation + at, live, v);
}

/// Finishes a thread's results and writes them, a row at a time: there is one copy of this code.
/// The tile begins at `row` and `column`, whose bias is number `channel`; `offset` is added to all
/// places.
template <class T, class Tile, class Rows>
BRASA_DEVICE_FN void store_sums(const FmaResults<Rows>& r, const Epilogue<T>& epilogue,
                                int64_t offset, T* y, int64_t row, int64_t column, int64_t channel,
                                const FmaSums<T, Tile>& sum) {
  constexpr int kLanes = Tile::kLanes;
#pragma unroll 1
  for (int i = 0; i < Tile::kPerRow; ++i) {
    if (row + Tile::row(i) >= r.m) break;
    T v[Tile::kPerColumn] = {};
#pragma unroll
    for (int e = 0; e < Tile::kPerRow; ++e) {  // registers have no address: one is taken
      if (e != i) continue;
#pragma unroll
      for (int j = 0; j < Tile::kPerColumn; ++j) v[j] = sum[e][j];
    }
    const int64_t begin = offset + r.rows(row + Tile::row(i));
    const auto for_packs = [&](const auto& f) {
#pragma unroll
      for (int j = 0; j < Tile::kPerColumn; j += kLanes) {
        const int64_t c = column + Tile::column(j);
        const int live = r.n - c < kLanes ? int(r.n - c) : kLanes;
        if (live > 0)
          f(simt::opaque(begin + c * r.step), live, j, *reinterpret_cast<T(*)[kLanes]>(v + j));
      }
    };
    for_packs([&](int64_t at, int live, int j, T(&pack)[kLanes]) {
      add_operands(r, epilogue, channel + Tile::column(j), at, live, pack);
    });
    activate_registers(epilogue.activation, v);
    for_packs([&](int64_t at, int live, int, const T(&pack)[kLanes]) {
      write_results(r, y + at, live, pack);
    });
  }
}

}  // namespace brasa::cuda
