// What decides how results are rounded: it depends on shapes alone, and on no instruction set,
// cache size or number of threads. Changing a number here changes bits. (core/tiles.h may only
// change speed.)
#pragma once

#include <cstdint>

namespace brasa {

/// Weight gradients of convolutions sum over blocks of whole image rows; a block holds about this
/// many elements of x and dy together (512 KiB of float32: half of a common L2), at least one row.
constexpr int64_t kConvBlockElements = 128 * 1024;

/// ... and at most so many rows: their places are listed on the stack.
constexpr int64_t kConvBlockRows = 128;

/// Blocks are dealt to at most this many parts, summed apart and added in order, so that layers
/// with few weights still keep every core busy; fewer parts where their weights exceed
/// kConvPartElements.
constexpr int64_t kConvParts = 16;
constexpr int64_t kConvPartElements = 32 * 1024;

/// The same for bias gradients, which are cheap to keep apart.
constexpr int64_t kConvBiasParts = 64;

}  // namespace brasa
