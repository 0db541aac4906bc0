#include "core/device.cuh"
#include "core/ptx_convert.cuh"
#include "embedding/embedding.h"
#include "embedding/sort.cuh"

namespace brasa::cuda {

constexpr int kThreads = 128;

BRASA_DEVICE_FN int64_t index_at(const RowIndices& r, int64_t p) {
  return r.wide ? r.wide[p] : int64_t(r.narrow[p]);
}

/// kLanes neighbours of a row per thread.
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads)
    embedding_forward_kernel(RowIndices indices, const T* weight, T* y, TableShape shape,
                             simt::Divisor parts_of_row) {
  const int64_t n = indices.count * (shape.columns / kLanes);
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    int64_t position = i;
    const int64_t part = parts_of_row.take_remainder(position), v = index_at(indices, position);
    simt::Lanes<Wide<T>, kLanes> lanes;
    if (v >= 0 && v < shape.rows) {
      lanes = simt::load_wide<kLanes>(weight + v * shape.columns + part * kLanes);
    } else {
#pragma unroll
      for (int k = 0; k < kLanes; ++k) lanes[k] = Wide<T>(0) / Wide<T>(0);
    }
    simt::store_wide(y + i * kLanes, lanes);
  }
}

/// A position with its row, or with the number of rows where it adds to no gradient.
struct Positions {
  RowIndices indices;
  TableShape shape;

  BRASA_DEVICE_FN SortItem operator()(int64_t p) const {
    const int64_t v = index_at(indices, p);
    const bool none = v < 0 || v >= shape.rows || v == shape.padding;
    return {uint32_t(none ? shape.rows : v), uint32_t(p)};
  }
};

/// The items of one row of the table: none where both are 0.
struct alignas(8) RowItems {
  uint32_t begin, end;
};

__global__ void __launch_bounds__(kThreads)
    find_rows_kernel(const SortItem* items, int64_t n, uint32_t rows, RowItems* of_row) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    const uint32_t row = items[i].key;
    if (row == rows) continue;
    if (i == 0 || items[i - 1].key != row) of_row[row].begin = uint32_t(i);
    if (i + 1 == n || items[i + 1].key != row) of_row[row].end = uint32_t(i + 1);
  }
}

/// A thread adds up kLanes neighbours of a row of the table.
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(const T* dy, const SortItem* items, const RowItems* of_row, T* dweight,
                    TableShape shape, simt::Divisor parts_of_row) {
  const int64_t n = shape.rows * (shape.columns / kLanes);
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x; e < n; e += stride) {
    int64_t row = e;
    const int64_t column = parts_of_row.take_remainder(row) * kLanes;
    const RowItems mine = of_row[row];
    simt::Lanes<Wide<T>, kLanes> sum{};
#pragma unroll 4
    for (uint32_t i = mine.begin; i < mine.end; ++i) {
      const auto lanes =
          simt::load_wide<kLanes>(dy + int64_t(items[i].position) * shape.columns + column);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) sum[k] += lanes[k];
    }
    simt::store_wide(dweight + e * kLanes, sum);
  }
}

// ----------------------------------------------------------------------------------------
// launchers

template <class T>
void embedding_forward(Context ctx, RowIndices indices, const T* weight, T* y, TableShape shape) {
  const int64_t n = indices.count * shape.columns;
  if (n == 0) return;
  constexpr int kLanes = simt::kPackLanes<T>;
  const bool packs =
      shape.columns % kLanes == 0 && simt::pack_aligned(weight) && simt::pack_aligned(y);
  const int64_t lanes = packs ? kLanes : 1;
  simt::launch({.grid = simt::blocks_for(n / lanes, kThreads),
                .block = dim3(kThreads),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               packs ? embedding_forward_kernel<T, kLanes> : embedding_forward_kernel<T, 1>,
               indices, weight, y, shape, simt::Divisor(shape.columns / lanes));
}

template <class T> size_t embedding_backward_workspace(int64_t count, int64_t rows) {
  return size_t(sort_words(count)) * sizeof(uint32_t) + size_t(rows) * sizeof(RowItems);
}

template <class T>
void embedding_backward(Context ctx, const T* dy, RowIndices indices, T* dweight,
                        TableShape shape) {
  const auto stream = static_cast<simt::stream_t>(ctx.stream);
  const int64_t n = indices.count;
  if (shape.rows * shape.columns == 0) return;
  if (n == 0)
    return simt::memset_async(dweight, 0, size_t(shape.rows * shape.columns) * sizeof(T), stream);
  if (n > UINT32_MAX || shape.rows >= UINT32_MAX)
    throw std::invalid_argument("embedding: 2^32 positions or rows are not supported on a GPU");

  auto* const words = static_cast<uint32_t*>(ctx.workspace);
  auto* const of_row = reinterpret_cast<RowItems*>(words + sort_words(n));
  simt::memset_async(of_row, 0, size_t(shape.rows) * sizeof(RowItems), stream);
  const auto rows = uint32_t(shape.rows);
  const SortItem* const items = sort_items(stream, Positions{indices, shape}, n, rows, words);
  simt::launch({.grid = simt::blocks_for(n, kThreads), .block = dim3(kThreads), .stream = stream},
               find_rows_kernel, items, n, rows, of_row);

  constexpr int kLanes = simt::kPackLanes<T>;
  const bool packs =
      shape.columns % kLanes == 0 && simt::pack_aligned(dy) && simt::pack_aligned(dweight);
  const int64_t parts = shape.columns / (packs ? kLanes : 1);
  simt::launch({.grid = simt::blocks_for(shape.rows * parts, kThreads),
                .block = dim3(kThreads),
                .stream = stream},
               packs ? sum_rows_kernel<T, kLanes> : sum_rows_kernel<T, 1>, dy, items, of_row,
               dweight, shape, simt::Divisor(parts));
}

BRASA_INSTANTIATE(embedding_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(embedding_backward_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(embedding_backward, float, double, float16, bfloat16)

}  // namespace brasa::cuda
