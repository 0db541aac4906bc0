// What every kernel gets beside its operands. Passed by value; it may grow.
#pragma once

#include <cstddef>
#include <cstdint>

namespace brasa {

/// How products of float32 are made on CUDA: in float32, or on tensor cores from operands cut to
/// tf32's 10 bits after the point, or from two such parts of each, sums in float32.
enum class MathMode : int8_t { ieee, tf32, tf32x3 };

struct Context {
  int device;       ///< CUDA device index; unused on the CPU
  int threads;      ///< most threads a CPU kernel may use, at least 1
  void* stream;     ///< CUDA stream; unused on the CPU
  void* workspace;  ///< scratch memory, 64-byte aligned, as much as x_workspace() asked for
  size_t workspace_bytes;
  MathMode math_mode;  ///< unused on the CPU
};

/// A number that a kernel is passed, or reads from the device when it runs: a captured launch is
/// repeated with the same arguments, but finds in memory what was written since.
struct Word {
  uint64_t value;
  const uint64_t* at;  ///< in device memory; null on the CPU
};

}  // namespace brasa
