// Emulation of core/ptx_mma.cuh.
#pragma once

#include <bit>
#include <cstdint>

#include "emulator/runtime.h"

namespace brasa::simt::emulator {

inline uint32_t round_to_tf32(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return finite ? (bits + 0x1000u) & ~0x1fffu : bits;
}

void mma_tf32(float* d, const uint32_t* a, const uint32_t* b, Location where);
void mma_bf16(float* d, const uint32_t* a, const uint32_t* b, Location where);
void mma_f16(float* d, const uint32_t* a, const uint32_t* b, Location where);
void store_matrices(void* row, const uint32_t* registers, Location where);
void load_matrices(uint32_t* registers, const void* row, bool transposed, Location where);

}  // namespace brasa::simt::emulator
