// Conversions between 16-bit types and float32 (sm_80 and later), to nearest, ties to even.
#pragma once

#include "core/device.cuh"
#include "core/half.h"

namespace brasa::simt {

/// Two neighbours of a 16-bit type in a register, the first in its low half. Packs of them travel
/// as words: as packs of 16-bit elements the compiler would store them one by one.
template <class T> BRASA_DEVICE_FN uint32_t narrow_pair(float first, float second) {
#if BRASA_EMULATED_DEVICE
  return host::narrow<T>(first).bits | uint32_t(host::narrow<T>(second).bits) << 16;
#else
  uint32_t pair;
  if constexpr (std::is_same_v<T, float16>)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#endif
}

#if BRASA_EMULATED_DEVICE

template <class T> BRASA_DEVICE_FN Wide<T> widen(T x) {
  return host::widen(x);
}
template <class T> BRASA_DEVICE_FN T narrow(Wide<T> x) {
  if constexpr (sizeof(T) == 2)
    return host::narrow<T>(x);
  else
    return x;
}

#else

template <class T> BRASA_DEVICE_FN Wide<T> widen(T x) {
  if constexpr (std::is_same_v<T, float16>) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
    return value;
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return __uint_as_float(uint32_t(x.bits) << 16);
  } else {
    return x;
  }
}

template <class T> BRASA_DEVICE_FN T narrow(Wide<T> x) {
  if constexpr (std::is_same_v<T, float16>) {
    T result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    T result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
  } else {
    return x;
  }
}

#endif

}  // namespace brasa::simt
