// The epilogue of what one thread has just written: some channels of some pixels.
#pragma once

#include "core/epilogue.h"

namespace brasa::cpu::BRASA_ISA {

/// The epilogue of channels [first, last) of `pixels` pixels from `out` on.
template <class T>
static void finish_channels(const RowEpilogue<T>& finish, T* y, T* out, int64_t channels,
                            int64_t pixels, int64_t first, int64_t last) {
  if (last - first == channels) return finish.apply(out, pixels * channels, 0, out - y);
  for (int64_t i = 0; i < pixels; ++i, out += channels)
    finish.apply(out + first, last - first, first, out + first - y);
}

}  // namespace brasa::cpu::BRASA_ISA
