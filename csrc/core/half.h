// The 16-bit floating-point types. They are stored only: arithmetic is float32's, and what is
// stored is rounded once, to nearest, ties to even.
#pragma once

#include <cstdint>

namespace brasa {

struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

/// What T is computed in.
template <class T> struct WideOf {
  using type = T;
};
template <> struct WideOf<float16> {
  using type = float;
};
template <> struct WideOf<bfloat16> {
  using type = float;
};
template <class T> using Wide = typename WideOf<T>::type;

namespace host {

inline float float_of_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float widen(float x) {
  return x;
}
inline double widen(double x) {
  return x;
}
inline float widen(bfloat16 x) {
  return float_of_bits(uint32_t(x.bits) << 16);
}
/// The exponent is moved by a multiplication, which also makes subnormal numbers normal.
inline float widen(float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  constexpr float kTwoTo112 = 0x1p112f;
  return float_of_bits(bits_of_float(float_of_bits(magnitude << 13) * kTwoTo112) | sign);
}

template <class T> T narrow(float x);

template <> inline float narrow<float>(float x) {
  return x;
}
template <> inline bfloat16 narrow<bfloat16>(float x) {
  const uint32_t bits = bits_of_float(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t(bits >> 16 | 0x40u)};
  return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
/// Adding a power of two whose last place is that of the result rounds to it.
template <> inline float16 narrow<float16>(float x) {
  const uint32_t bits = bits_of_float(x), magnitude = bits & 0x7fffffffu;
  const auto sign = uint16_t(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // 65520 and more
  if (magnitude < 0x38800000u) {                                    // subnormal: below 2^-14
    const uint32_t rounded = bits_of_float(float_of_bits(magnitude) + 0.5f);
    return {uint16_t(sign | (rounded - bits_of_float(0.5f)))};
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
  return {uint16_t(sign | ((rounded - (112u << 23)) >> 13))};
}

}  // namespace host

}  // namespace brasa
