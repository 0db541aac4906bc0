// Faults of a kernel become the launch's error.
#pragma once

#include <csignal>

namespace brasa::simt::emulator {

/// While it lives, a segmentation fault, bus error or division by zero in a thread of the kernel
/// ends the launch; any other goes to the handler that was there before.
class FaultGuard {
 public:
  FaultGuard();
  ~FaultGuard();
  FaultGuard(const FaultGuard&) = delete;
  FaultGuard& operator=(const FaultGuard&) = delete;

 private:
  stack_t previous_stack_;
};

}  // namespace brasa::simt::emulator
