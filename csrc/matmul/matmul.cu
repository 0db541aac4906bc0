#include "core/device.cuh"
#include "core/epilogue.cuh"
#include "core/order.h"
#include "core/ptx_convert.cuh"
#include "matmul/gemm_finish.cuh"
#include "matmul/gemm_tile.cuh"
#include "matmul/matmul.h"
#include "matmul/matmul_few_rows.cuh"
#include "matmul/matmul_tensor.cuh"
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

/// Walks one operand along the depth, a round at a time.
template <class T, int kExtent, int kDepth, Reading kReading> struct OperandReader {
  static constexpr bool kPacks = kReading != Reading::anyhow;
  using Part = TilePart<T, kExtent, kDepth>;
  static constexpr int kLanes = simt::kPackLanes<T>;
  Part part;
  const Operand& operand;
  const T* at[Part::kPacks];  ///< of the next round

  /// Known to the compiler where operands come in packs.
  BRASA_DEVICE_FN bool along_depth() const {
    return kPacks ? kReading == Reading::packs_along_depth : operand.along_depth;
  }
  int extent_left[Part::kPacks];

  BRASA_DEVICE_FN OperandReader(const Operand& o, const T* from, int64_t first, int64_t extent)
      : operand(o) {
#pragma unroll
    for (int k = 0; k < Part::kPacks; ++k) {
      const int i = Part::extent_of(k, along_depth());
      extent_left[k] = int(extent - first < kExtent ? extent - first : kExtent) - i;
      at[k] = from + (first + i) * operand.minor + Part::depth_of(k, along_depth()) * operand.step;
    }
  }

  /// Loads the next round, of `depth` steps or more.
  BRASA_DEVICE_FN void fetch(int depth) {
    part.fetch(along_depth(), [&](int k, int, int p) {
      simt::Pack<T, kLanes> pack{};
      if constexpr (kPacks) {
        if (extent_left[k] > 0 && p < depth) pack = simt::load_pack<kLanes>(at[k]);
      } else {
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
          const bool inside = operand.along_depth ? extent_left[k] > 0 && p + lane < depth
                                                  : extent_left[k] > lane && p < depth;
          if (inside)
            pack[lane] = at[k][lane * (operand.along_depth ? operand.step : operand.minor)];
        }
      }
      at[k] += kDepth * operand.step;
      return pack;
    });
  }
};

/// Both operands of one product, for multiply_rounds().
template <class T, class Shape, Reading kA, Reading kB> struct MatmulOperands {
  SharedTile<T, Shape::kRows, Shape::kDepth>* left;
  SharedTile<T, Shape::kColumns, Shape::kDepth>* right;
  unsigned rounds;
  int last;  ///< depth of the last round
  OperandReader<T, Shape::kRows, Shape::kDepth, kA> a;
  OperandReader<T, Shape::kColumns, Shape::kDepth, kB> b;

  BRASA_DEVICE_FN void fetch(unsigned round) {
    const int depth = round + 1 < rounds ? Shape::kDepth : last;
    a.fetch(depth);
    b.fetch(depth);
  }
  BRASA_DEVICE_FN void store(unsigned copy) {
    a.part.store(a.along_depth(), left[copy]);
    b.part.store(b.along_depth(), right[copy]);
  }
};

/// Writes a thread's results, then goes over them with the activation.
template <class Shape, class T>
BRASA_DEVICE_FN void store_tile(const MatmulParams& p, const Epilogue<T>& epilogue, T* y,
                                int64_t offset, int64_t row, int64_t column,
                                const T (&sum)[Shape::kPerRow][Shape::kPerColumn]) {
  const int64_t first = column + place<T>(thread_column<Shape>(), 0);
  const int64_t first_row = row + place<T>(thread_row<Shape>(), 0);
  const int rows = int(p.m - first_row < Shape::kRows ? p.m - first_row : Shape::kRows);
  const int columns = int(p.n - first < Shape::kColumns ? p.n - first : Shape::kColumns);
  int64_t at = offset + first_row * p.n + first;
#pragma unroll
  for (int i = 0; i < Shape::kPerRow; ++i) {
    if (place<T>(0, i) < rows) {
#pragma unroll
      for (int j = 0; j < Shape::kPerColumn; ++j) {
        const int step = place<T>(0, j);  // from the first of the thread's columns
        if (step < columns)
          y[at + step] = before_activation(epilogue, sum[i][j], first + step, at + step);
      }
    }
    if (i + 1 < Shape::kPerRow) at += (place<T>(0, i + 1) - place<T>(0, i)) * p.n;
    BRASA_FORGET(at);  // or what the rows share takes registers that the sums need
  }
  activate_each<T>(epilogue.activation, [&](const auto& activate) {
#pragma unroll 1
    for (int e = 0; e < Shape::kPerRow * Shape::kPerColumn; ++e) {
      const int64_t r = row + place<T>(thread_row<Shape>(), e / Shape::kPerColumn);
      const int64_t c = column + place<T>(thread_column<Shape>(), e % Shape::kPerColumn);
      if (r < p.m && c < p.n) activate(y[offset + r * p.n + c]);
    }
  });
}

