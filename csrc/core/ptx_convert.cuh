// Conversions between 16-bit types and float32 (sm_80 and later), to nearest, ties to even.
#pragma once

#include "core/device.cuh"
#include "core/half.h"

namespace brasa::simt {

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
