// Pixel shuffle: channels to sub-pixels, and back.
//
//   shuffle     y[n, c, h r + i, w r + j] = x[n, c r r + i r + j, h, w]
//   unshuffle   the inverse, which is also the gradient
//
// Both arrays are C-contiguous or both channels-last. Floor: one read and one write.
//
// CPU. Channels-last, a pixel is a matrix of channels x sub-pixels to transpose; in C order, a row
// of the large image is r rows of the small one interleaved. For r = 2 both are rounds of shuffles
// of two vectors, one each element and round: 8 shuffles move 4 vectors, fewer cycles than L2 takes
// for them. Other factors transpose squares in registers (conv_transpose.h) or join planes
// (conv_stage.h).
#pragma once

#include "core/dispatch.h"

namespace brasa {

/// The small image: (batch, channels factor factor, height, width); the large one: (batch,
/// channels, height factor, width factor).
struct ShuffleShape {
  int64_t batch, channels, height, width, factor;
  bool channels_last;
};

}  // namespace brasa

BRASA_KERNEL(pixel_shuffle, const T* x, T* y, const ShuffleShape& shape)
BRASA_KERNEL(pixel_unshuffle, const T* x, T* y, const ShuffleShape& shape)
