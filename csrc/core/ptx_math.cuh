// Functions of the special function unit (sm_80 and later).
#pragma once

#include "core/device.cuh"

namespace brasa::simt {

/// 2^x by one instruction, within 2^-22 of it; results below 2^-126 are 0, as is that of -infinity.
BRASA_DEVICE_FN float exp2_approx(float x) {
#if BRASA_EMULATED_DEVICE
  const float power = ::exp2f(x);
  return power < 0x1p-126f ? 0.0f : power;
#else
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#endif
}

}  // namespace brasa::simt
