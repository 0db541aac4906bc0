// One step of a recurrent layer on CUDA: a product of the states with a weight matrix, finished
// element by element by whoever owns the sum.
//
// A block owns kUnits units for some rows of the batch. Its 8 warps split the depth: each brings
// its slice of the states from L2 into shared memory, chunk by chunk with asynchronous copies that
// go past L1, and multiplies it with its slice of the weights: float32 and float64 by FMA
// (rnn_fma.cuh), 16 bits on tensor cores (rnn_mma.cuh). The sums of all warps (and of the parts
// within a warp) are added in their order, a thread per row and unit, which then does what the cell
// does: the gates of a unit meet in one thread.
//
// Resident: one cooperative launch for all steps. The block's weights stay in shared memory, the
// states of a step go to the other blocks through L2 (`Exchange`, two planes by turns), and one
// barrier of the grid separates steps. Otherwise: a launch per step, weights streamed as the states
// are. Both add the same products in the same order, which depends on the depth alone, so one step
// or many, a sample alone and any GPU give the same bits.
//
// Floor of a resident step: 2 B N K operations over the multiprocessors, or the 128 bytes per clock
// in which a multiprocessor reads its share of the weights (1024 clocks for 128 KiB), or the states
// that every block reads from L2 (in 16 bits 2 B K bytes per group of kUnits units), and the
// barrier.
#pragma once

#include "core/device.cuh"
#include "core/ptx_async.cuh"
#include "rnn/rnn_fma.cuh"
#include "rnn/rnn_mma.cuh"

namespace brasa::cuda {

/// Rows of states that blocks exchange, of `pitch` elements: zeros behind the depth. A step reads
/// plane `step` and writes plane `step + 1`, counted in turns where there are two.
template <class T> struct Exchange {
  T* data;
  int64_t pitch, rows;
  int planes;

  BRASA_HOST_DEVICE_FN T* row(int64_t step, int64_t b) const {
    return data + ((step & (planes - 1)) * rows + b) * pitch;
  }
};

/// Element k of column c of unit u is from[u unit + c column + k depth].
template <class T> struct StepWeights {
  const T* from;
  int64_t unit, column, depth;

  /// Whether packs can be copied: of neighbours along the depth, or in 16 bits along the units.
  bool packs(int64_t units, int64_t length) const {
    constexpr int64_t kLanes = simt::kPackLanes<T>;
    if (!simt::pack_aligned(from)) return false;
    if (depth == 1) return unit % kLanes == 0 && column % kLanes == 0 && length % kLanes == 0;
    return sizeof(T) == 2 && unit == 1 && depth % kLanes == 0 && units % kLanes == 0;
  }
};

/// Elements of the depth that a warp takes, and those of all.
template <class T> int64_t step_slice(int64_t depth) {
  const int64_t units = simt::ceil_div<int64_t>(depth, kStepWarps * kSliceUnit<T>);
  return (units < 1 ? 1 : units) * kSliceUnit<T>;
}
template <class T> int64_t step_pitch(int64_t depth) {
  return kStepWarps * step_slice<T>(depth);
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
        slice(int(step_slice<T>(length))),
        packs(w.packs(unit_count, length)),
        weights(w),
        states(from) {}
};

/// How a cell's product is made for kRows rows per lane.
template <class T, class Cell, int kRows>
using StepMath = std::conditional_t<sizeof(T) == 2,
                                    MmaStep<T, Cell::kSums, Cell::kAcross, kRows * kRowGroups / 16>,
                                    FmaStep<T, Cell::kSums, kRows>>;

/// The copies of a block and its walk along the depth.
template <class T, class Cell, int kRows_, bool kResident_>
struct StepTile : StepMath<T, Cell, kRows_> {
  using Math = StepMath<T, Cell, kRows_>;
  using Sums = typename Math::Sums;
  static constexpr int kSums = Cell::kSums, kRows = kRows_;
  static constexpr bool kResident = kResident_, kAcross = Cell::kAcross;
  static_assert(!kAcross || kSums == 1);

