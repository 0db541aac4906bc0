#include "core/device.cuh"
#include "core/driver.cuh"
#include "core/epilogue.cuh"
#include "core/order.h"
#include "core/ptx_convert.cuh"
#include "matmul/gemm_finish.cuh"
#include "matmul/gemm_fma.cuh"
#include "matmul/matmul.h"
#include "matmul/matmul_few_rows.cuh"
#include "matmul/matmul_tensor.cuh"
#include "matmul/tf32_split.cuh"
#include "matmul/tile_order.cuh"

namespace brasa::cuda {

constexpr int64_t kMaxGridZ = 65535;

/// How an operand is read: `step` elements along the depth, `minor` along its extent.
struct Operand {
  int64_t minor, step;
  bool along_depth, packs;

  /// Packs run along the direction that is contiguous, where all of them are whole and aligned.
  template <class T>
  Operand(const T* from, int64_t minor_stride, int64_t depth_stride, int64_t extent, int64_t depth,
          bool aligned_items)
      : minor(minor_stride), step(depth_stride), along_depth(depth_stride == 1) {
    constexpr int64_t kLanes = simt::kPackLanes<T>;
    const int64_t unit = along_depth ? step : minor, other = along_depth ? minor : step;
    const int64_t length = along_depth ? depth : extent, count = along_depth ? extent : depth;
    packs = unit == 1 && (other % kLanes == 0 || count == 1) && length % kLanes == 0 &&
            aligned_items && simt::pack_aligned(from);
  }
};

/// How an operand comes to a kernel: in packs along the depth or along its extent, or as it may.
enum class Reading : int8_t { anyhow, packs_along_depth, packs_across };

/// Walks one operand along the depth, a round at a time. Packs behind the extent repeat its last
/// ones, whose results nobody stores.
template <class T, class Tile, int kExtent, Reading kReading> struct OperandReader {
  static constexpr bool kPacks = kReading != Reading::anyhow;
  static constexpr int kLanes = Tile::kLanes;
  using Part = FmaPart<T, kExtent, Tile::kDepth, Tile::kThreads>;
  Part part;
  const Operand& operand;
  const T* at[Part::kPacks];  ///< of the next round
  int extent_left;

  /// Known to the compiler where operands come in packs.
  BRASA_DEVICE_FN bool along_depth() const {
    return kPacks ? kReading == Reading::packs_along_depth : operand.along_depth;
  }
  BRASA_DEVICE_FN OperandReader(const Operand& o, const T* from, int64_t first, int64_t extent)
      : operand(o), extent_left(int(extent - first < kExtent ? extent - first : kExtent)) {
#pragma unroll
    for (int k = 0; k < Part::kPacks; ++k) {
      int i = Part::extent_of(k, along_depth());
      const int last = extent_left - (kReading == Reading::packs_across ? kLanes : 1);
      if (kPacks && i > last) i = last;
      at[k] = from + (first + i) * operand.minor + Part::depth_of(k, along_depth()) * operand.step;
    }
  }

  /// Loads the next round, `depth` steps of it.
  BRASA_DEVICE_FN void fetch(int depth) {
#pragma unroll
    for (int k = 0; k < Part::kPacks; ++k) {
      const int i = Part::extent_of(k, along_depth()), p = Part::depth_of(k, along_depth());
      simt::Pack<T, kLanes> pack{};
      if constexpr (kPacks) {
        if (p < depth) pack = simt::load_pack<kLanes>(at[k]);
      } else {
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
          const bool inside = operand.along_depth ? i < extent_left && p + lane < depth
                                                  : i + lane < extent_left && p < depth;
          if (inside)
            pack[lane] = at[k][lane * (operand.along_depth ? operand.step : operand.minor)];
        }
      }
      part.pack[k] = pack;
      at[k] += Tile::kDepth * operand.step;
    }
  }
};

/// Both operands of one product, for multiply_rounds().
template <class T, class Tile, Reading kA, Reading kB> struct MatmulOperands {
  unsigned rounds;
  int last;  ///< depth of the last round
  OperandReader<T, Tile, Tile::kRows, kA> a;
  OperandReader<T, Tile, Tile::kColumns, kB> b;

  BRASA_DEVICE_FN void fetch(unsigned round) {
    const int depth = round + 1 < rounds ? Tile::kDepth : round < rounds ? last : 0;
    a.fetch(depth);
    b.fetch(depth);
  }
  BRASA_DEVICE_FN void store(FmaShared<T, Tile>& shared, unsigned copy) {
    a.part.store(a.along_depth(), shared.left[copy]);
    b.part.store(b.along_depth(), shared.right[copy]);
  }
};

