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
// CPU (gemm_plan.h cuts, gemm_tile.h has the steps): a chunk is a strip of columns in a part of the
// rows, over all of K. Its thread packs the strip's B for itself, where it can while the first tile
// multiplies (32 x 512 x 2048: 15 % faster than before it), and keeps it for the strip's next
// chunk; A is read as it lies, with the next tile's rows prefetched. A B that lies along K, as the
// weights of a layer do, is not packed but read by rows: Y^T = B^T A^T is computed and each chunk
// transposed into Y (64 x 1024 x 2048: 14 % faster, 16 x 9216 x 4096 from memory twice). So nothing
// is shared but the operands: no barrier, and no line that another core has written. A is packed
// only where its columns are contiguous and it is large, B not where few rows read it and its rows
// are contiguous. Where both are packed and K is deep the team packs B first, for at most 8 MiB of
// K's blocks at a time: the parts of rows, low since each packs its A, would otherwise pack B again
// each (2048 x 512 x 6400, the weight gradient of a recurrent layer: 39 ms, now 30; its A, beyond
// L3, is what the rest waits for). The bias is added as a tile is stored (a pass of its own over a
// shallow tile cost 4-20 %). One row with a contiguous B walks B row by row. Lost, on two cores: B
// packed by the team between barriers of every block (77 % of the peak at 256, now 89; 81 at 512,
// now 94); 12 x 2 tiles, which need a packed A (2 % of a 1024 cube); 14x32 and 8x48 tiles (equal in
// L1, worse remainders).
//
// CUDA, float32 and float64 (gemm_fma.cuh): tiles of 128 x 128 results, 8 x 16 per thread, or of
// 64 x 64, whichever leaves least work to the multiprocessor that has most of it, parts of K
// counted in; one chain over all of K, or one per part. Up to 8 rows, where both operands are
// contiguous along K: a warp for a few columns, so 32 chains.
//
// CUDA, 16 bits, and float32 where tf32 is allowed: tensor cores, sums in float32, rounded once. In
// three products of tf32 (tf32_split.cuh) they are as exact as float32.
// matmul_wgmma.cuh is for Hopper and large products, matmul_mma.cuh for everything else from sm_80
// on; gemm_tensor.h says what both can read. On an H200, 8192 x 8192 in bfloat16 takes 1.47 ms (746
// TFLOP/s, cuBLAS 1.48 ms), 4096 x 4096 189 us (cuBLAS 182), in tf32 375 us (cuBLAS 361); one row
// of 4096 by 4096 x 4096 9.6 us (cuBLAS 10.5).
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
  bool packed_b = false;  ///< b is what matmul_pack() wrote; its strides say nothing
  bool aligned = false;   ///< a and b begin at multiples of 16 bytes (CUDA)
};

}  // namespace brasa

/// Bytes of scratch that matmul() needs in this context.
BRASA_FUNCTION(size_t, matmul_workspace, const MatmulParams& params, ::brasa::Context ctx)

/// The product above. y overlaps no operand; `epilogue` is laid out as y.
BRASA_KERNEL(matmul, const MatmulParams& params, const T* a, const T* b, T* y,
             const Epilogue<T>& epilogue)

#if !defined(BRASA_FOR_CUDA)

/// Elements of a packed B, and B (k, n) of any strides as the tiles of this instruction set read
/// it: panels of columns, each over all of K.
BRASA_FUNCTION(int64_t, matmul_packed_elements, int64_t k, int64_t n)
BRASA_KERNEL(matmul_pack, const T* b, int64_t b_depth, int64_t b_column, int64_t k, int64_t n,
             T* packed)

#endif

/// y[j] = sum_i x[i, j] over rows, in the blocks of core/order.h: the gradient of a bias.
BRASA_KERNEL(column_sums, const T* x, T* y, int64_t rows, int64_t columns)

#if defined(BRASA_FOR_CUDA)

/// The same of 16-bit elements, in float32.
BRASA_KERNEL(wide_column_sums, const T* x, float* y, int64_t rows, int64_t columns)

#endif