  static constexpr int kLanes = simt::kPackLanes<T>;
  static constexpr int kChunk = kStepChunk<T>, kPacks = kChunk / kLanes;
  static constexpr int kWeightRows = kSums * kUnits, kBlockRows = kRows * kRowGroups;
  /// Weights lie as lines of kUnits, one for each k; else as rows of neighbours along the depth.
  static constexpr bool kLines = Math::kLines;
  static constexpr int kWeightPitch = kChunk + kLanes;
  static constexpr int kStages = Math::stages(kResident);
  static constexpr int kStates = kBlockRows * Math::kStatePitch;
  static constexpr int kWeights = kLines ? kChunk * kUnits : kWeightRows * kWeightPitch;
  static constexpr int kStage = kStates + (kResident ? 0 : kWeights);
  static constexpr int kWarpElements = kStages * kStage;
  static constexpr int kWarpSums = kWarpElements * int(sizeof(T)) / int(sizeof(Wide<T>));
  static_assert(Math::kSumsOfWarp <= kWarpSums, "the sums take the place of the stages");

  /// Of the resident weights.
  static BRASA_HOST_DEVICE_FN int resident_pitch(int slice) { return kStepWarps * slice + kLanes; }
  static size_t shared_bytes(int slice) {
    const int64_t pitch = kLines ? kStepWarps * slice : resident_pitch(slice);
    const int64_t weights = kResident ? kWeightRows * pitch : 0;
    return size_t(kStepWarps * kWarpElements + weights) * sizeof(T);
  }

  /// A warp copies kLinesAtOnce lines of 128 bytes at once.
  static constexpr int kLinesAtOnce = simt::kWarpSize / kPacks;
  static BRASA_DEVICE_FN int line_of_lane() { return lane_of_warp() / kPacks; }
  static BRASA_DEVICE_FN int at_of_lane() { return lane_of_warp() % kPacks * kLanes; }

  /// Starts the copy of `width` elements from k of the block's rows of states.
  static BRASA_DEVICE_FN void copy_states(const StepProduct<T>& p, int64_t step, int64_t first_row,
                                          int k, int width, T* stage) {
    if (at_of_lane() >= width) return;
    const int64_t row = first_row + line_of_lane(), stride = kLinesAtOnce * p.states.pitch;
    const T* from = p.states.row(step, row) + k + at_of_lane();
    T* const to = stage + line_of_lane() * Math::kStatePitch + at_of_lane();
    const int64_t left = p.rows - row;
#pragma unroll
    for (int i = 0; i < kBlockRows; i += kLinesAtOnce) {
      simt::cp_async<16>(to + i * Math::kStatePitch, from, i < left ? 16 : 0);
      from += stride;
    }
  }

  /// The weights of units from `first_unit`, `width` elements from k; zeros beyond the operand.
  static BRASA_DEVICE_FN void copy_weights(const StepProduct<T>& p, int64_t first_unit, int k,
                                           int width, T* to, int pitch) {
    if ((!kAcross || kLines) && p.packs) {
      if constexpr (kLines)
        copy_lines(p, first_unit, k, width, to);
      else
        copy_rows(p, first_unit, k, width, to, pitch);
    } else {
      copy_singly(p, first_unit, k, width, to, pitch);
    }
  }

  static BRASA_DEVICE_FN void copy_rows(const StepProduct<T>& p, int64_t first_unit, int k,
                                        int width, T* to, int pitch) {
    if (at_of_lane() >= width) return;  // another warp's, where weights are kept
    const bool inside = k + at_of_lane() < p.depth;
    to += line_of_lane() * pitch + at_of_lane();
#pragma unroll
    for (int i = 0; i < kUnits; i += kLinesAtOnce) {
      const int64_t unit = first_unit + line_of_lane() + i;
      const T* from = p.weights.from + unit * p.weights.unit + k + at_of_lane();
#pragma unroll
      for (int c = 0; c < kSums; ++c) {
        simt::cp_async<16>(to + (c * kUnits + i) * pitch, from, inside && unit < p.units ? 16 : 0);
        from += p.weights.column;
      }
    }
  }

