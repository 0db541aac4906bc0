// What this machine can do at most, for benchmarks: fused multiply-adds with every operand in a
// register, and copies. Measured beside the kernels they are compared with, with the same vectors
// and threads.
#pragma once

#include "core/dispatch.h"

/// Chains of `rounds` FMA in every accumulator of the widest register tile, on every thread. sink
/// keeps them alive: one vector (64 bytes) per thread. Returns the operations of one thread.
BRASA_FUNCTION(int64_t, fma_loop, Context ctx, T* sink, int64_t rounds)

/// y[i] = x[i] for i < n.
BRASA_KERNEL(copy_loop, const T* x, T* y, int64_t n)
