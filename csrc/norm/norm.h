// Batch and layer normalisation: y = activation((x - mean) rstd weight + bias + residual) with
// rstd = 1 / sqrt(var + eps).
//
// Statistics are taken block by block: s = the rounded mean of the block's first eighth; then, over
// d = x - s, e = sum d and q = sum d^2. Mean s + e / n and squares q - e^2 / n are exact to first
// order whatever s rounded to, and little cancels, as the first eighth's own distance from the mean
// is part of the variance: (s - mean)^2 <= 8 var, so q is at most 9 n var. In E[x^2] - E[x]^2 all
// digits go where |mean| >> std. Blocks are merged in order, in double:
//
//   mean = sum n_b mean_b / n      squares = sum (squares_b + n_b (mean_b - mean)^2)
//
// So the statistics of a batch cost one read of memory, not two. The blocks (core/order.h) depend
// on the shape alone. Floor of training: read x for the statistics, read x and write y to
// normalise; less for an array that exceeds the caches only in part, as the second pass begins
// where the first one ended. In C order channels are apart, and a group of them takes both passes
// while it is in L2: x is read once. Then L2 binds (two reads and a write of 64 bytes in 8 cycles
// per core, against 7.5 with all in L2), and 2.5 times PyTorch on 32 x 256 x 14 x 14 would be 92 us
// of the copy's 60.
//
// Measured on the way: merging the blocks channel by channel took a third of 32 x 256 x 14 x 14
// channels-last (now in vectors of channels); four rows that share their channels' numbers gain a
// quarter of normalising, but lose 15 % where rows are streamed; a first pass over whole blocks for
// s took 15 % of 32 x 256 x 14 x 14; a relu behind as a pass of its own in L1 another 15 %. Groups
// that fit L1 lose a third, their runs being too short to be fetched ahead; fetching by hand, of x
// or of y for writing, loses 5 to 10 %.
//
// Vectors (weight, bias, statistics, and the gradients of the first two) are of Wide<T>: float32
// beside arrays of 16 bits.
//
// Backward, with xhat = (x - mean) rstd, over the n elements of a channel (batch) or a row (layer)
// and h = dy (batch) or dy weight (layer):
//   dx = rstd (h - sum(h) / n - xhat sum(h xhat) / n), times weight for the batch
//   dweight = sum dy xhat, dbias = sum dy.
// With fixed (running) statistics the two sums do not enter dx. A relu behind a batch norm without
// residual costs nothing: x says where it passed, in both of these passes (a pass of its own over
// dy, y and its result was a third of the bytes).
#pragma once

#include "core/activations.h"
#include "core/dispatch.h"
#include "core/half.h"

namespace brasa {

/// x is (n, c, s) in C order, or (n s, c) where channels_last (a matrix is: s = 1).
struct BatchNormParams {
  int64_t n, c, s;
  bool channels_last;
  bool training;  ///< statistics of the batch; else those that are given
  double momentum, eps;
  Activation activation;
};

/// weight, bias, residual, running_* and pre_activation may be null. mean and rstd are written.
template <class T> struct BatchNormForward {
  const T *x, *residual;
  const Wide<T>*weight, *bias;
  Wide<T>*running_mean, *running_var;
  Wide<T>*mean, *rstd;
  T* pre_activation;
  T* y;
};

/// dy is the gradient before the activation; with relu_bias that of relu((x - mean) rstd weight +
/// relu_bias), whose sign is computed again: y need not be read. weight, relu_bias, dx, dweight and
/// dbias may be null.
template <class T> struct BatchNormBackward {
  const T *dy, *x;
  const Wide<T>*weight, *mean, *rstd, *relu_bias;
  T* dx;
  Wide<T>*dweight, *dbias;
};

struct LayerNormParams {
  int64_t rows, width;
  double eps;
  Activation activation;
};

/// x is (rows, width). weight, bias, residual and pre_activation may be null. mean and rstd: one
/// per row.
template <class T> struct LayerNormForward {
  const T *x, *residual;
  const Wide<T>*weight, *bias;
  Wide<T>*mean, *rstd;
  T* pre_activation;
  T* y;
};

template <class T> struct LayerNormBackward {
  const T *dy, *x;
  const Wide<T>*weight, *mean, *rstd;
  T* dx;
  Wide<T>*dweight, *dbias;
};

}  // namespace brasa

BRASA_KERNEL(batch_norm_forward, const BatchNormForward<T>& a, const BatchNormParams& params)
BRASA_KERNEL(batch_norm_backward, const BatchNormBackward<T>& a, const BatchNormParams& params)
BRASA_FUNCTION(size_t, batch_norm_workspace, const BatchNormParams& params)

BRASA_KERNEL(layer_norm_forward, const LayerNormForward<T>& a, const LayerNormParams& params)
BRASA_KERNEL(layer_norm_backward, const LayerNormBackward<T>& a, const LayerNormParams& params)
BRASA_FUNCTION(size_t, layer_norm_workspace, const LayerNormParams& params)
