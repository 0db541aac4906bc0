// Scaled dot-product attention, at every position of a batch:
//
//   s[i, j] = scale q[i] . k[j] + mask[i, j]      p[i, :] = softmax(s[i, :])      y[i] = sum_j p[i,
//   j] v[j]
//
// with dropout of p where it is asked for, and its gradients
//
//   dp[i, j] = dy[i] . v[j]        ds[i, j] = p[i, j] (dp[i, j] - dy[i] . y[i])
//   dq[i] = scale sum_j ds[i, j] k[j]   dk[j] = scale sum_i ds[i, j] q[i]   dv[j] = sum_i p[i, j]
//   dy[i]
//
// The matrix of scores never exists as a whole (Dao, Fu, Ermon, Rudra and Re 2022,
// "FlashAttention"): blocks of queries meet blocks of keys, with a running maximum m and sum of
// exponentials of each row (Milakov and Gimelshein 2018). The backward pass computes p again from
// log_sum[i] = m + log sum. A row that may attend to nothing is 0 and has no gradient, and its
// log_sum is infinite.
//
// Rounding: a score is one FMA chain over E; a block of keys (core/order.h) adds to a result by one
// chain, which joins what was there times exp(old maximum - new maximum). So results depend on the
// shapes of one position, never on its neighbours. Masked keys weigh exactly 0; a NaN or infinity
// among the values of a block still makes NaN of the rows that the block is computed for.
//
// Floor: 2 L S (E + Ev) operations forward, 2 L S (3 E + 2 Ev) backward, and L S exponentials in
// each.
//
// CPU (attention_block.h): of the time of 512 x 512 x 64, 78 % are products, at nine tenths of the
// FMA peak as their depth is 64, and 13 % exponentials and maxima; 70 % of the peak forward, 77 %
// with the backward pass. Lost: blocks of 128 keys (a wider row of weights no longer stays in L1: 3
// % slower at 128, 13 % where causal) and of 96 (equal). One query leaves all lanes but one empty,
// and takes two and a half times as long as reading keys and values from memory.
//
// CUDA, 16 bits or tf32 (attention_mma.cuh): tensor cores; weights and slopes are rounded like
// their operands, sums and log_sum are float32. Tiles are as large as registers allow: blocks of
// keys with 32 rows a warp spilled above 32 features, the forward pass above 64. On Hopper, 16 bits
// without a mask or dropout: attention_wgmma.cuh, where the copy engine can read the operands.
//
// CUDA, float32 and float64 (attention_tile.cuh): tiles of 64 x 64, and 64 columns of a result per
// block, which computes its scores anew; each gradient has a kernel of its own, which sums in
// order, without atomics.
#pragma once

#include "core/dispatch.h"
#include "core/half.h"

namespace brasa {

constexpr int kMaxAttentionBatch = 6;

/// Where an array's rows stand: strides in elements, 0 where it is repeated. Rows are contiguous.
struct AttentionStrides {
  int64_t row, batch[kMaxAttentionBatch];
};

/// Either bytes (0: may not attend) or elements of T that are added to the scores, or neither.
template <class T> struct AttentionMask {
  const uint8_t* allowed;
  const T* added;
  AttentionStrides strides;
  int64_t column;

  explicit operator bool() const { return allowed || added; }
};

/// q (batch..., L, E), k (batch..., S, E), v (batch..., S, Ev), y (batch..., L, Ev).
struct AttentionParams {
  int rank;       ///< of the batch
  int64_t count;  ///< its positions
  int64_t shape[kMaxAttentionBatch];
  int64_t l, s, e, ev;
  AttentionStrides q, k, v, y;
  bool causal;  ///< key j is hidden from the queries i < j
  double scale, dropout;
  Word seed, offset;  ///< of dropout; element i of the scores is as in core/random.h
};

/// The gradients that come and those that are wanted (others null), with their strides.
template <class T> struct AttentionGradients {
  const T* dy;
  T *dq, *dk, *dv;
  AttentionStrides dy_strides, dq_strides, dk_strides, dv_strides;
};

}  // namespace brasa

/// Bytes of scratch that either kernel needs with this many threads.
BRASA_FUNCTION(size_t, attention_workspace, const AttentionParams& params, int threads)

/// `log_sum`, (batch..., L) in C order, may be null.
BRASA_KERNEL(attention_forward, const AttentionParams& params, const T* q, const T* k, const T* v,
             const AttentionMask<Wide<T>>& mask, T* y, Wide<T>* log_sum)
BRASA_KERNEL(attention_backward, const AttentionParams& params, const T* q, const T* k, const T* v,
             const AttentionMask<Wide<T>>& mask, const T* y, const Wide<T>* log_sum,
             const AttentionGradients<T>& gradients)
