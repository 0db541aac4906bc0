#include "core/device.cuh"
#include "core/epilogue.cuh"
#include "core/order.h"
#include "core/ptx_convert.cuh"
#include "matmul/gemm_tile.cuh"
#include "matmul/matmul.h"
#include "matmul/matmul_mma.cuh"
#include "matmul/matmul_tensor.cuh"

namespace brasa::cuda {

constexpr int64_t kMaxGridZ = 65535;
constexpr int kFewRows = 8;  // products of no more rows have a warp per column

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

/// Walks one operand along the depth, a round at a time.
template <class T, int kExtent, int kDepth, bool kPacks> struct OperandReader {
  using Part = TilePart<T, kExtent, kDepth>;
  static constexpr int kLanes = simt::kPackLanes<T>;
  Part part;
  const Operand& operand;
  const T* at[Part::kPacks];  ///< of the next round
  int extent_left[Part::kPacks];

  BRASA_DEVICE_FN OperandReader(const Operand& o, const T* from, int64_t first, int64_t extent)
      : operand(o) {
#pragma unroll
    for (int k = 0; k < Part::kPacks; ++k) {
      const int i = Part::extent_of(k, operand.along_depth);
      extent_left[k] = int(extent - first < kExtent ? extent - first : kExtent) - i;
      at[k] = from + (first + i) * operand.minor +
              Part::depth_of(k, operand.along_depth) * operand.step;
    }
  }

  /// Loads the next round, of `depth` steps or more.
  BRASA_DEVICE_FN void fetch(int depth) {
    part.fetch(operand.along_depth, [&](int k, int, int p) {
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
template <class T, class Shape, bool kPacks> struct MatmulOperands {
  SharedTile<T, Shape::kRows, Shape::kDepth>* left;
  SharedTile<T, Shape::kColumns, Shape::kDepth>* right;
  const MatmulParams& p;
  OperandReader<T, Shape::kRows, Shape::kDepth, kPacks> a;
  OperandReader<T, Shape::kColumns, Shape::kDepth, kPacks> b;

  BRASA_DEVICE_FN void fetch(unsigned round) {
    const int64_t depth_left = p.k - int64_t(round) * Shape::kDepth;
    const int depth = depth_left < Shape::kDepth ? int(depth_left) : Shape::kDepth;
    a.fetch(depth);
    b.fetch(depth);
  }
  BRASA_DEVICE_FN void store(unsigned copy) {
    a.part.store(a.operand.along_depth, left[copy]);
    b.part.store(b.operand.along_depth, right[copy]);
  }
};

/// Writes a thread's results, then goes over them with the activation.
template <class Shape, class T>
BRASA_DEVICE_FN void store_tile(const MatmulParams& p, const Epilogue<T>& epilogue, T* y,
                                int64_t offset, int64_t row, int64_t column,
                                const T (&sum)[Shape::kPerRow][Shape::kPerColumn]) {
  const int64_t first = column + place<T>(thread_column(), 0);
#pragma unroll
  for (int i = 0; i < Shape::kPerRow; ++i) {
    const int64_t r = row + place<T>(thread_row(), i);
    if (r >= p.m) continue;
    const int64_t at = offset + r * p.n + first;
#pragma unroll
    for (int j = 0; j < Shape::kPerColumn; ++j) {
      const int step = place<T>(0, j);  // from the first of the thread's columns
      if (first + step < p.n)
        y[at + step] = before_activation(epilogue, sum[i][j], first + step, at + step);
    }
  }
  activate_each<T>(epilogue.activation, [&](const auto& activate) {
#pragma unroll 1
    for (int e = 0; e < Shape::kPerRow * Shape::kPerColumn; ++e) {
      const int64_t r = row + place<T>(thread_row(), e / Shape::kPerColumn);
      const int64_t c = column + place<T>(thread_column(), e % Shape::kPerColumn);
      if (r < p.m && c < p.n) activate(y[offset + r * p.n + c]);
    }
  });
}

/// A block computes one tile of results; blockIdx.x counts tiles, row by row, blockIdx.z positions
/// of the batch. Two blocks of a multiprocessor hide each other's waits, where operands come in
/// packs.
template <class T, class Shape, bool kPacks>
__global__ void __launch_bounds__(kTileThreads, kPacks ? 2 : 1)
    matmul_kernel(MatmulParams p, Operand a_operand, Operand b_operand, const T* a, const T* b,
                  T* y, Epilogue<T> epilogue) {
  BRASA_SHARED(T, left, [2][Shape::kDepth][Shape::kRows + Shape::kLanes]);
  BRASA_SHARED(T, right, [2][Shape::kDepth][Shape::kColumns + Shape::kLanes]);
  const auto column_tiles = unsigned(simt::ceil_div<int64_t>(p.n, Shape::kColumns));
  const unsigned row_tile = blockIdx.x / column_tiles, column_tile = blockIdx.x % column_tiles;
  for (int64_t item = blockIdx.z; item < p.batch.count; item += gridDim.z) {
    T sum[Shape::kPerRow][Shape::kPerColumn] = {};
    for (int64_t product = 0; product < p.sum.count; ++product) {
      int64_t a_offset = 0, b_offset = 0;
      add_offsets(p.batch, item, a_offset, b_offset);
      add_offsets(p.sum, product, a_offset, b_offset);
      MatmulOperands<T, Shape, kPacks> operands{
          left,
          right,
          p,
          {a_operand, a + a_offset, int64_t(row_tile) * Shape::kRows, p.m},
          {b_operand, b + b_offset, int64_t(column_tile) * Shape::kColumns, p.n}};
      multiply_rounds<Shape, T>(unsigned(simt::ceil_div<int64_t>(p.k, Shape::kDepth)), operands,
                                sum);
    }
    store_tile<Shape, T>(p, epilogue, y, item * p.m * p.n, int64_t(row_tile) * Shape::kRows,
                         int64_t(column_tile) * Shape::kColumns, sum);
  }
}

/// y for up to kFewRows rows and operands that are contiguous along the depth, in packs: a warp
/// per column reads it once for all rows.
template <class T>
__global__ void __launch_bounds__(kTileThreads)
    few_rows_kernel(MatmulParams p, const T* a, const T* b, T* y, Epilogue<T> epilogue) {
  constexpr int kLanes = simt::kPackLanes<T>, kWarps = kTileThreads / simt::kWarpSize;
  const int lane = int(threadIdx.x) % simt::kWarpSize;
  const int64_t column = int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / simt::kWarpSize;
  if (column >= p.n) return;
  T sum[kFewRows] = {};
#pragma unroll 4
  for (int64_t k = lane * kLanes; k < p.k; k += simt::kWarpSize * kLanes) {
    const auto b_pack = simt::load_pack<kLanes>(b + column * p.b_column + k);
#pragma unroll
    for (int i = 0; i < kFewRows; ++i) {
      if (i >= p.m) break;
      const auto a_pack = simt::load_pack<kLanes>(a + i * p.a_row + k);
#pragma unroll
      for (int l = 0; l < kLanes; ++l) sum[i] += a_pack[l] * b_pack[l];
    }
  }
#pragma unroll
  for (int i = 0; i < kFewRows; ++i) {
    if (i >= p.m) break;
    sum[i] = simt::warp_sum(sum[i]);
    const int64_t at = i * p.n + column;
    if (lane == 0) y[at] = before_activation(epilogue, sum[i], column, at);
  }
  if (lane != 0) return;
  activate_each<T>(epilogue.activation, [&](const auto& activate) {
#pragma unroll 1
    for (int64_t i = 0; i < p.m; ++i) activate(y[i * p.n + column]);
  });
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
    if (on_tensor_cores<T>(ctx) && !is_empty(p)) return size_t(plan_tensor<T>(p).workspace());
  }
  return 0;
}

/// Whether every position of the batch starts at a multiple of a pack.
static bool multiples(const BatchDims& dims, const int64_t* strides, int64_t lanes) {
  for (int d = 0; d < dims.rank; ++d)
    if (strides[d] % lanes) return false;
  return true;
}

template <class T, class Shape>
static void launch_matmul(Context ctx, const MatmulParams& p, const Operand& a_operand,
                          const Operand& b_operand, const T* a, const T* b, T* y,
                          const Epilogue<T>& epilogue) {
  const int64_t tiles =
      simt::ceil_div<int64_t>(p.m, Shape::kRows) * simt::ceil_div<int64_t>(p.n, Shape::kColumns);
  const int64_t items = p.batch.count < kMaxGridZ ? p.batch.count : kMaxGridZ;
  const bool packs = a_operand.packs && b_operand.packs;
  simt::launch({.grid = dim3(unsigned(tiles), 1, unsigned(items)),
                .block = dim3(kTileThreads),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               packs ? matmul_kernel<T, Shape, true> : matmul_kernel<T, Shape, false>, p, a_operand,
               b_operand, a, b, y, epilogue);
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
    constexpr int64_t kWarps = kTileThreads / simt::kWarpSize;
    return simt::launch({.grid = dim3(unsigned(simt::ceil_div<int64_t>(p.n, kWarps))),
                         .block = dim3(kTileThreads),
                         .stream = static_cast<simt::stream_t>(ctx.stream)},
                        few_rows_kernel<T>, p, a, b, y, epilogue);
  }
  // 128 x 128 tiles read shared memory half as often, but must be enough for every multiprocessor;
  // in float64 they do not fit into the registers.
  constexpr int64_t kEnoughTiles = 132;
  const int64_t large = simt::ceil_div<int64_t>(p.m, 128) * simt::ceil_div<int64_t>(p.n, 128);
  if constexpr (sizeof(T) == 4) {
    if (p.m > 64 && p.n > 64 && large * p.batch.count >= kEnoughTiles) {
      return launch_matmul<T, TileShape<T, 8, 8>>(ctx, p, a_operand, b_operand, a, b, y, epilogue);
    }
  }
  launch_matmul<T, TileShape<T, 4, 4>>(ctx, p, a_operand, b_operand, a, b, y, epilogue);
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
