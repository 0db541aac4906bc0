#include "core/device.cuh"
#include "core/epilogue.cuh"
#include "core/order.h"
#include "matmul/matmul.h"

namespace brasa::cuda {

constexpr int kThreads = 256;
constexpr int kSide = 16;   // threads along each side of a tile
constexpr int kDepth = 16;  // k per round of shared memory
constexpr int64_t kMaxGridZ = 65535;

/// Shared rows are a pack longer than the tile: rows then start in different banks.
template <class T, int kTile> using SharedTile = T[kDepth][kTile + simt::kPackLanes<T>];

BRASA_DEVICE_FN void add_offsets(const BatchDims& dims, int64_t index, int64_t& a, int64_t& b) {
  for (int d = dims.rank - 1; d >= 0; --d) {
    const int64_t i = index % dims.shape[d];
    index /= dims.shape[d];
    a += i * dims.a_strides[d];
    b += i * dims.b_strides[d];
  }
}

/// tile[p][i] = from[(first + i) * minor + (depth_first + p) * step], 0 outside of extent x depth.
/// Neighbouring threads follow the dimension that is contiguous.
template <class T, int kTile>
BRASA_DEVICE_FN void load_tile(SharedTile<T, kTile>& tile, const T* from, int64_t minor,
                               int64_t step, int64_t first, int64_t extent, int64_t depth_first,
                               int64_t depth) {
  for (int e = int(threadIdx.x); e < kTile * kDepth; e += kThreads) {
    const int p = step == 1 ? e % kDepth : e / kTile;
    const int i = step == 1 ? e / kDepth : e % kTile;
    const bool inside = first + i < extent && depth_first + p < depth;
    tile[p][i] = inside ? from[(first + i) * minor + (depth_first + p) * step] : T(0);
  }
}

/// Which of its tile's rows (or columns) the i-th of a thread is: packs, spread over the tile.
template <class T> BRASA_DEVICE_FN int place(int thread, int i) {
  constexpr int kLanes = simt::kPackLanes<T>;
  return (i / kLanes * kSide + thread) * kLanes + i % kLanes;
}

template <class T, int kPer>
BRASA_DEVICE_FN void load_fragment(const T* row, int thread, T (&fragment)[kPer]) {
  constexpr int kLanes = simt::kPackLanes<T>;
#pragma unroll
  for (int i = 0; i < kPer; i += kLanes) {
    const auto pack = simt::load_pack<kLanes>(row + place<T>(thread, i));
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) fragment[i + lane] = pack[lane];
  }
}

/// sum += A-tile x B-tile, (kPer, kPer) of a thread over the kDepth steps in shared memory.
template <class T, int kTile, int kPer>
BRASA_DEVICE_FN void multiply_tile(const SharedTile<T, kTile>& a_tile,
                                   const SharedTile<T, kTile>& b_tile, int thread_row,
                                   int thread_column, T (&sum)[kPer][kPer]) {
#pragma unroll 4
  for (int p = 0; p < kDepth; ++p) {
    T a[kPer], b[kPer];
    load_fragment<T, kPer>(a_tile[p], thread_row, a);
    load_fragment<T, kPer>(b_tile[p], thread_column, b);
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
#pragma unroll
      for (int j = 0; j < kPer; ++j) sum[i][j] += a[i] * b[j];
    }
  }
}

/// Writes a thread's results, then goes over them with the activation.
template <class T, int kPer>
BRASA_DEVICE_FN void store_tile(const MatmulParams& p, const Epilogue<T>& epilogue, T* y,
                                int64_t offset, int64_t row, int64_t column, int thread_row,
                                int thread_column, const T (&sum)[kPer][kPer]) {
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int64_t r = row + place<T>(thread_row, i), c = column + place<T>(thread_column, j);
      if (r < p.m && c < p.n) {
        const int64_t at = offset + r * p.n + c;
        y[at] = before_activation(epilogue, sum[i][j], c, at);
      }
    }
  }
  activate_each<T>(epilogue.activation, [&](const auto& activate) {
#pragma unroll 1
    for (int e = 0; e < kPer * kPer; ++e) {
      const int64_t r = row + place<T>(thread_row, e / kPer);
      const int64_t c = column + place<T>(thread_column, e % kPer);
      if (r < p.m && c < p.n) activate(y[offset + r * p.n + c]);
    }
  });
}

