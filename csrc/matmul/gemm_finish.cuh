// Adds up the parts of results whose depth was split, in order, and finishes them.
#pragma once

#include "matmul/gemm_store.cuh"

namespace brasa::cuda {

constexpr int kFinishThreads = 256, kFinishLanes = 4;

/// A thread finishes four neighbours of a row, or what is left of it.
template <class T, class Rows>
__global__ void __launch_bounds__(kFinishThreads, 3)
    finish_parts_kernel(int64_t splits, int64_t rows, Results<T, Rows> r) {
  const int64_t per_row = (r.n + kFinishLanes - 1) / kFinishLanes, size = rows * r.n;
  const int64_t stride = int64_t(gridDim.x) * kFinishThreads;
  for (int64_t e = int64_t(blockIdx.x) * kFinishThreads + threadIdx.x; e < rows * per_row;
       e += stride) {
    const int64_t row = e / per_row, column = e % per_row * kFinishLanes;
    const int live = r.n - column < kFinishLanes ? int(r.n - column) : kFinishLanes;
    float v[kFinishLanes] = {};
#pragma unroll 8
    for (int64_t s = 0; s < splits; ++s) {
      float part[kFinishLanes];
      read_some(r.parts + s * size + row * r.n + column, live, r.packs, part);
#pragma unroll
      for (int i = 0; i < kFinishLanes; ++i) v[i] += part[i];
    }
    const int64_t at = simt::opaque(r.rows(row) + column);
    add_operands(r.epilogue, column, at, live, r.packs, v);
    activate<T>(r.epilogue.activation, v);
    write_some(r.y + at, live, r.packs, v);
  }
}

/// y = epilogue(the sum of `splits` parts), laid out one behind the other.
template <class T, class Rows>
void finish_parts(simt::stream_t stream, int64_t splits, int64_t rows,
                  const Results<T, Rows>& results) {
  const int64_t per_row = simt::ceil_div<int64_t>(results.n, kFinishLanes);
  simt::launch({.grid = simt::blocks_for(rows * per_row, kFinishThreads),
                .block = dim3(kFinishThreads),
                .stream = stream},
               finish_parts_kernel<T, Rows>, splits, rows, results);
}

}  // namespace brasa::cuda
