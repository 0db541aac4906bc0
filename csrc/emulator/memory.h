// Device buffers, as the race check and error messages see them.
#pragma once

#include <cstddef>

#include "emulator/race.h"

namespace brasa::simt::emulator {

struct Buffer {
  std::byte* mapping;  // whole pages; the last one faults
  size_t mapping_bytes;
  std::byte* data;
  size_t bytes;
  Shadow shadow;  // race check only, made at the first access
};

/// The buffer in whose pages, guard page included, the address lies; null if there is none. For the
/// running launch, which keeps buffers from coming and going.
Buffer* find_buffer(const void* pointer);

/// Held by a launch, and by whoever changes buffers or options.
class RuntimeLock {
 public:
  RuntimeLock();
  ~RuntimeLock();
  RuntimeLock(const RuntimeLock&) = delete;
  RuntimeLock& operator=(const RuntimeLock&) = delete;
};

size_t count_buffers(size_t* bytes);

/// Pages of shared memory for one block, with a guard page behind; never given back.
std::byte* map_arena();

/// Fills what the block before has used with NaN, and lays out the dynamic part.
void prepare_shared_memory(Block& block, size_t dynamic_bytes);

}  // namespace brasa::simt::emulator
