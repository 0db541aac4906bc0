#include "core/device.cuh"
#include "embedding/embedding.h"

namespace brasa::cuda {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / simt::kWarpSize;

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
    simt::Pack<T, kLanes> pack;
    if (v >= 0 && v < shape.rows) {
      pack = simt::load_pack<kLanes>(weight + v * shape.columns + part * kLanes);
    } else {
#pragma unroll
      for (int k = 0; k < kLanes; ++k) pack[k] = T(0) / T(0);
    }
    simt::store_pack<kLanes>(y + i * kLanes, pack);
  }
}

/// Whether a position before p has row v; the whole block asks.
BRASA_DEVICE_FN bool occurs_before(const RowIndices& indices, int64_t p, int64_t v) {
  for (int64_t first = 0; first < p; first += kThreads) {
    const int64_t q = first + threadIdx.x;
    if (simt::block_reduce_max(int(q < p && index_at(indices, q) == v))) return true;
  }
  return false;
}

/// The block of the first position of a row adds up the row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    embedding_backward_kernel(const T* dy, RowIndices indices, T* dweight, TableShape shape) {
  BRASA_SHARED(unsigned, matches, [kWarps]);
  for (int64_t p = blockIdx.x; p < indices.count; p += gridDim.x) {
    const int64_t v = index_at(indices, p);
    if (v < 0 || v >= shape.rows || v == shape.padding || occurs_before(indices, p, v)) continue;
    T* const sum = dweight + v * shape.columns;
    for (int64_t first = p; first < indices.count; first += kThreads) {
      const int64_t mine = first + threadIdx.x;
      const bool match = mine < indices.count && index_at(indices, mine) == v;
      const unsigned ballot = __ballot_sync(simt::kFullMask, match);
      __syncthreads();  // the last round's matches have been read
      if (threadIdx.x % simt::kWarpSize == 0) matches[threadIdx.x / simt::kWarpSize] = ballot;
      __syncthreads();
      for (int warp = 0; warp < kWarps; ++warp) {
        for (unsigned rest = matches[warp]; rest; rest &= rest - 1) {
          const T* const row =
              dy + (first + warp * simt::kWarpSize + __ffs(int(rest)) - 1) * shape.columns;
          for (int64_t d = threadIdx.x; d < shape.columns; d += kThreads) sum[d] += row[d];
        }
      }
    }
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

template <class T>
void embedding_backward(Context ctx, const T* dy, RowIndices indices, T* dweight,
                        TableShape shape) {
  const auto stream = static_cast<simt::stream_t>(ctx.stream);
  if (shape.rows * shape.columns == 0) return;
  simt::memset_async(dweight, 0, size_t(shape.rows * shape.columns) * sizeof(T), stream);
  if (indices.count == 0) return;
  simt::launch(
      {.grid = simt::blocks_for(indices.count, 1), .block = dim3(kThreads), .stream = stream},
      embedding_backward_kernel<T>, dy, indices, dweight, shape);
}

BRASA_INSTANTIATE(embedding_forward, float, double)
BRASA_INSTANTIATE(embedding_backward, float, double)

}  // namespace brasa::cuda
