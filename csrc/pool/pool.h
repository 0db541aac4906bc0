// Pooling of images: (N, C, H, W) -> (N, C, OH, OW), C-contiguous or channels-last.
//
//   max   y = the largest element of the window; a NaN wins (the last one, as in torch), among
//   equals the
//         first in scan order. Padding never wins. What the backward needs is kept as the offset of
//         the winner in its window, row * kernel_w + column: one byte, or int32 for windows over
//         256.
//   mean  y = sum / divisor. The sum is taken column by column: each column of the window from top
//   to
//         bottom, the columns' sums from left to right; longest chain kernel_h + kernel_w. Both
//         layouts add in this order, and the backward does so too.
//
// Windows are regular (stride, padding, dilation, the last one cut off where ceil_mode made it
// overhang) or adaptive: window i of n over H rows is floor(i H / n) to ceil((i + 1) H / n).
// window.h has the geometry.
//
// Floor: every element is read once and written once (3x3/2 reads 1 and writes 1/4): bandwidth.
// Windows that halve an image fetch 2 KiB ahead where they read new pixels: beside streaming stores
// the hardware alone is late (channels-last forward: a quarter to a third of the time).
#pragma once

#include "core/dispatch.h"

namespace brasa {

/// One spatial dimension. For adaptive windows `kernel` is the extent of the largest one and counts
/// in offsets only; stride, pad and dilation have no say.
struct PoolAxis {
  int64_t in, out, kernel, stride, pad, dilation;
  bool adaptive;
};

struct PoolParams {
  int64_t n, c;
  PoolAxis h, w;
  bool channels_last;
  bool include_pad;          ///< zeros of the padding count in the divisor of a mean
  int64_t divisor_override;  ///< divides every sum where it is not 0
};

/// Offsets of the maxima, laid out as y; null where they are not wanted.
struct PoolOffsets {
  void* data;
  bool wide;  ///< int32 in place of uint8
};

}  // namespace brasa

BRASA_KERNEL(max_pool_forward, const T* x, T* y, PoolOffsets offsets, const PoolParams& params)
BRASA_KERNEL(max_pool_backward, const T* dy, PoolOffsets offsets, T* dx, const PoolParams& params)
BRASA_KERNEL(mean_pool_forward, const T* x, T* y, const PoolParams& params)
BRASA_KERNEL(mean_pool_backward, const T* dy, T* dx, const PoolParams& params)

/// Bytes of scratch that any of these four may use.
BRASA_FUNCTION(size_t, pool_workspace, const PoolParams& params, int threads)

/// indices[i] = the position ih * W + iw that offset i stands for, -1 where it lies outside the
/// image.
BRASA_KERNEL(max_pool_indices, PoolOffsets offsets, T* indices, const PoolParams& params)
