// CUDA's arithmetic functions that <math.h> lacks, for a C++ compiler.
//
// The fast ones (__expf ...) are exact here; tests allow for their error on a GPU.
#pragma once

#include <math.h>  // not <cmath>: kernels call exp(float) and isnan unqualified, as in CUDA

#include <bit>
#include <cstdint>

// As in CUDA, a NaN loses against a number.
inline float max(float a, float b) {
  return fmaxf(a, b);
}
inline float min(float a, float b) {
  return fminf(a, b);
}
inline double max(double a, double b) {
  return fmax(a, b);
}
inline double min(double a, double b) {
  return fmin(a, b);
}
#define BRASA_MIN_MAX(T)             \
  inline constexpr T max(T a, T b) { \
    return a < b ? b : a;            \
  }                                  \
  inline constexpr T min(T a, T b) { \
    return b < a ? b : a;            \
  }
BRASA_MIN_MAX(int)
BRASA_MIN_MAX(unsigned)
BRASA_MIN_MAX(long)
BRASA_MIN_MAX(unsigned long)
BRASA_MIN_MAX(long long)
BRASA_MIN_MAX(unsigned long long)
#undef BRASA_MIN_MAX

inline float rsqrtf(float x) {
  return 1.0f / sqrtf(x);
}
inline double rsqrt(double x) {
  return 1.0 / ::sqrt(x);
}
inline float rsqrt(float x) {
  return rsqrtf(x);
}
inline float __expf(float x) {
  return expf(x);
}
inline float __logf(float x) {
  return logf(x);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return fmaf(a, b, c);
}
inline double __fma_rn(double a, double b, double c) {
  return ::fma(a, b, c);
}

inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}
inline int __ffs(int x) {
  return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline long long __double_as_longlong(double x) {
  return std::bit_cast<long long>(x);
}
inline double __longlong_as_double(long long x) {
  return std::bit_cast<double>(x);
}