  static BRASA_DEVICE_FN void copy_lines(const StepProduct<T>& p, int64_t first_unit, int k,
                                         int width, T* to) {
#pragma unroll 1
    for (int at = lane_of_warp(); at < width; at += simt::kWarpSize)
      simt::cp_async<16>(to + at * kUnits, p.weights.from + first_unit + (k + at) * p.weights.depth,
                         k + at < p.depth ? 16 : 0);
  }

  /// Neighbours in memory by neighbouring lanes.
  static BRASA_DEVICE_FN void copy_singly(const StepProduct<T>& p, int64_t first_unit, int k,
                                          int width, T* to, int pitch) {
#pragma unroll 1
    for (int e = lane_of_warp(); e < kWeightRows * kChunk; e += simt::kWarpSize) {
      const int row = kAcross ? e % kWeightRows : e / kChunk;
      const int at = kAcross ? e / kWeightRows : e % kChunk;
      if (at >= width) continue;
      const int64_t unit = first_unit + row % kUnits;
      const bool valid = unit < p.units && k + at < p.depth;
      const T* const from = p.weights.from + unit * p.weights.unit +
                            row / kUnits * p.weights.column + (k + at) * p.weights.depth;
      T* const place = to + (kLines ? at * kUnits + row : row * pitch + at);
      if constexpr (sizeof(T) >= 4)
        simt::cp_async<int(sizeof(T))>(place, from, valid ? int(sizeof(T)) : 0);
      else
        *place = valid ? *from : T{};
    }
  }

  /// Brings the block's weights for all steps; all threads call.
  static BRASA_DEVICE_FN void keep_weights(const StepProduct<T>& p, int64_t first_unit, T* kept) {
    const int begin = warp_of_block() * p.slice;
#pragma unroll 1
    for (int k = 0; k < p.slice; k += kChunk)
      copy_weights(p, first_unit, begin + k, chunk_width(p, k), kept + weights_from(begin + k),
                   resident_pitch(p.slice));
    simt::cp_async_commit();
    simt::cp_async_wait<0>();
    __syncthreads();
  }

  static BRASA_DEVICE_FN int weights_from(int k) { return kLines ? k * kUnits : k; }
  static BRASA_DEVICE_FN int chunk_width(const StepProduct<T>& p, int k) {
    return p.slice - k < kChunk ? p.slice - k : kChunk;
  }

  /// sum += the warp's slice of the product; `stages` is the warp's own, `kept` the block's.
  static BRASA_DEVICE_FN void multiply(const StepProduct<T>& p, int64_t step, int64_t first_row,
                                       int64_t first_unit, T* stages, const T* kept, Sums& sum) {
    const int begin = warp_of_block() * p.slice, chunks = simt::ceil_div(p.slice, kChunk);
#pragma unroll 1
    for (int chunk = 1 - kStages; chunk < chunks; ++chunk) {
      if (chunk >= 0) {
        simt::cp_async_wait<kStages - 2>();
        __syncwarp();  // all have read the stage that is fetched into, and see the one that is read
      }
      const int next = chunk + kStages - 1;
      if (next < chunks) {
        T* const stage = stages + next % kStages * kStage;
        const int k = next * kChunk, width = chunk_width(p, k);
        copy_states(p, step, first_row, begin + k, width, stage);
        if constexpr (!kResident)
          copy_weights(p, first_unit, begin + k, width, stage + kStates, kWeightPitch);
      }
      simt::cp_async_commit();
      if (chunk < 0) continue;
      const int k = chunk * kChunk;
      const T* const stage = stages + chunk % kStages * kStage;
      const T* const weights = kResident ? kept + weights_from(begin + k) : stage + kStates;
      Math::multiply_chunk(stage, weights, kResident ? resident_pitch(p.slice) : kWeightPitch,
                           chunk_width(p, k), sum);
    }
    __syncwarp();
  }