constexpr int64_t kEnoughTiles = 132;  // for a GPU; fixed, so that rounding is
constexpr int64_t kSplitDepth = 128;   // parts are multiples of it

/// How a product in float32 is cut: results of a thread (rows x columns), and parts of the depth.
enum class WideTile : int8_t { results4x4, results8x8, results8x16 };
struct WidePlan {
  WideTile tile;
  int64_t splits;
};

/// Parts of the depth, where there are too few tiles for a GPU.
static int64_t depth_splits(const MatmulParams& p, int64_t tiles) {
  if (p.sum.count != 1 || tiles >= kEnoughTiles || p.k < 2 * kSplitDepth) return 1;
  const int64_t wanted = simt::ceil_div<int64_t>(2 * kEnoughTiles, tiles);
  const int64_t most = p.k / kSplitDepth;
  return wanted < most ? wanted : most;
}

/// The largest tiles that are enough: 128 x 256 read shared memory a third as often as 64 x 64.
static WidePlan plan_wide(const MatmulParams& p) {
  const auto tiles = [&](int64_t rows, int64_t columns) {
    return simt::ceil_div<int64_t>(p.m, rows) * simt::ceil_div<int64_t>(p.n, columns) *
           p.batch.count;
  };
  constexpr int64_t kNearlyEnough = kEnoughTiles * 9 / 10;
  if (p.m > 64 && p.n > 128 && tiles(128, 256) >= kNearlyEnough) return {WideTile::results8x16, 1};
  const int64_t splits = depth_splits(p, tiles(128, 128));
  if (p.m > 64 && p.n > 64 && tiles(128, 128) * splits >= kEnoughTiles)
    return {WideTile::results8x8, splits};
  return {WideTile::results4x4, depth_splits(p, tiles(64, 64))};
}

/// Where part `part` of `parts` begins.
BRASA_HOST_DEVICE_FN int64_t part_begin(int64_t k, int64_t parts, int64_t part) {
  const int64_t blocks = k / kSplitDepth;
  return part == parts ? k : blocks * part / parts * kSplitDepth;
}