/// How a product in float32 is cut: tiles, and parts of the depth.
struct WidePlan {
  bool large;
  int64_t splits;
};

static WidePlan plan_wide(const MatmulParams& p) {
  WidePlan best{};
  int64_t least = INT64_MAX;
  const auto consider = [&](auto tile, bool large) {
    using Tile = decltype(tile);
    const int64_t most = p.sum.count == 1 && p.k >= kSplitDepth ? p.k / kSplitDepth : 1;
    for_splits<Tile>(p.m, p.n, p.batch.count, most, [&](int64_t splits) {
      const int64_t cycles = estimate_fma<Tile>(p.m, p.n, p.k * p.sum.count, p.batch.count, splits);
      if (cycles < least) least = cycles, best = {large, splits};
    });
  };
  consider(FmaLarge{}, true);
  consider(FmaSmall{}, false);
  return best;
}

/// A block computes one tile of results; blockIdx.x counts tiles, blockIdx.y parts of the depth,
/// whose results follow one another in y, blockIdx.z positions of the batch. `packs` says that y
/// and what is laid out as y may be written 16 bytes at a time.
template <class T, class Tile, Reading kA, Reading kB>
__global__ void __launch_bounds__(Tile::kThreads,
                                  kA == Reading::anyhow ? (Tile::kBlocks + 1) / 2 : Tile::kBlocks)
    matmul_kernel(MatmulParams p, Operand a_operand, Operand b_operand, const T* a, const T* b,
                  T* y, bool packs, Epilogue<T> epilogue) {
  using Shared = FmaShared<T, Tile>;
  BRASA_SHARED(Shared, shared, [1]);
  const TileOrder order{unsigned(simt::ceil_div<int64_t>(p.m, Tile::kRows)),
                        unsigned(simt::ceil_div<int64_t>(p.n, Tile::kColumns))};
  unsigned row_tile, column_tile;
  order.place(blockIdx.x, row_tile, column_tile);
  const int64_t row = int64_t(row_tile) * Tile::kRows;
  const int64_t column = int64_t(column_tile) * Tile::kColumns;
  const int64_t begin = part_begin(p.k, gridDim.y, blockIdx.y);
  const int64_t depth = part_begin(p.k, gridDim.y, blockIdx.y + 1) - begin;
  const auto rounds = unsigned(simt::ceil_div<int64_t>(depth, Tile::kDepth));
  a += begin * a_operand.step, b += begin * b_operand.step;
  y += blockIdx.y * p.batch.count * p.m * p.n;
  for (int64_t item = blockIdx.z; item < p.batch.count; item += gridDim.z) {
    FmaSums<T, Tile> sum = {};
    for (int64_t product = 0; product < p.sum.count; ++product) {
      int64_t a_offset = 0, b_offset = 0;
      add_offsets(p.batch, item, a_offset, b_offset);
      add_offsets(p.sum, product, a_offset, b_offset);
      MatmulOperands<T, Tile, kA, kB> operands{rounds,
                                               int(depth - int64_t(rounds - 1) * Tile::kDepth),
                                               {a_operand, a + a_offset, row, p.m},
                                               {b_operand, b + b_offset, column, p.n}};
      multiply_rounds<T, Tile>(rounds, shared[0], operands, sum);
    }
    const FmaResults<MatrixRows> results{p.m, p.n, 1, packs, {p.n}};
    store_sums<T, Tile>(results, epilogue, item * p.m * p.n, y, row, column, column, sum);
  }
}

constexpr int kSumColumns = 32, kSumGroups = 8;

