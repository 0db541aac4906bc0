// Conversions between 16-bit types and float32 (sm_80 and later), to nearest, ties to even; loads
// and stores that convert on the way, through which kernels take every floating type.
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

/// N neighbours as they are computed with.
template <class W, int N> struct Lanes {
  W lane[N];
  BRASA_DEVICE_FN W& operator[](int i) { return lane[i]; }
  BRASA_DEVICE_FN const W& operator[](int i) const { return lane[i]; }
};

/// How many of N neighbours one access moves.
template <class T, int N> inline constexpr int kPieceLanes = N < kPackLanes<T> ? N : kPackLanes<T>;

/// Reads N neighbours at `pointer` by accesses of up to 16 bytes, to which it is aligned.
template <int N, class T> BRASA_DEVICE_FN Lanes<Wide<T>, N> load_wide(const T* pointer) {
  constexpr int kPiece = kPieceLanes<T, N>;
  Lanes<Wide<T>, N> lanes;
#pragma unroll
  for (int first = 0; first < N; first += kPiece) {
    if constexpr (sizeof(T) == 2 && kPiece > 1) {
      const auto words = load_pack<kPiece / 2>(reinterpret_cast<const uint32_t*>(pointer + first));
#pragma unroll
      for (int i = 0; i < kPiece; ++i)
        lanes[first + i] = widen(T{static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16))});
    } else {
      const auto pack = load_pack<kPiece>(pointer + first);
#pragma unroll
      for (int i = 0; i < kPiece; ++i) lanes[first + i] = widen(pack[i]);
    }
  }
  return lanes;
}

/// Writes them, each rounded once.
template <class T, int N>
BRASA_DEVICE_FN void store_wide(T* pointer, const Lanes<Wide<T>, N>& lanes) {
  constexpr int kPiece = kPieceLanes<T, N>;
#pragma unroll
  for (int first = 0; first < N; first += kPiece) {
    if constexpr (sizeof(T) == 2 && kPiece > 1) {
      Pack<uint32_t, kPiece / 2> words;
#pragma unroll
      for (int i = 0; i < kPiece; i += 2)
        words[i / 2] = narrow_pair<T>(lanes[first + i], lanes[first + i + 1]);
      store_pack<kPiece / 2>(reinterpret_cast<uint32_t*>(pointer + first), words);
    } else {
      Pack<T, kPiece> pack;
#pragma unroll
      for (int i = 0; i < kPiece; ++i) pack[i] = narrow<T>(lanes[first + i]);
      store_pack<kPiece>(pointer + first, pack);
    }
  }
}

}  // namespace brasa::simt
