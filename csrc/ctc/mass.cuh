// Probabilities as fractions times powers of two; see ctc.h.
#pragma once

#include "core/vmath.cuh"

namespace brasa::cuda {

/// Log-probabilities beyond it are 0 or no number: exponents stay integers that float holds.
constexpr double kLimit = 1e6;
constexpr double kLn2 = 0.69314718055994530942;

template <class T> struct Range;
template <> struct Range<float> {
  static constexpr int kLowest = -126;
  static constexpr double kLn2High = 0x1.62e4p-1, kLn2Low = 1.4286068203094172321e-6;
};
template <> struct Range<double> {
  static constexpr int kLowest = -1022;
  static constexpr double kLn2High = 0x1.62e42fefp-1, kLn2Low = 7.440617110012397e-11;
};

/// m 2^e; see ctc.h.
template <class T> struct Mass {
  T m, e;
};

template <class T> BRASA_DEVICE_FN Mass<T> nothing() {
  return {T(1), -infinity<T>()};
}

BRASA_DEVICE_FN float fused(float a, float b, float c) {
  return ::fmaf(a, b, c);
}
BRASA_DEVICE_FN double fused(double a, double b, double c) {
  return ::fma(a, b, c);
}

/// x / ln 2, rounded to a whole number or its neighbour.
BRASA_DEVICE_FN float whole_powers(float x) {
  return ::rintf(x * float(1 / kLn2));
}
BRASA_DEVICE_FN double whole_powers(double x) {
  return ::rint(x * (1 / kLn2));
}

/// exp(x).
template <class T> BRASA_DEVICE_FN Mass<T> mass_of_log(T x) {
  const T bounded = x < T(-kLimit) ? T(-kLimit) : x > T(kLimit) ? T(kLimit) : x;
  const T n = whole_powers(bounded);
  const T r = fused(n, T(-Range<T>::kLn2Low), fused(n, T(-Range<T>::kLn2High), bounded));
  return {vexp(r), x < T(-kLimit) ? -infinity<T>() : n};
}

// Powers of two and fractions of floats by their bits: by ldexp and frexp of doubles, and a
// division by ln 2, a step of the recursion was a chain of some hundred instructions more.

/// 2^d for whole d <= 0: the smallest normal number where it is less, or no number.
BRASA_DEVICE_FN float power_of_two(float d) {
  const float most = d >= float(Range<float>::kLowest) ? d : float(Range<float>::kLowest);
  return __int_as_float((127 + int(most)) << 23);
}
BRASA_DEVICE_FN double power_of_two(double d) {
  return ::ldexp(1.0, d >= Range<double>::kLowest ? int(d) : Range<double>::kLowest);
}

/// x > 0 as a number in [1, 2) times 2^n; any number where x is none.
BRASA_DEVICE_FN float fraction_of(float x, int& n) {
  const int bits = __float_as_int(x);
  n = (bits >> 23) - 127;
  return __int_as_float((bits & 0x7fffff) | 0x3f800000);
}
BRASA_DEVICE_FN double fraction_of(double x, int& n) {
  const double half = ::frexp(x, &n);
  --n;
  return 2 * half;
}
template <class T> BRASA_DEVICE_FN T aligned(const Mass<T>& a, T e) {
  return a.m * power_of_two(a.e - e);
}

template <class T> BRASA_DEVICE_FN Mass<T> operator+(const Mass<T>& a, const Mass<T>& b) {
  const T e = cuda::max(a.e, b.e);
  return {aligned(a, e) + aligned(b, e), e};
}

/// a b, with its fraction in [1, 2) again, or no number.
template <class T> BRASA_DEVICE_FN Mass<T> operator*(const Mass<T>& a, const Mass<T>& b) {
  int n = 0;
  const T m = fraction_of(a.m * b.m, n);
  return {m, a.e + b.e + T(n)};
}

template <class T> BRASA_DEVICE_FN T number_of(const Mass<T>& a) {
  if (a.e != a.e) return a.e;
  return a.e > T(Range<T>::kLowest) ? T(::ldexp(double(a.m), int(a.e))) : T(0);
}

}  // namespace brasa::cuda
