// Pixel shuffle: channels to sub-pixels, and back.
//
//   shuffle     y[n, c, h r + i, w r + j] = x[n, c r r + i r + j, h, w]
//   unshuffle   the inverse, which is also the gradient
//
// Both arrays are C-contiguous or both channels-last. Floor: one read and one write.
//
// CPU. Channels-last, a pixel is a matrix of channels x sub-pixels to transpose; in C order, a row
// of the large image is r rows of the small one in turn. Two or four parts in turn (factor 2, and 4
// in C order) are one or two rounds of shuffles of two vectors: copy bandwidth from DRAM; from L3
// 70 to 80 % of it channels-last, 40 % in C order, whose rows of 16 pixels are one vector each.
// Other factors transpose squares in registers (conv_transpose.h; factor 4: 85 to 95 % from DRAM)
// or join planes (conv_stage.h). Squares are streamed with their input fetched 2 KiB ahead; without
// that streaming gained nothing (2.25 ms in place of 1.27).
//
// Pixels of few channels are moved element by element, some 30 % of a copy from L3: permutes of
// whole pixels would be the next step there, as would be splitting a row in three by permutes (20
// %).
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
