// What every kernel gets beside its operands. Passed by value; it may grow.
#pragma once

#include <cstddef>
#include <cstdint>

namespace brasa {

struct Context {
  int device;       ///< CUDA device index; unused on the CPU
  int threads;      ///< most threads a CPU kernel may use, at least 1
  void* stream;     ///< CUDA stream; unused on the CPU
  void* workspace;  ///< scratch memory, 64-byte aligned, as much as x_workspace() asked for
  size_t workspace_bytes;
};

}  // namespace brasa
