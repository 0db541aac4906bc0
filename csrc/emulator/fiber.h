// Fibers: stacks, and the switch between them (x86-64, System V calling convention).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace brasa::simt::emulator {

struct FiberStack {
  std::byte* base;
  std::byte* top;
};

/// Stacks are kept between launches: a block of 1,024 threads needs as many.
class StackPool {
 public:
  FiberStack take();
  void give_back(FiberStack stack) { free_.push_back(stack); }

  /// False when a thread has written over the low end of its stack.
  static bool intact(FiberStack stack);

 private:
  void add_slab();
  std::vector<FiberStack> free_;
};

/// Saves the running context in `*save` and continues at `target`, a saved or a prepared one.
void switch_fiber(void** save, void* target);

/// A context that starts `entry`, which must not return, on `stack`.
void* prepare_fiber(FiberStack stack, void (*entry)());

}  // namespace brasa::simt::emulator
