// The functions of core/vmath.h for one float or double of a CUDA thread, so that
// core/activations.h is written once. CUDA's own precise functions do the work (at most 2 ULP for
// those used here, as its documentation states, 4 for erfcf); the host compiler's stand in for them
// in the emulator.
#pragma once

#include <cmath>

#include "core/device.cuh"

namespace brasa::cuda {

template <class V> BRASA_DEVICE_FN V value(double c) {
  return V(c);
}
template <class V> BRASA_DEVICE_FN V infinity() {
  return V(HUGE_VAL);
}

template <class V> BRASA_DEVICE_FN V select(bool mask, V a, V b) {
  return mask ? a : b;
}

BRASA_DEVICE_FN float abs(float x) {
  return ::fabsf(x);
}
BRASA_DEVICE_FN double abs(double x) {
  return ::fabs(x);
}

/// The larger / smaller of two; a NaN in either wins.
template <class V> BRASA_DEVICE_FN V max(V a, V b) {
  return a > b || a != a ? a : b;
}
template <class V> BRASA_DEVICE_FN V min(V a, V b) {
  return a < b || a != a ? a : b;
}

/// a b + c with one rounding: where two products are added, which of them the compiler would fuse
/// is its own choice, in each kernel.
BRASA_DEVICE_FN float fma(float a, float b, float c) {
  return ::fmaf(a, b, c);
}
BRASA_DEVICE_FN double fma(double a, double b, double c) {
  return ::fma(a, b, c);
}

BRASA_DEVICE_FN float vsqrt(float x) {
  return ::sqrtf(x);
}
BRASA_DEVICE_FN double vsqrt(double x) {
  return ::sqrt(x);
}
BRASA_DEVICE_FN float vexp(float x) {
  return ::expf(x);
}
BRASA_DEVICE_FN double vexp(double x) {
  return ::exp(x);
}
BRASA_DEVICE_FN float vexpm1(float x) {
  return ::expm1f(x);
}
BRASA_DEVICE_FN double vexpm1(double x) {
  return ::expm1(x);
}
BRASA_DEVICE_FN float vlog(float x) {
  return ::logf(x);
}
BRASA_DEVICE_FN double vlog(double x) {
  return ::log(x);
}
BRASA_DEVICE_FN float vlog1p(float x) {
  return ::log1pf(x);
}
BRASA_DEVICE_FN double vlog1p(double x) {
  return ::log1p(x);
}
BRASA_DEVICE_FN float vtanh(float x) {
  return ::tanhf(x);
}
BRASA_DEVICE_FN double vtanh(double x) {
  return ::tanh(x);
}
BRASA_DEVICE_FN float verf(float x) {
  return ::erff(x);
}
BRASA_DEVICE_FN double verf(double x) {
  return ::erf(x);
}

/// From exp(-|x|), so that nothing overflows and small results keep their digits.
template <class V> BRASA_DEVICE_FN V vsigmoid(V x) {
  const V e = vexp(-abs(x)), reciprocal = V(1) / (V(1) + e);
  return x < V(0) ? e * reciprocal : reciprocal;
}

/// x exp(x), of use for x <= 0. Where expf(x) is denormal, x exp(x) need not be: these few x go by
/// double.
BRASA_DEVICE_FN float vx_exp_x(float x) {
  return x < -80.0f ? (x < -110.0f ? -0.0f : float(double(x) * ::exp(double(x)))) : x * ::expf(x);
}
BRASA_DEVICE_FN double vx_exp_x(double x) {
  return x < -755.0 ? -0.0 : x * ::exp(x);
}

/// x / (1 + exp(-x)) = x exp(x) / (1 + exp(x)).
template <class V> BRASA_DEVICE_FN V vsilu(V x) {
  return (x < V(0) ? vx_exp_x(x) : x) / (V(1) + vexp(-abs(x)));
}

template <class V> BRASA_DEVICE_FN V vlogistic(V x) {
  return vsigmoid(x);
}
template <class V> BRASA_DEVICE_FN V vx_sigmoid(V x, V v) {
  return x * vsigmoid(v);
}
template <class V> BRASA_DEVICE_FN V vsilu_slope(V x) {
  const V s = vsigmoid(x), slope = s * (V(1) - s);
  return s + (slope == V(0) ? V(0) : x * slope);
}

/// x tanh(log(1 + exp(x))). With e = exp(-|x|), tanh(log(1 + exp(x))) is n / (n + 2) with n =
/// exp(x) (exp(x) + 2), scaled by exp(-2x) where x > 0, so nothing overflows.
template <class V> BRASA_DEVICE_FN V vmish(V x) {
  const V e = vexp(-abs(x)), n = x > V(0) ? V(1) + V(2) * e : e * (e + V(2));
  const V product = x > V(0) ? x * n : vx_exp_x(x) * (e + V(2));
  return product / (n + V(2) * (x > V(0) ? e * e : V(1)));
}
template <class V> BRASA_DEVICE_FN V vmish_slope(V x) {
  const V e = vexp(-abs(x)), n = x > V(0) ? V(1) + V(2) * e : e * (e + V(2));
  const V t = n / (n + V(2) * (x > V(0) ? e * e : V(1)));
  const V slope = (V(1) - t * t) * vsigmoid(x);
  return t + (slope == V(0) ? V(0) : x * slope);
}

/// log(1 + exp(x)).
template <class V> BRASA_DEVICE_FN V vsoftplus(V x) {
  return max(x, V(0)) + vlog1p(vexp(-abs(x)));
}

/// 0.5 erfc(-x / sqrt(2)). z = -x / sqrt(2) is rounded, and erfc falls by the factor exp(-2 z dz)
/// over that error dz, which is worth z^2 ULP in the tail.
BRASA_DEVICE_FN float vnormal_cdf(float x) {
  constexpr float kSqrtHalf = 0x1.6a09e6p-1f, kSqrtHalfLow = 0x1.9fcef4p-27f;
  const float z = -x * kSqrtHalf, y = 0.5f * ::erfcf(z);
  const float dz = ::fmaf(-x, kSqrtHalf, -z) - x * kSqrtHalfLow;
  return z > 1.0f && z < 40.0f ? ::fmaf(y, -2.0f * z * dz, y) : y;
}
BRASA_DEVICE_FN double vnormal_cdf(double x) {
  constexpr double kSqrtHalf = 0x1.6a09e667f3bcdp-1, kSqrtHalfLow = -0x1.bdd3413b26456p-55;
  const double z = -x * kSqrtHalf, y = 0.5 * ::erfc(z);
  const double dz = ::fma(-x, kSqrtHalf, -z) - x * kSqrtHalfLow;
  return z > 1.0 && z < 40.0 ? ::fma(y, -2.0 * z * dz, y) : y;
}

/// x Phi(x). Where Phi(x) is denormal, x Phi(x) need not be: these few x go by double.
BRASA_DEVICE_FN float vgelu(float x) {
  if (x < -12.5f) return x < -14.5f ? -0.0f : float(double(x) * vnormal_cdf(double(x)));
  return x * vnormal_cdf(x);
}
BRASA_DEVICE_FN double vgelu(double x) {
  return x < -40.0 ? -0.0 : x * vnormal_cdf(x);
}
template <class V> BRASA_DEVICE_FN V vgelu_slope(V x) {
  const V cdf = vnormal_cdf(x);  // before the density, or ptxas spills a register
  const V density = V(0.39894228040143267794) * vexp(V(-0.5) * x * x);
  return cdf + (density == V(0) ? V(0) : x * density);
}

}  // namespace brasa::cuda
