// Pixel shuffle: channels to sub-pixels, and back.
//
//   shuffle     y[n, c, h r + i, w r + j] = x[n, c r r + i r + j, h, w]
//   unshuffle   the inverse, which is also the gradient
//
// Both arrays are C-contiguous or both channels-last. Floor: one read and one write.
//
// CPU. Channels-last, a pixel is a matrix of channels x sub-pixels to transpose; in C order, a row
// of the large image is r rows of the small one in turn. Two or four parts in turn (factor 2, and 4
// in C order) are one or two rounds of shuffles of two vectors: at copy bandwidth from DRAM, 80 %
// of it from L3. Other factors transpose squares in registers (conv_transpose.h) or join planes
// (conv_stage.h); pixels of few channels are moved element by element.
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
