// Images from C order to channels-last: what a convolution's gradient and residual are read as.
//
//   y[n, p, c] = x[n, c, p]
//
// Floor: x read and y written once. On the CPU by blocks transposed in registers
// (conv_transpose.h).
#pragma once

#include "core/dispatch.h"

/// y (batch, pixels, channels) from x (batch, channels, pixels).
BRASA_KERNEL(images_to_channels_last, const T* x, T* y, int64_t batch, int64_t channels,
             int64_t pixels)
