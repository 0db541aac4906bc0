// What the copy engine and the tensor cores read of shared memory that threads wrote.
//
// They see it by another way than threads do, and fence.proxy.async lies between: by the thread
// that wrote, after its write and before the barrier that tells of it. Checked where accesses are
// noted, in modules built with RACE.
#pragma once

#include <cstddef>

#include "emulator/runtime.h"

namespace brasa::simt::emulator {

struct Block;

/// The running thread's writes so far are for all to see.
void proxy_fence();

/// `reader` ("tma_store", "wgmma") reads these bytes of the block's shared memory.
void require_fenced(Block& block, size_t offset, size_t bytes, const char* reader);

}  // namespace brasa::simt::emulator