/// A block sums kSumColumns columns; its groups take blocks of rows in turn and are added in order.
template <class T, class U>
__global__ void __launch_bounds__(kSumColumns* kSumGroups)
    column_sums_kernel(const T* x, U* y, int64_t rows, int64_t columns) {
  BRASA_SHARED(Wide<T>, of_group, [kSumGroups][kSumColumns]);
  const int lane = int(threadIdx.x) % kSumColumns, group = int(threadIdx.x) / kSumColumns;
  const int64_t column = int64_t(blockIdx.x) * kSumColumns + lane;
  Wide<T> total = 0;
  if (column < columns) {
    for (int64_t begin = group * order::kRowBlock; begin < rows;
         begin += kSumGroups * order::kRowBlock) {
      const int64_t end = begin + order::kRowBlock < rows ? begin + order::kRowBlock : rows;
      Wide<T> block = 0;
      for (int64_t row = begin; row < end; ++row) block += simt::widen(x[row * columns + column]);
      total += block;
    }
  }
  of_group[group][lane] = total;
  __syncthreads();
  if (group != 0 || column >= columns) return;
  for (int i = 1; i < kSumGroups; ++i) total += of_group[i][lane];
  y[column] = simt::narrow<U>(total);
}

// --------------------------------------------------------------------------------------- launchers

static bool is_empty(const MatmulParams& p) {
  return p.m == 0 || p.n == 0 || p.batch.count == 0;
}

/// Whether a product of T goes to tensor cores.
template <class T> static bool on_tensor_cores(const MatmulParams& p, Context ctx) {
  if (sizeof(T) == 4 && ctx.math_mode == MathMode::tf32x3) {
    const simt::DeviceProperties gpu = simt::device_properties();
    return split_pays(p, gpu.capability, gpu.multiprocessors);
  }
  return sizeof(T) == 2 || (sizeof(T) == 4 && ctx.math_mode == MathMode::tf32);
}

template <class T> size_t matmul_workspace(const MatmulParams& p, Context ctx) {
  if constexpr (sizeof(T) <= 4) {
    if (is_empty(p)) return 0;
    if (on_tensor_cores<T>(p, ctx)) return size_t(plan_tensor<T>(p, ctx.math_mode).workspace());
    const int64_t splits = sizeof(T) == 4 ? plan_wide(p).splits : 1;
    if (splits > 1) return size_t(splits * p.batch.count * p.m * p.n) * sizeof(T);
  }
  return 0;
}

/// Whether every position of the batch starts at a multiple of a pack.
static bool multiples(const BatchDims& dims, const int64_t* strides, int64_t lanes) {
  for (int d = 0; d < dims.rank; ++d)
    if (strides[d] % lanes) return false;
  return true;
}

/// The tile of operands that do not come in packs: their addresses take registers that a large one
/// needs for its sums.
template <class T> using AnyhowTile = std::conditional_t<sizeof(T) == 4, FmaMedium, FmaDouble>;

template <class T, class Tile> static auto pick_kernel(const Operand& a, const Operand& b) {
  constexpr Reading kAlong = Reading::packs_along_depth, kAcross = Reading::packs_across;
  if constexpr (std::is_same_v<Tile, AnyhowTile<T>>) {
    const auto kernel = matmul_kernel<T, Tile, Reading::anyhow, Reading::anyhow>;
    if (sizeof(T) == 4 || !a.packs || !b.packs) return kernel;
  }
  if constexpr (sizeof(T) == 8 || !std::is_same_v<Tile, AnyhowTile<T>>) {
    if (a.along_depth)
      return b.along_depth ? matmul_kernel<T, Tile, kAlong, kAlong>
                           : matmul_kernel<T, Tile, kAlong, kAcross>;
    return b.along_depth ? matmul_kernel<T, Tile, kAcross, kAlong>
                         : matmul_kernel<T, Tile, kAcross, kAcross>;
  }
}

/// The product of each part of the depth, then their sums.
template <class T, class Tile>
static void multiply_parts(Context ctx, const MatmulParams& p, int64_t splits,
                           const Operand& a_operand, const Operand& b_operand, const T* a,
                           const T* b, T* y, const Epilogue<T>& epilogue) {
  const auto stream = static_cast<simt::stream_t>(ctx.stream);
  const int64_t tiles =
      simt::ceil_div<int64_t>(p.m, Tile::kRows) * simt::ceil_div<int64_t>(p.n, Tile::kColumns);
  const int64_t items = p.batch.count < kMaxGridZ ? p.batch.count : kMaxGridZ;
  const bool packs = p.n % simt::kPackLanes<T> == 0 && simt::pack_aligned(y) &&
                     simt::pack_aligned(epilogue.bias) && simt::pack_aligned(epilogue.residual) &&
                     simt::pack_aligned(epilogue.pre_activation);
  T* const parts = splits > 1 ? static_cast<T*>(ctx.workspace) : y;
  simt::launch({.grid = dim3(unsigned(tiles), unsigned(splits), unsigned(items)),
                .block = dim3(Tile::kThreads),
                .stream = stream},
               pick_kernel<T, Tile>(a_operand, b_operand), p, a_operand, b_operand, a, b, parts,
               packs, splits > 1 ? Epilogue<T>{} : epilogue);
  if constexpr (sizeof(T) == 4) {
    if (splits > 1)
      finish_parts(stream, splits, p.m * p.batch.count,
                   Results<T>{p.m, p.n, 0, y, parts, epilogue, packs, {p.n}});
  }
}

