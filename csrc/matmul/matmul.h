// Matrix products: Y = activation(A B + bias + residual), batched, operands of any strides.
//
//   y[i, j] = f(sum_k a[i, k] b[k, j] + bias[j] + residual[i, j])
//
// Rounding: each y[i, j] is one FMA chain over ascending k per block of K (core/order.h), blocks
// added in order, whatever the path, the instruction set (`baseline` has no FMA), the number of
// threads and the rows beside it. Longest chain: min(K, 512) float32, 256 float64.
//
// Floor: 2 m n k operations at the FMA peak; below some 8 rows the bytes of B.
//
// CPU (gemm_tile.h has the steps): B is packed in panels of one tile's width, by the whole team,
// and read by all; chunks of rows are handed out from a counter, each packs its rows of A. Two
// barriers per 12 MiB of packed B, none per block of K. What is not packed, because packing would
// not pay: A while it is small or lies as the tile reads it, B where few rows read it and its rows
// are contiguous. One row with a contiguous B walks B row by row. Lost: static partition with a
// barrier per block of K (a second process on a core halves it); 14x32 and 8x48 tiles (equal in L1,
// worse remainders); packing both operands always (-5 % up to 384).
//
// CUDA: 64 x 64 tiles of shared memory, 4 x 4 results per thread; one chain over all of K.
#pragma once

#include "core/dispatch.h"
#include "core/epilogue.h"

namespace brasa {

constexpr int kMaxBatchRank = 6;

/// Dimensions that are walked outside the product, with the strides of both operands (0: repeated).
struct BatchDims {
  int rank;
  int64_t count;  ///< product of the shape
  int64_t shape[kMaxBatchRank], a_strides[kMaxBatchRank], b_strides[kMaxBatchRank];
};

/// Y is (batch..., m, n), C-contiguous; A (m, k) and B (k, n) have element strides. Products of all
/// positions in `sum` are added, in order: what broadcasting asks of a gradient.
struct MatmulParams {
  int64_t m, n, k;
  int64_t a_row, a_depth, b_depth, b_column;
  BatchDims batch, sum;
};

}  // namespace brasa

/// Bytes of scratch that matmul() needs with this many threads.
BRASA_FUNCTION(size_t, matmul_workspace, const MatmulParams& params, int threads)

/// The product above. y overlaps no operand; `epilogue` is laid out as y.
BRASA_KERNEL(matmul, const MatmulParams& params, const T* a, const T* b, T* y,
             const Epilogue<T>& epilogue)

/// y[j] = sum_i x[i, j] over rows, in the blocks of core/order.h: the gradient of a bias.
BRASA_KERNEL(column_sums, const T* x, T* y, int64_t rows, int64_t columns)
