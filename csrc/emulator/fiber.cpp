// Stacks lie in slabs on huge pages, 16 KiB and five cache lines apart: separate mappings of 64 KiB
// cost two to three times as much per switch, from TLB misses and from stack tops that share a
// cache set. That leaves no room for guard pages but one below the slab; a canary at the low end of
// each stack tells of an overflow afterwards.
#include "emulator/fiber.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

namespace brasa::simt::emulator {
namespace {

constexpr size_t kStackBytes = 16 * 1024 + 5 * 64;
constexpr size_t kHugePage = 2 << 20;
constexpr size_t kSlabBytes = 2 * kHugePage;
constexpr uint64_t kCanary = 0x5ca1ab1e0ddba11ull;

}  // namespace

void StackPool::add_slab() {
  void* mapping = mmap(nullptr, kSlabBytes + kHugePage, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  const auto address = reinterpret_cast<uintptr_t>(mapping);
  const uintptr_t aligned = (address / kHugePage + 1) * kHugePage;
  mprotect(mapping, aligned - address, PROT_NONE);
  auto* slab = reinterpret_cast<std::byte*>(aligned);
  madvise(slab, kSlabBytes, MADV_HUGEPAGE);  // a hint: failing costs time only
  for (size_t end = kSlabBytes / kStackBytes * kStackBytes; end > 0; end -= kStackBytes) {
    std::byte* base = slab + end - kStackBytes;
    free_.push_back({base, slab + end});
  }
}

FiberStack StackPool::take() {
  if (free_.empty()) add_slab();
  const FiberStack stack = free_.back();
  free_.pop_back();
  std::memcpy(stack.base, &kCanary, sizeof kCanary);
  return stack;
}

bool StackPool::intact(FiberStack stack) {
  uint64_t found;
  std::memcpy(&found, stack.base, sizeof found);
  return found == kCanary;
}

// The callee-saved registers go on the stack and the stack pointer into *save; all else is the
// caller's to keep.
__attribute__((naked, noinline)) void switch_fiber(void** /*save: rdi*/, void* /*target: rsi*/) {
  asm volatile(
      "pushq %rbp\n"
      "pushq %rbx\n"
      "pushq %r12\n"
      "pushq %r13\n"
      "pushq %r14\n"
      "pushq %r15\n"
      "movq %rsp, (%rdi)\n"
      "movq %rsi, %rsp\n"
      "popq %r15\n"
      "popq %r14\n"
      "popq %r13\n"
      "popq %r12\n"
      "popq %rbx\n"
      "popq %rbp\n"
      "ret\n");
}

void* prepare_fiber(FiberStack stack, void (*entry)()) {
  constexpr int kSavedRegisters = 6;
  auto top = reinterpret_cast<uintptr_t>(stack.top) & ~uintptr_t{15};
  auto* frame = reinterpret_cast<void**>(top);
  *--frame = nullptr;  // entry's return address: none, and it aligns the stack as a call would
  *--frame = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--frame = nullptr;
  return frame;
}

}  // namespace brasa::simt::emulator