  /// A thread owns row row_of_lane() + kRowGroups warp and unit lane % kUnits of the tile.
  static BRASA_DEVICE_FN bool owns_row() { return warp_of_block() < kRows; }
};

/// Steps [first, last) of a cell, one of them where the weights are not resident. Blocks walk units
/// first, then rows.
///
/// A Cell has kSums, the sums of a unit, and kAcross: whether neighbours in its weights are units,
/// not steps of the depth; Operands fetch(step, row, unit), loads that do not wait for the product;
/// and finish(step, row, unit, sums, operands).
template <class T, class Cell, int kRows, bool kResident>
__global__ void __launch_bounds__(kStepThreads, 1)
    step_kernel(StepProduct<T> product, Cell cell, int64_t first, int64_t last) {
  using Tile = StepTile<T, Cell, kRows, kResident>;
  BRASA_DYN_SHARED(T, stages);
  T* const mine = stages + warp_of_block() * Tile::kWarpElements;
  T* const kept = stages + kStepWarps * Tile::kWarpElements;

  const auto groups = unsigned(simt::ceil_div<int64_t>(product.units, kUnits));
  const int64_t first_unit = int64_t(blockIdx.x % groups) * kUnits;
  const int64_t unit = first_unit + lane_of_warp() % kUnits;
  if constexpr (kResident) Tile::keep_weights(product, first_unit, kept);

#pragma unroll 1
  for (int64_t step = first; step < last; ++step) {
#pragma unroll 1
    for (int64_t first_row = int64_t(blockIdx.x / groups) * Tile::kBlockRows;
         first_row < product.rows; first_row += int64_t(gridDim.x / groups) * Tile::kBlockRows) {
      const int64_t row = first_row + row_of_lane() + kRowGroups * warp_of_block();
      const bool owner = Tile::owns_row() && row < product.rows && unit < product.units;
      typename Cell::Operands operands{};
      if (owner) operands = cell.fetch(step, row, unit);

      typename Tile::Sums sum = {};
      Tile::multiply(product, step, first_row, first_unit, mine, kept, sum);
      Tile::put_sums(sum, reinterpret_cast<Wide<T>*>(mine));
      __syncthreads();
      if (owner) {
        Wide<T> total[Cell::kSums];
        Tile::take_sums(reinterpret_cast<const Wide<T>*>(stages), Tile::kWarpSums, total);
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
  using Tile = StepTile<T, Cell, kRows, true>;
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
  using Tile = StepTile<T, Cell, kRows, false>;
  return simt::resident_blocks(step_kernel<T, Cell, kRows, false>, kStepThreads,
                               Tile::shared_bytes(product.slice)) > 0;
}

template <class T, class Cell, int kRows>
void launch_step(Context ctx, const StepProduct<T>& product, const Cell& cell, int64_t step) {
  using Tile = StepTile<T, Cell, kRows, false>;
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
  if (product.rows > kFewRows<T> * kRowGroups && streams<T, Cell, kManyRows<T>>(product)) {
    launch_step<T, Cell, kManyRows<T>>(ctx, product, cell, step);
  } else {
    launch_step<T, Cell, kFewRows<T>>(ctx, product, cell, step);
  }
}

/// Steps [0, steps) of a cell of one product: resident where it fits, with as few rows per block as
/// leave enough blocks for the batch. float64 has only steps: few use it, and kernels take space.
template <class T, class Cell>
void run_steps(Context ctx, const StepProduct<T>& product, const Cell& cell, int64_t steps) {
  if (product.rows == 0 || product.units == 0) return;
  if constexpr (sizeof(T) < 8) {
    if (steps > 1 && (launch_resident<T, Cell, kFewRows<T>>(ctx, product, cell, steps, true) ||
                      launch_resident<T, Cell, kSomeRows>(ctx, product, cell, steps, true) ||
                      launch_resident<T, Cell, kManyRows<T>>(ctx, product, cell, steps, false) ||
                      launch_resident<T, Cell, kFewRows<T>>(ctx, product, cell, steps, false)))
      return;
  }
  for (int64_t step = 0; step < steps; ++step) run_step(ctx, product, cell, step);
}

}  // namespace brasa::cuda
