// One step of a recurrent layer on CUDA: a product of the states with a weight matrix, finished
// element by element by whoever owns the sum.
//
// A block owns kUnits units for some rows of the batch. Its 8 warps split the depth: each brings
// its slice of the states from L2 into shared memory, chunk by chunk with asynchronous copies that
// go past L1, and multiplies it with its slice of the weights. The sums of all warps (and of the
// parts within a warp) are added in their order, a thread per row and unit, which then does what
// the cell does: the gates of a unit meet in one thread.
//
// Resident: one cooperative launch for all steps. The block's weights stay in shared memory, the
// states of a step go to the other blocks through L2 (`Exchange`, two planes by turns), and one
// barrier of the grid separates steps. Otherwise: a launch per step, weights streamed as the states
// are. Both add the same products in the same order, which depends on the depth alone, so a
// sequence in pieces, a sample alone and any GPU give the same bits.
//
// Floor of a resident step: 2 B N K operations over the multiprocessors, or the 128 bytes per clock
// in which a multiprocessor reads its share of the weights (1024 clocks for 128 KiB), and the
// barrier.
#pragma once

#include "core/device.cuh"
#include "core/ptx_async.cuh"

namespace brasa::cuda {

constexpr int kStepThreads = 256;
constexpr int kStepWarps = kStepThreads / simt::kWarpSize;
constexpr int kUnits = 8;       // of a block
constexpr int kRowGroups = 4;   // of a warp's lanes; each holds every fourth row
constexpr int kSliceUnit = 16;  // elements: a slice is whole packs for every part

/// Rows per lane: a block has 8, 16 or 32 rows; in float64 at most 16, for 32 leave too few
/// registers.
constexpr int kFewRows = 2, kSomeRows = 4;
template <class T> constexpr int kManyRows = sizeof(T) == 4 ? 8 : 4;

/// Rows of states that blocks exchange, of `pitch` elements: zeros behind the depth. A step reads
/// plane `step` and writes plane `step + 1`, counted in turns.
template <class T> struct Exchange {
  T* data;
  int64_t pitch, rows;
  int planes;

  BRASA_HOST_DEVICE_FN T* row(int64_t step, int64_t b) const {
    return data + (step % planes * rows + b) * pitch;
  }
};

/// Element k of column c of unit u is from[u unit + c column + k depth].
template <class T> struct StepWeights {
  const T* from;
  int64_t unit, column, depth;

  bool packs(int64_t length) const {
    constexpr int64_t kLanes = simt::kPackLanes<T>;
    return depth == 1 && unit % kLanes == 0 && column % kLanes == 0 && length % kLanes == 0 &&
           simt::pack_aligned(from);
  }
};

/// Elements of the depth that a warp takes, and those of all.
static inline int64_t step_slice(int64_t depth) {
  const int64_t units = simt::ceil_div<int64_t>(depth, kStepWarps * kSliceUnit);
  return (units < 1 ? 1 : units) * kSliceUnit;
}
static inline int64_t step_pitch(int64_t depth) {
  return kStepWarps * step_slice(depth);
}

template <class T> struct StepProduct {
  int64_t rows, units, depth;
  int slice;
  bool packs;
  StepWeights<T> weights;
  Exchange<T> states;

  StepProduct(const Exchange<T>& from, int64_t unit_count, int64_t length, const StepWeights<T>& w)
      : rows(from.rows),
        units(unit_count),
        depth(length),
        slice(int(step_slice(length))),
        packs(w.packs(length)),
        weights(w),
        states(from) {}
};

/// kColumns_ sums per lane and row. With one part these are the columns of one unit; with four, the
/// lanes of a quarter share four units and take every fourth pack of the slice each.
template <class T, int kColumns_, int kParts_, int kRows_, bool kResident_> struct StepTile {
  static constexpr int kColumns = kColumns_, kParts = kParts_, kRows = kRows_;
  static constexpr bool kResident = kResident_;
  static_assert((kParts == 1 && kColumns <= 4) || (kParts == 4 && kColumns == 4));

  static constexpr int kLanes = simt::kPackLanes<T>;
  static constexpr int kChunk = 128 / int(sizeof(T)), kPacks = kChunk / kLanes;
  static constexpr int kWeightRows = kParts == 1 ? kColumns * kUnits : kUnits;
  static constexpr int kBlockRows = kRows * kRowGroups;
  // Rows end in a pack or two of padding: what a warp reads at once then lies in different banks.
  static constexpr int kStatePitch = kChunk + (kParts == 1 ? 1 : 2) * kLanes;
  static constexpr int kWeightPitch = kChunk + kLanes;
  static constexpr int kStages = kResident && kRows < kManyRows<T> ? 4 : 2;
  static constexpr int kStage =
      kBlockRows * kStatePitch + (kResident ? 0 : kWeightRows * kWeightPitch);
  static constexpr int kSums = kRows * kColumns, kSumPitch = simt::kWarpSize + 1;
  static constexpr int kWarpElements = kStages * kStage;
  static_assert(kSums * kSumPitch <= kWarpElements, "the sums take the place of the stages");

  /// Of the resident weights.
  static BRASA_HOST_DEVICE_FN int resident_pitch(int slice) { return kStepWarps * slice + kLanes; }
  static size_t shared_bytes(int slice) {
    const int64_t weights = kResident ? int64_t(kWeightRows) * resident_pitch(slice) : 0;
    return size_t(kStepWarps * kWarpElements + weights) * sizeof(T);
  }

  static BRASA_DEVICE_FN int lane() { return int(threadIdx.x) % simt::kWarpSize; }
  static BRASA_DEVICE_FN int warp() { return int(threadIdx.x) / simt::kWarpSize; }
  static BRASA_DEVICE_FN int row_group() { return lane() / kUnits; }
  static BRASA_DEVICE_FN int part() { return kParts == 1 ? 0 : lane() % kParts; }
  /// Row of the weights that column c of this lane is.
  static BRASA_DEVICE_FN int weight_row(int c) {
    return kParts == 1 ? c * kUnits + lane() % kUnits : lane() % kUnits / kParts * kColumns + c;
  }

  /// Starts the copy of `width` elements from k of the block's rows of states.
  static BRASA_DEVICE_FN void copy_states(const StepProduct<T>& p, int64_t step, int64_t first_row,
                                          int k, int width, T* stage) {
    const T* const from = p.states.row(step, first_row);
#pragma unroll
    for (int e = 0; e < kBlockRows * kPacks; e += simt::kWarpSize) {
      const int row = (e + lane()) / kPacks, at = (e + lane()) % kPacks * kLanes;
      const bool valid = first_row + row < p.rows && at < width;
      simt::cp_async<16>(stage + row * kStatePitch + at, from + row * p.states.pitch + k + at,
                         valid ? 16 : 0);
    }
  }

  /// The same for the weights of units from `first_unit`; zeros behind the depth.
  static BRASA_DEVICE_FN void copy_weights(const StepProduct<T>& p, int64_t first_unit, int k,
                                           int width, T* to, int pitch) {
    const auto copy = [&]<int kBytes>(int row, int at) {
      if (at >= width) return;  // another warp's, where weights are kept
      const int64_t unit = first_unit + row % kUnits;
      const bool valid = unit < p.units && k + at < p.depth;
      simt::cp_async<kBytes>(to + row * pitch + at,
                             p.weights.from + unit * p.weights.unit +
                                 row / kUnits * p.weights.column + (k + at) * p.weights.depth,
                             valid ? kBytes : 0);
    };
    if (p.packs) {
#pragma unroll 4
      for (int e = lane(); e < kWeightRows * kPacks; e += simt::kWarpSize)
        copy.template operator()<16>(e / kPacks, e % kPacks * kLanes);
    } else if (p.weights.depth == 1) {
#pragma unroll 1
      for (int e = lane(); e < kWeightRows * kChunk; e += simt::kWarpSize)
        copy.template operator()<int(sizeof(T))>(e / kChunk, e % kChunk);
    } else {
#pragma unroll 1
      for (int e = lane(); e < kWeightRows * kChunk; e += simt::kWarpSize)
        copy.template operator()<int(sizeof(T))>(e % kWeightRows, e / kWeightRows);
    }
  }

  /// Brings the block's weights for all steps; all threads call.
  static BRASA_DEVICE_FN void keep_weights(const StepProduct<T>& p, int64_t first_unit, T* kept) {
    const int begin = warp() * p.slice;
    for (int k = 0; k < p.slice; k += kChunk)
      copy_weights(p, first_unit, begin + k, chunk_width(p, k), kept + begin + k,
                   resident_pitch(p.slice));
    simt::cp_async_commit();
    simt::cp_async_wait<0>();
    __syncthreads();
  }

  static BRASA_DEVICE_FN int chunk_width(const StepProduct<T>& p, int k) {
    return p.slice - k < kChunk ? p.slice - k : kChunk;
  }

  static BRASA_DEVICE_FN void multiply_chunk(const T* states, const T* weights, int weight_pitch,
                                             int width, T (&sum)[kRows][kColumns]) {
    const T* const my_states = states + row_group() * kStatePitch;
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

  /// sum += the warp's slice of the product; `stages` is the warp's own, `kept` the block's.
  static BRASA_DEVICE_FN void multiply(const StepProduct<T>& p, int64_t step, int64_t first_row,
                                       int64_t first_unit, T* stages, const T* kept,
                                       T (&sum)[kRows][kColumns]) {
    const int begin = warp() * p.slice, chunks = simt::ceil_div(p.slice, kChunk);
    const auto fetch = [&](int chunk) {
      if (chunk < chunks) {
        T* const stage = stages + chunk % kStages * kStage;
        const int k = chunk * kChunk, width = chunk_width(p, k);
        copy_states(p, step, first_row, begin + k, width, stage);
        if constexpr (!kResident)
          copy_weights(p, first_unit, begin + k, width, stage + kBlockRows * kStatePitch,
                       kWeightPitch);
      }
      simt::cp_async_commit();
    };
    for (int chunk = 0; chunk < kStages - 1; ++chunk) fetch(chunk);
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      simt::cp_async_wait<kStages - 2>();
      __syncwarp();  // all have read the stage that is fetched into, and see the one that is read
      fetch(chunk + kStages - 1);
      const T* const stage = stages + chunk % kStages * kStage;
      if constexpr (kResident) {
        multiply_chunk(stage, kept + begin + chunk * kChunk, resident_pitch(p.slice),
                       chunk_width(p, chunk * kChunk), sum);
      } else {
        multiply_chunk(stage, stage + kBlockRows * kStatePitch, kWeightPitch,
                       chunk_width(p, chunk * kChunk), sum);
      }
    }
    __syncwarp();
  }

  /// A thread owns row row_group() + kRowGroups warp() and unit lane() % kUnits of the tile.
  static BRASA_DEVICE_FN bool owns_row() { return warp() < kRows; }

  /// Leaves the warp's sums where its stages were.
  static BRASA_DEVICE_FN void put_sums(const T (&sum)[kRows][kColumns], T* stages) {
#pragma unroll
    for (int e = 0; e < kSums; ++e)
      stages[e * kSumPitch + lane()] = sum[e / kColumns][e % kColumns];
  }

  /// The sums of what this thread owns; `all` are the stages of all warps.
  static constexpr int kOwned = kParts == 1 ? kColumns : 1;
  static BRASA_DEVICE_FN void take_sums(const T* all, T (&total)[kOwned]) {
#pragma unroll
    for (int c = 0; c < kOwned; ++c) {
      const int column = kParts == 1 ? c : part();
      const T* const from = all + (warp() * kColumns + column) * kSumPitch;
      total[c] = 0;
#pragma unroll
      for (int w = 0; w < kStepWarps; ++w) {
#pragma unroll
        for (int i = 0; i < kParts; ++i)
          total[c] += from[w * kWarpElements + (kParts == 1 ? lane() : lane() - part() + i)];
      }
    }
  }
};

/// Steps [first, last) of a cell, one of them where the weights are not resident. Blocks walk units
/// first, then rows.
///
/// A Cell has kColumns and kParts; Operands fetch(step, row, unit), loads that do not wait for the
/// product; and finish(step, row, unit, sums, operands).
template <class T, class Cell, int kRows, bool kResident>
__global__ void __launch_bounds__(kStepThreads, 1)
    step_kernel(StepProduct<T> product, Cell cell, int64_t first, int64_t last) {
  using Tile = StepTile<T, Cell::kColumns, Cell::kParts, kRows, kResident>;
  BRASA_DYN_SHARED(T, stages);
  T* const mine = stages + Tile::warp() * Tile::kWarpElements;
  T* const kept = stages + kStepWarps * Tile::kWarpElements;

  const auto groups = unsigned(simt::ceil_div<int64_t>(product.units, kUnits));
  const int64_t first_unit = int64_t(blockIdx.x % groups) * kUnits;
  const int64_t unit = first_unit + Tile::lane() % kUnits;
  if constexpr (kResident) Tile::keep_weights(product, first_unit, kept);

  for (int64_t step = first; step < last; ++step) {
    for (int64_t first_row = int64_t(blockIdx.x / groups) * Tile::kBlockRows;
         first_row < product.rows; first_row += int64_t(gridDim.x / groups) * Tile::kBlockRows) {
      const int64_t row = first_row + Tile::row_group() + kRowGroups * Tile::warp();
      const bool owner = Tile::owns_row() && row < product.rows && unit < product.units;
      typename Cell::Operands operands{};
      if (owner) operands = cell.fetch(step, row, unit);

      T sum[Tile::kRows][Tile::kColumns] = {};
      Tile::multiply(product, step, first_row, first_unit, mine, kept, sum);
      Tile::put_sums(sum, mine);
      __syncthreads();
      if (owner) {
        T total[Tile::kOwned];
        Tile::take_sums(stages, total);
        cell.finish(step, row, unit, total, operands);
      }
      __syncthreads();  // the sums have been read
    }
    if (kResident && step + 1 < last) simt::grid_sync();
  }
}

// ----------------------------------------------------------------------------------------
// launchers

/// One cooperative launch, if the blocks of all units fit on the GPU together, and with `whole` all
/// rows too.
template <class T, class Cell, int kRows>
bool launch_resident(Context ctx, const StepProduct<T>& product, const Cell& cell, int64_t steps,
                     bool whole) {
  using Tile = StepTile<T, Cell::kColumns, Cell::kParts, kRows, true>;
  const auto kernel = step_kernel<T, Cell, kRows, true>;
  const size_t shared = Tile::shared_bytes(product.slice);
  const int64_t groups = simt::ceil_div<int64_t>(product.units, kUnits);
  const int64_t tiles = simt::ceil_div<int64_t>(product.rows, Tile::kBlockRows);
  const int64_t room = simt::resident_blocks(kernel, kStepThreads, shared) / groups;
  if (room < 1 || (whole && room < tiles)) return false;
  simt::launch({.grid = dim3(unsigned(groups * (room < tiles ? room : tiles))),
                .block = dim3(kStepThreads),
                .smem = shared,
                .stream = static_cast<simt::stream_t>(ctx.stream),
                .cooperative = true},
               kernel, product, cell, 0, steps);
  return true;
}

/// Whether a block with so many rows fits on this GPU when weights are streamed.
template <class T, class Cell, int kRows> bool streams(const StepProduct<T>& product) {
  using Tile = StepTile<T, Cell::kColumns, Cell::kParts, kRows, false>;
  return simt::resident_blocks(step_kernel<T, Cell, kRows, false>, kStepThreads,
                               Tile::shared_bytes(product.slice)) > 0;
}

template <class T, class Cell, int kRows>
void launch_step(Context ctx, const StepProduct<T>& product, const Cell& cell, int64_t step) {
  using Tile = StepTile<T, Cell::kColumns, Cell::kParts, kRows, false>;
  const int64_t groups = simt::ceil_div<int64_t>(product.units, kUnits);
  const int64_t tiles = simt::ceil_div<int64_t>(product.rows, Tile::kBlockRows);
  simt::launch({.grid = dim3(unsigned(groups * tiles)),
                .block = dim3(kStepThreads),
                .smem = Tile::shared_bytes(product.slice),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               step_kernel<T, Cell, kRows, false>, product, cell, step, step + 1);
}

/// One step, with streamed weights.
template <class T, class Cell>
void run_step(Context ctx, const StepProduct<T>& product, const Cell& cell, int64_t step) {
  if (product.rows == 0 || product.units == 0) return;
  if (product.rows > kFewRows * kRowGroups && streams<T, Cell, kManyRows<T>>(product)) {
    launch_step<T, Cell, kManyRows<T>>(ctx, product, cell, step);
  } else {
    launch_step<T, Cell, kFewRows>(ctx, product, cell, step);
  }
}

/// Steps [0, steps) of a cell of one product: resident where it fits, with as few rows per block as
/// leave enough blocks for the batch.
template <class T, class Cell>
void run_steps(Context ctx, const StepProduct<T>& product, const Cell& cell, int64_t steps) {
  if (product.rows == 0 || product.units == 0) return;
  if (steps > 1 && (launch_resident<T, Cell, kFewRows>(ctx, product, cell, steps, true) ||
                    launch_resident<T, Cell, kSomeRows>(ctx, product, cell, steps, true) ||
                    launch_resident<T, Cell, kManyRows<T>>(ctx, product, cell, steps, false) ||
                    launch_resident<T, Cell, kFewRows>(ctx, product, cell, steps, false)))
    return;
  for (int64_t step = 0; step < steps; ++step) run_step(ctx, product, cell, step);
}

}  // namespace brasa::cuda
