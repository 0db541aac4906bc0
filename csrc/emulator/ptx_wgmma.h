// Emulation of core/ptx_wgmma.cuh.
#pragma once

#include "emulator/runtime.h"

namespace brasa::simt::emulator {

enum class WgmmaType { tf32, f16, bf16 };

void wgmma(WgmmaType type, int n, bool a_along, bool b_along, float* d, uint64_t a, uint64_t b,
           bool accumulate, Location where);
void wgmma_from_registers(WgmmaType type, int n, bool b_along, float* d, const uint32_t* a,
                          uint64_t b, bool accumulate, Location where);
void wgmma_fence(Location where);
void wgmma_commit(Location where);
void wgmma_wait(int groups_left, Location where);

/// The address that a pointer to shared memory is on a GPU.
uint32_t shared_offset(const void* pointer);

}  // namespace brasa::simt::emulator