template <class T>
static void multiply_wide(Context ctx, const MatmulParams& p, const T* a, const T* b, T* y,
                          const Epilogue<T>& epilogue) {
  constexpr int64_t kLanes = simt::kPackLanes<T>;
  const Operand a_operand(
      a, p.a_row, p.a_depth, p.m, p.k,
      multiples(p.batch, p.batch.a_strides, kLanes) && multiples(p.sum, p.sum.a_strides, kLanes));
  const Operand b_operand(
      b, p.b_column, p.b_depth, p.n, p.k,
      multiples(p.batch, p.batch.b_strides, kLanes) && multiples(p.sum, p.sum.b_strides, kLanes));
  const bool along_depth = a_operand.along_depth && b_operand.along_depth;
  if (p.m <= kFewRows && p.batch.count == 1 && p.sum.count == 1 && along_depth && a_operand.packs &&
      b_operand.packs) {
    if (p.m == 1) return launch_few_rows<T, 1, 1>(ctx, p, a, b, y, epilogue);
    return p.m <= 4 ? launch_few_rows<T, 4, 2>(ctx, p, a, b, y, epilogue)
                    : launch_few_rows<T, kFewRows, 4>(ctx, p, a, b, y, epilogue);
  }
  const WidePlan plan = sizeof(T) == 4 ? plan_wide(p) : WidePlan{false, 1};
  if constexpr (sizeof(T) == 4) {  // in float64 large tiles do not fit into the registers
    if (!a_operand.packs || !b_operand.packs)
      return multiply_parts<T, AnyhowTile<T>>(ctx, p, plan.splits, a_operand, b_operand, a, b, y,
                                              epilogue);
    if (plan.large)
      return multiply_parts<T, FmaLarge>(ctx, p, plan.splits, a_operand, b_operand, a, b, y,
                                         epilogue);
  }
  multiply_parts<T, std::conditional_t<sizeof(T) == 4, FmaSmall, FmaDouble>>(
      ctx, p, plan.splits, a_operand, b_operand, a, b, y, epilogue);
}

template <class T>
void matmul(Context ctx, const MatmulParams& p, const T* a, const T* b, T* y,
            const Epilogue<T>& epilogue) {
  if (is_empty(p)) return;
  if constexpr (sizeof(T) <= 4) {
    if (on_tensor_cores<T>(p, ctx))
      return multiply_tensor(ctx, p, plan_tensor<T>(p, ctx.math_mode), a, b, y, epilogue);
  }
  if constexpr (sizeof(T) >= 4) multiply_wide(ctx, p, a, b, y, epilogue);
}

template <class T, class U>
static void sum_columns(Context ctx, const T* x, U* y, int64_t rows, int64_t columns) {
  if (columns == 0) return;
  const int64_t blocks = simt::ceil_div<int64_t>(columns, kSumColumns);
  simt::launch({.grid = dim3(unsigned(blocks)),
                .block = dim3(kSumColumns * kSumGroups),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               column_sums_kernel<T, U>, x, y, rows, columns);
}

template <class T> void column_sums(Context ctx, const T* x, T* y, int64_t rows, int64_t columns) {
  sum_columns(ctx, x, y, rows, columns);
}
template <class T>
void wide_column_sums(Context ctx, const T* x, float* y, int64_t rows, int64_t columns) {
  sum_columns(ctx, x, y, rows, columns);
}

BRASA_INSTANTIATE(matmul_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(matmul, float, double, float16, bfloat16)
BRASA_INSTANTIATE(column_sums, float, double, float16, bfloat16)
BRASA_INSTANTIATE(wide_column_sums, float16, bfloat16)

}  // namespace brasa::cuda