/// A block computes kTile x kTile results, a thread kPer x kPer of them; blockIdx.x counts tiles,
/// row by row, blockIdx.z positions of the batch.
template <class T, int kPer>
__global__ void __launch_bounds__(kThreads, 1)
    matmul_kernel(MatmulParams p, const T* a, const T* b, T* y, Epilogue<T> epilogue) {
  constexpr int kTile = kSide * kPer;
  BRASA_SHARED(T, a_tile, [kDepth][kTile + simt::kPackLanes<T>]);
  BRASA_SHARED(T, b_tile, [kDepth][kTile + simt::kPackLanes<T>]);
  const int64_t column_tiles = simt::ceil_div<int64_t>(p.n, kTile);
  const int64_t row = blockIdx.x / column_tiles * kTile, column = blockIdx.x % column_tiles * kTile;
  const int thread_row = int(threadIdx.x) / kSide, thread_column = int(threadIdx.x) % kSide;
  for (int64_t item = blockIdx.z; item < p.batch.count; item += gridDim.z) {
    T sum[kPer][kPer] = {};
    for (int64_t product = 0; product < p.sum.count; ++product) {
      int64_t a_offset = 0, b_offset = 0;
      add_offsets(p.batch, item, a_offset, b_offset);
      add_offsets(p.sum, product, a_offset, b_offset);
      for (int64_t depth = 0; depth < p.k; depth += kDepth) {
        __syncthreads();  // the round before may still be read
        load_tile<T, kTile>(a_tile, a + a_offset, p.a_row, p.a_depth, row, p.m, depth, p.k);
        load_tile<T, kTile>(b_tile, b + b_offset, p.b_column, p.b_depth, column, p.n, depth, p.k);
        __syncthreads();
        multiply_tile<T, kTile, kPer>(a_tile, b_tile, thread_row, thread_column, sum);
      }
    }
    store_tile<T, kPer>(p, epilogue, y, item * p.m * p.n, row, column, thread_row, thread_column,
                        sum);
  }
}

constexpr int kSumColumns = 32, kSumGroups = 8;

/// A block sums kSumColumns columns; its groups take blocks of rows in turn and are added in order.
template <class T>
__global__ void __launch_bounds__(kSumColumns* kSumGroups)
    column_sums_kernel(const T* x, T* y, int64_t rows, int64_t columns) {
  BRASA_SHARED(T, of_group, [kSumGroups][kSumColumns]);
  const int lane = int(threadIdx.x) % kSumColumns, group = int(threadIdx.x) / kSumColumns;
  const int64_t column = int64_t(blockIdx.x) * kSumColumns + lane;
  T total = 0;
  if (column < columns) {
    for (int64_t begin = group * order::kRowBlock; begin < rows;
         begin += kSumGroups * order::kRowBlock) {
      const int64_t end = begin + order::kRowBlock < rows ? begin + order::kRowBlock : rows;
      T block = 0;
      for (int64_t row = begin; row < end; ++row) block += x[row * columns + column];
      total += block;
    }
  }
  of_group[group][lane] = total;
  __syncthreads();
  if (group != 0 || column >= columns) return;
  for (int i = 1; i < kSumGroups; ++i) total += of_group[i][lane];
  y[column] = total;
}

// --------------------------------------------------------------------------------------- launchers

template <class T> size_t matmul_workspace(const MatmulParams&, int) {
  return 0;
}

template <class T, int kPer>
static void launch_matmul(Context ctx, const MatmulParams& p, const T* a, const T* b, T* y,
                          const Epilogue<T>& epilogue) {
  constexpr int64_t kTile = kSide * kPer;
  const int64_t tiles = simt::ceil_div(p.m, kTile) * simt::ceil_div(p.n, kTile);
  const int64_t items = p.batch.count < kMaxGridZ ? p.batch.count : kMaxGridZ;
  simt::launch({.grid = dim3(unsigned(tiles), 1, unsigned(items)),
                .block = dim3(kThreads),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               matmul_kernel<T, kPer>, p, a, b, y, epilogue);
}

template <class T>
void matmul(Context ctx, const MatmulParams& p, const T* a, const T* b, T* y,
            const Epilogue<T>& epilogue) {
  if (p.m == 0 || p.n == 0 || p.batch.count == 0) return;
  // 128 x 128 tiles read shared memory half as often, but must be enough for every multiprocessor;
  // in float64 they do not fit into the registers.
  constexpr int64_t kEnoughTiles = 132;
  const int64_t large = simt::ceil_div<int64_t>(p.m, 128) * simt::ceil_div<int64_t>(p.n, 128);
  if constexpr (sizeof(T) == 4) {
    if (p.m > 64 && p.n > 64 && large * p.batch.count >= kEnoughTiles) {
      return launch_matmul<T, 8>(ctx, p, a, b, y, epilogue);
    }
  }
  launch_matmul<T, 4>(ctx, p, a, b, y, epilogue);
}

template <class T> void column_sums(Context ctx, const T* x, T* y, int64_t rows, int64_t columns) {
  if (columns == 0) return;
  const int64_t blocks = simt::ceil_div<int64_t>(columns, kSumColumns);
  simt::launch({.grid = dim3(unsigned(blocks)),
                .block = dim3(kSumColumns * kSumGroups),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               column_sums_kernel<T>, x, y, rows, columns);
}

BRASA_INSTANTIATE(matmul_workspace, float, double)
BRASA_INSTANTIATE(matmul, float, double)
BRASA_INSTANTIATE(column_sums, float, double)

}  // namespace brasa::cuda
