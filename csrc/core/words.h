// Numbers of the host, written to device memory in stream order.
#pragma once

#include "core/dispatch.h"

namespace brasa {

/// Words that one launch carries in its arguments, of which there are 4 KiB: nothing on the host
/// has to outlive the call, as the source of a copy would.
constexpr int kMostWords = 448;

}  // namespace brasa

namespace brasa::cuda {

/// to[i] = words[i] for i < count <= kMostWords; `words` is in host memory.
void store_words(Context ctx, const uint64_t* words, int count, uint64_t* to);

}  // namespace brasa::cuda
