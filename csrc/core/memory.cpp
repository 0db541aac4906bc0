// Blocks have power-of-two-and-a-half sizes (2^k, 1.5 * 2^k), so that at most a third is slack,
// with a header in front that knows its size. At most kKeep bytes stay cached; the rest goes back
// at once.
#include "core/memory.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "core/os.h"

namespace brasa::cpu {
namespace {

constexpr size_t kHeader = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kKeep = size_t{1} << 30;
constexpr int kClasses = 96;

struct Header {
  size_t bytes;  // of the block, header included
  int size_class;
};

struct Pool {
  std::mutex mutex;
  std::vector<void*> free_blocks[kClasses];
  size_t cached = 0;
};

Pool& pool() {
  static Pool* the_pool = new Pool;  // never destroyed: arrays may outlive static destructors
  return *the_pool;
}

std::atomic<size_t> bytes_in_use{0};
std::atomic<size_t> scratch_bytes{0};

/// Smallest class that holds `bytes`: even classes are 2^(k/2), odd ones 1.5 times that.
int class_of(size_t bytes, size_t& rounded) {
  for (int k = 24; k + 1 < kClasses; ++k) {
    rounded = size_t{1} << (k / 2);
    if (k % 2) rounded += rounded / 2;
    if (rounded >= bytes) return k;
  }
  throw std::bad_alloc();
}

void* system_allocate(size_t bytes) {
  const size_t alignment = bytes >= kHugePage ? kHugePage : kHeader;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  if (rounded < bytes) throw std::bad_alloc();
  void* p = std::aligned_alloc(alignment, rounded);
  if (!p) throw std::bad_alloc();
  if (bytes >= kHugePage) os::advise_huge_pages(p, rounded);
  return p;
}

struct Scratch {
  void* data = nullptr;
  size_t bytes = 0;
  void release() {
    std::free(data);
    scratch_bytes -= bytes;
    data = nullptr;
    bytes = 0;
  }
  ~Scratch() { release(); }
};
thread_local Scratch scratch;

}  // namespace

void* pool_acquire(size_t bytes) {
  if (bytes > SIZE_MAX / 4) throw std::bad_alloc();
  size_t rounded = 0;
  const int size_class = class_of(bytes + kHeader, rounded);
  void* block = nullptr;
  {
    Pool& p = pool();
    const std::lock_guard<std::mutex> lock(p.mutex);
    auto& free_blocks = p.free_blocks[size_class];
    if (!free_blocks.empty()) {
      block = free_blocks.back();
      free_blocks.pop_back();
      p.cached -= rounded;
    }
  }
  if (!block) {
    block = system_allocate(rounded);
    *static_cast<Header*>(block) = {rounded, size_class};
  }
  bytes_in_use += rounded;
  return static_cast<char*>(block) + kHeader;
}

void pool_release(void* data) {
  void* block = static_cast<char*>(data) - kHeader;
  const Header header = *static_cast<Header*>(block);
  bytes_in_use -= header.bytes;
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  if (p.cached + header.bytes > kKeep) {
    std::free(block);
    return;
  }
  p.free_blocks[header.size_class].push_back(block);
  p.cached += header.bytes;
}

void* thread_scratch(size_t bytes) {
  if (bytes > scratch.bytes) {
    scratch.release();
    size_t rounded = 0;
    class_of(bytes, rounded);
    scratch.data = system_allocate(rounded);
    scratch.bytes = rounded;
    scratch_bytes += rounded;
  }
  return scratch.data;
}

MemoryStats memory_stats() {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  return {bytes_in_use, p.cached, scratch_bytes};
}

void empty_cache() {
  scratch.release();
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  for (auto& free_blocks : p.free_blocks) {
    for (void* block : free_blocks) std::free(block);
    free_blocks.clear();
  }
  p.cached = 0;
}

}  // namespace brasa::cpu
