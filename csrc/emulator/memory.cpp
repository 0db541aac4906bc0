// Device buffers and shared memory.
//
// A buffer ends where its last page does, rounded up to 16 bytes, with a page behind it that
// faults: a kernel that runs past the end stops there. All begins as bytes 0xff: NaN in every
// floating type, -1 as an index. cudaMalloc aligns to 256 bytes; 16 is what vector access needs,
// and keeps the end near.
#include "emulator/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "emulator/scheduler.h"

namespace brasa::simt::emulator {
namespace {

constexpr size_t kAlignment = 16;
constexpr size_t kPage = 4096;
constexpr int kPoison = 0xff;
constexpr size_t kDynamicAlignment = 1024;  // what the widest TMA swizzle asks for
constexpr size_t kRedZone = 16;             // bytes between two shared arrays that belong to none

// Recursive: the linker may give the runtime an instrumented copy of a library template, whose
// accesses are noted, and looked up, while the lock is held.
std::recursive_mutex runtime_mutex;

std::map<uintptr_t, Buffer>& buffers() {
  static std::map<uintptr_t, Buffer> by_mapping;
  return by_mapping;
}

size_t round_up(size_t n, size_t unit) {
  return (n + unit - 1) / unit * unit;
}

/// `bytes` of fresh pages with one behind them that faults.
std::byte* map_pages(size_t bytes) {
  void* mapping = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  auto* pages = static_cast<std::byte*>(mapping);
  if (mprotect(pages + bytes, kPage, PROT_NONE) != 0) {
    munmap(mapping, bytes + kPage);
    throw std::bad_alloc();
  }
  return pages;
}

}  // namespace

RuntimeLock::RuntimeLock() {
  runtime_mutex.lock();
}
RuntimeLock::~RuntimeLock() {
  runtime_mutex.unlock();
}

std::byte* map_arena() {
  return map_pages(kArenaBytes);
}

size_t count_buffers(size_t* bytes) {
  for (const auto& [key, buffer] : buffers()) *bytes += buffer.bytes;
  return buffers().size();
}

// ---- device memory

void* device_alloc(size_t bytes) {
  if (bytes > SIZE_MAX - 2 * kPage) throw std::bad_alloc();
  const size_t pages = round_up(bytes, kPage);
  const RuntimeLock lock;
  std::byte* mapping = map_pages(pages);
  std::memset(mapping, kPoison, pages);
  std::byte* data = mapping + pages - round_up(bytes, kAlignment);
  buffers()[reinterpret_cast<uintptr_t>(mapping)] = {mapping, pages + kPage, data, bytes, {}};
  return data;
}

Buffer* find_buffer(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  auto found = buffers().upper_bound(address);
  if (found == buffers().begin()) return nullptr;
  --found;
  return address - found->first < found->second.mapping_bytes ? &found->second : nullptr;
}

void device_free(void* pointer) {
  const RuntimeLock lock;
  Buffer* buffer = find_buffer(pointer);
  if (buffer == nullptr || buffer->data != pointer) {
    throw std::invalid_argument("emulator: free of an address that alloc did not return");
  }
  std::byte* mapping = buffer->mapping;
  const size_t bytes = buffer->mapping_bytes;
  buffers().erase(reinterpret_cast<uintptr_t>(mapping));
  munmap(mapping, bytes);
}

void device_fill(void* pointer, int value, size_t bytes) {
  if (bytes == 0) return;
  const RuntimeLock lock;
  auto* first = static_cast<std::byte*>(pointer);
  const Buffer* buffer = find_buffer(pointer);
  // Memory that is no buffer is the host's, which the long tail of the tests' arrays lies in.
  if (buffer != nullptr &&
      (first < buffer->data || bytes > static_cast<size_t>(buffer->data + buffer->bytes - first))) {
    throw Error("emulator: memset of " + std::to_string(bytes) + " bytes outside a device buffer");
  }
  std::memset(pointer, value, bytes);
}

void fail_unaligned(const void* pointer, size_t bytes) {
  fail("misaligned address: an access of " + std::to_string(bytes) + " bytes at " +
       describe_address(pointer));
}

std::string describe_address(const void* pointer) {
  const auto* address = static_cast<const std::byte*>(pointer);
  if (current_thread != nullptr) {
    const auto offset = static_cast<size_t>(address - current_thread->block->arena);
    if (offset < kArenaBytes + kPage) return "byte " + std::to_string(offset) + " of shared memory";
    for (unsigned rank = 0;; ++rank) {
      const Block* block = Scheduler::instance().block_of_cluster(rank);
      if (block == nullptr) break;
      const auto of_block = static_cast<size_t>(address - block->arena);
      if (of_block >= kArenaBytes) continue;
      return "byte " + std::to_string(of_block) + " of shared memory of block " +
             std::to_string(rank) + " of the cluster";
    }
  }
  const Buffer* buffer = find_buffer(pointer);
  if (buffer == nullptr) return "an address in no device buffer";
  const std::ptrdiff_t offset = address - buffer->data;
  const std::string size = "a device buffer of " + std::to_string(buffer->bytes) + " bytes";
  if (offset < 0) return std::to_string(-offset) + " bytes before " + size;
  if (static_cast<size_t>(offset) < buffer->bytes) {
    return "byte " + std::to_string(offset) + " of " + size;
  }
  return std::to_string(offset - static_cast<std::ptrdiff_t>(buffer->bytes)) +
         " bytes past the end of " + size;
}

// ---- shared memory

void prepare_shared_memory(Block& block, size_t dynamic_bytes) {
  const size_t dynamic_end = round_up(dynamic_bytes, kDynamicAlignment);
  std::memset(block.arena, kPoison, std::max(block.arena_used, dynamic_end));
  block.arena_used = dynamic_end;
  block.arrays.assign(1, {nullptr, 0, dynamic_bytes});
}

void* static_shared(const void* tag, size_t bytes) {
  Block& block = *current_thread->block;
  for (const SharedArray& array : block.arrays) {
    if (array.tag == tag) return block.arena + array.begin;
  }
  const size_t dynamic = round_up(block.arrays.front().end, kDynamicAlignment);
  const size_t begin = round_up(block.arena_used + kRedZone, kAlignment);
  const size_t end = begin + bytes;
  if (end - dynamic > kMaxStaticShared) fail("more than 48 KiB of static shared memory");
  if (end > kMaxDynamicShared) fail("more shared memory than a block can have, 227 KiB");
  std::memset(block.arena + block.arena_used, kPoison, end + kRedZone - block.arena_used);
  block.arrays.push_back({tag, begin, end});
  block.arena_used = end;
  return block.arena + begin;
}

bool in_shared_memory(const void* pointer) {
  return static_cast<size_t>(static_cast<const std::byte*>(pointer) -
                             current_thread->block->arena) < kArenaBytes;
}

void* dynamic_shared() {
  return current_thread->block->arena;
}

}  // namespace brasa::simt::emulator