/// A block computes one tile of results; blockIdx.x counts tiles, blockIdx.y parts of the depth,
/// whose results follow one another in y, blockIdx.z positions of the batch.
template <class T, class Shape, Reading kA, Reading kB>
__global__ void __launch_bounds__(kTileThreads, Shape::kBlocks)
    matmul_kernel(MatmulParams p, Operand a_operand, Operand b_operand, const T* a, const T* b,
                  T* y, Epilogue<T> epilogue) {
  BRASA_SHARED(T, left, [2][Shape::kDepth][Shape::kRows + Shape::kLanes]);
  BRASA_SHARED(T, right, [2][Shape::kDepth][Shape::kColumns + Shape::kLanes]);
  const TileOrder order{unsigned(simt::ceil_div<int64_t>(p.m, Shape::kRows)),
                        unsigned(simt::ceil_div<int64_t>(p.n, Shape::kColumns))};
  unsigned row_tile, column_tile;
  order.place(blockIdx.x, row_tile, column_tile);
  const int64_t begin = part_begin(p.k, gridDim.y, blockIdx.y);
  const int64_t depth = part_begin(p.k, gridDim.y, blockIdx.y + 1) - begin;
  a += begin * a_operand.step, b += begin * b_operand.step;
  y += blockIdx.y * p.batch.count * p.m * p.n;
  for (int64_t item = blockIdx.z; item < p.batch.count; item += gridDim.z) {
    T sum[Shape::kPerRow][Shape::kPerColumn] = {};
    const auto rounds = unsigned(simt::ceil_div<int64_t>(depth, Shape::kDepth));
    for (int64_t product = 0; product < p.sum.count; ++product) {
      int64_t a_offset = 0, b_offset = 0;
      add_offsets(p.batch, item, a_offset, b_offset);
      add_offsets(p.sum, product, a_offset, b_offset);
      MatmulOperands<T, Shape, kA, kB> operands{
          left,
          right,
          rounds,
          int(depth - int64_t(rounds - 1) * Shape::kDepth),
          {a_operand, a + a_offset, int64_t(row_tile) * Shape::kRows, p.m},
          {b_operand, b + b_offset, int64_t(column_tile) * Shape::kColumns, p.n}};
      multiply_rounds<Shape, T>(rounds, operands, sum);
    }
    store_tile<Shape, T>(p, epilogue, y, item * p.m * p.n, int64_t(row_tile) * Shape::kRows,
                         int64_t(column_tile) * Shape::kColumns, sum);
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

/// Whether products of T go to tensor cores.
template <class T> static bool on_tensor_cores(Context ctx) {
  return sizeof(T) == 2 || (sizeof(T) == 4 && ctx.math_mode == MathMode::tf32);
}

template <class T> size_t matmul_workspace(const MatmulParams& p, Context ctx) {
  if constexpr (sizeof(T) <= 4) {
    if (is_empty(p)) return 0;
    if (on_tensor_cores<T>(ctx)) return size_t(plan_tensor<T>(p).workspace());
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

template <class T, class Shape> static auto pick_kernel(const Operand& a, const Operand& b) {
  constexpr Reading kAlong = Reading::packs_along_depth, kAcross = Reading::packs_across;
  if (!a.packs || !b.packs) return matmul_kernel<T, Shape, Reading::anyhow, Reading::anyhow>;
  if (a.along_depth)
    return b.along_depth ? matmul_kernel<T, Shape, kAlong, kAlong>
                         : matmul_kernel<T, Shape, kAlong, kAcross>;
  return b.along_depth ? matmul_kernel<T, Shape, kAcross, kAlong>
                       : matmul_kernel<T, Shape, kAcross, kAcross>;
}

template <class T, class Shape>
static void launch_matmul(Context ctx, const MatmulParams& p, const Operand& a_operand,
                          const Operand& b_operand, const T* a, const T* b, T* y,
                          const Epilogue<T>& epilogue, int64_t splits = 1) {
  const int64_t tiles =
      simt::ceil_div<int64_t>(p.m, Shape::kRows) * simt::ceil_div<int64_t>(p.n, Shape::kColumns);
  const int64_t items = p.batch.count < kMaxGridZ ? p.batch.count : kMaxGridZ;
  const auto kernel = pick_kernel<T, Shape>(a_operand, b_operand);
  simt::launch({.grid = dim3(unsigned(tiles), unsigned(splits), unsigned(items)),
                .block = dim3(kTileThreads),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               kernel, p, a_operand, b_operand, a, b, y, epilogue);
}

/// The product of each part of the depth, then their sums.
template <class T, class Shape>
static void multiply_parts(Context ctx, const MatmulParams& p, int64_t splits,
                           const Operand& a_operand, const Operand& b_operand, const T* a,
                           const T* b, T* y, const Epilogue<T>& epilogue) {
  if (splits == 1) return launch_matmul<T, Shape>(ctx, p, a_operand, b_operand, a, b, y, epilogue);
  auto* parts = static_cast<T*>(ctx.workspace);
  launch_matmul<T, Shape>(ctx, p, a_operand, b_operand, a, b, parts, Epilogue<T>{}, splits);
  const bool packs = p.n % simt::kPackLanes<T> == 0 && simt::pack_aligned(y) &&
                     simt::pack_aligned(epilogue.bias) && simt::pack_aligned(epilogue.residual) &&
                     simt::pack_aligned(epilogue.pre_activation);
  finish_parts(static_cast<simt::stream_t>(ctx.stream), splits, p.m * p.batch.count,
               Results<T>{p.m, p.n, 0, y, parts, epilogue, packs, {p.n}});
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
  if constexpr (sizeof(T) == 4) {  // in float64 large tiles do not fit into the registers
    const WidePlan plan = plan_wide(p);
    if (plan.tile == WideTile::results8x16)
      return launch_matmul<T, TileShape<T, 8, 16>>(ctx, p, a_operand, b_operand, a, b, y, epilogue);
    if (plan.tile == WideTile::results8x8)
      return multiply_parts<T, TileShape<T, 8, 8>>(ctx, p, plan.splits, a_operand, b_operand, a, b,
                                                   y, epilogue);
    return multiply_parts<T, TileShape<T, 4, 4>>(ctx, p, plan.splits, a_operand, b_operand, a, b, y,
                                                 epilogue);
  } else {
    launch_matmul<T, TileShape<T, 4, 4>>(ctx, p, a_operand, b_operand, a, b, y, epilogue);
  }
}

template <class T>
void matmul(Context ctx, const MatmulParams& p, const T* a, const T* b, T* y,
            const Epilogue<T>& epilogue) {
  if (is_empty(p)) return;
  if constexpr (sizeof(T) <= 4) {
    if (on_tensor_cores<T>(ctx))
      return multiply_tensor(ctx, p, plan_tensor<T>(p), a, b, y, epilogue);
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
