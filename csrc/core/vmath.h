// Transcendental functions on Vec<float> and Vec<double>.
//
// Written with the exactly rounded operations + - * / fma and integer arithmetic on the bits, so that
// scalar, avx2, avx512 and NEON agree bit for bit (`baseline` has no fma and rounds on its own). A
// special value costs a select, never a branch. NaN gives NaN, the sign of zero and denormals are right.
//
// The polynomials are minimax fits of our own: Remez exchange in 50-digit arithmetic on the reduced
// interval, weighted for the relative error of the result; coefficients rounded to the element type one
// after the other from the lowest, each time refitting those that are left. "fit" below is that error,
// in relative terms: 2^-24 = 6.0e-8 is half a unit in the last place (ULP) of float32.
//
// Largest error over all float32 inputs, in ULP of the exact result, is stated with each function; for
// float64 it was sampled. erf and normal_cdf of float64 go to libm lane by lane: they serve gradient
// checks, where time does not count.
#pragma once

#include "core/simd.h"

namespace brasa::cpu::BRASA_ISA {

// ------------------------------------------------------------------------------------------ pieces

template <class V> BRASA_INLINE V value(double c) { return broadcast(ElementOf<V>(c)); }
template <class V> BRASA_INLINE V infinity() { return value<V>(__builtin_inf()); }

template <class V> BRASA_INLINE V vsqrt(V x) { return sqrt(x); }

/// x limited to [low, high]; NaN passes.
template <class V> BRASA_INLINE V clamp(V x, double low, double high) {
  const V floor = value<V>(low), ceiling = value<V>(high);
  x = x < floor ? floor : x;
  return x > ceiling ? ceiling : x;
}

/// c + c1 x + c2 x^2 + ... by Horner's rule: the chains of neighbouring vectors overlap, so splitting
/// one chain gains nothing.
template <class V> BRASA_INLINE V polynomial(V, double c) { return value<V>(c); }
template <class V, class... C> BRASA_INLINE V polynomial(V x, double c, C... higher) {
  return fma(polynomial(x, higher...), x, value<V>(c));
}

template <class T> struct FloatFormat;
template <> struct FloatFormat<float> {
  static constexpr int kFractionBits = 23, kBias = 127;
  static constexpr double kRoundToInt = 0x1.8p23;  ///< adding it leaves the integer in the low bits
  static constexpr double kLn2High = 0x1.62e4p-1, kLn2Low = 1.4286068203094172321e-6;
  static constexpr double kSmallestNormal = 0x1p-126;
};
template <> struct FloatFormat<double> {
  static constexpr int kFractionBits = 52, kBias = 1023;
  static constexpr double kRoundToInt = 0x1.8p52;
  static constexpr double kLn2High = 0x1.62e42fefp-1, kLn2Low = 7.440617110012397e-11;
  static constexpr double kSmallestNormal = 0x1p-1022;
};
constexpr double kInverseLn2 = 1.4426950408889634074;

/// 2^n for integers n of the normal range.
template <class V> BRASA_INLINE V power_of_two(IntVec<ElementOf<V>> n) {
  using F = FloatFormat<ElementOf<V>>;
  return (V)((n + F::kBias) << F::kFractionBits);
}

/// m 2^n for 1/2 < m < 2, also where the result overflows or is denormal (rounded once).
template <class V> BRASA_INLINE V scale(V m, IntVec<ElementOf<V>> n) {
  const auto half = n >> 1;
  return m * power_of_two<V>(half) * power_of_two<V>(n - half);
}

/// x = n ln2 + r with |r| <= ln2 / 2 (1 + 2^-11).
template <class V> struct Reduced {
  V r;
  IntVec<ElementOf<V>> n;
};
/// `low` is added to x after the large part of n ln2 has been taken off: x may be a sum of two numbers.
template <class V> BRASA_INLINE Reduced<V> reduce_by_ln2(V x, V low = V{}) {
  using F = FloatFormat<ElementOf<V>>;
  const V shift = value<V>(F::kRoundToInt);
  const V shifted = fma(x, value<V>(kInverseLn2), shift), n = shifted - shift;
  const V r = fma(n, value<V>(-F::kLn2High), x) + low;
  return {fma(n, value<V>(-F::kLn2Low), r), bits(shifted) - bits(shift)};
}

/// exp(r) - 1 for a reduced r, as r + r^2 q(r). Fit: float 3.2e-9, double 2.6e-19.
BRASA_INLINE Vec<float> expm1_reduced(Vec<float> r) {
  const auto q = polynomial(r, 0.4999999403953552, 0.16666516661643982, 0.04166810214519501,
                            0.008369192481040955, 0.001383890165016055);
  return fma(r * r, q, r);
}
BRASA_INLINE Vec<double> expm1_reduced(Vec<double> r) {
  const auto q = polynomial(r, 0.5, 0.16666666666666688, 0.041666666666666824, 0.00833333333331389,
                            0.001388888888877778, 0.00019841269903389847, 2.4801587559935813e-05,
                            2.755722864471841e-06, 2.7557066714438085e-07, 2.511392884093646e-08,
                            2.0977954071250064e-09);
  return fma(r * r, q, r);
}

/// exp(x) for x that neither overflows nor gives a denormal: one integer addition scales. It spoils a
/// NaN: callers select around it.
template <class V> BRASA_INLINE V exp_in_range(V x) {
  const Reduced<V> z = reduce_by_ln2(x);
  return (V)(bits(expm1_reduced(z.r) + value<V>(1)) +
             (z.n << FloatFormat<ElementOf<V>>::kFractionBits));
}

/// log(1 + f) - f for sqrt(1/2) <= 1 + f <= sqrt(2). Fit: float 1.5e-9, double 2.5e-18.
BRASA_INLINE Vec<float> log1p_reduced_tail(Vec<float> f) {
  const auto p = polynomial(f, 0.3333331346511841, -0.25000160932540894, 0.20002217590808868,
                            -0.16659680008888245, 0.1420997679233551, -0.12544754147529602,
                            0.1210092157125473, -0.1094091534614563, 0.053847745060920715);
  return f * f * fma(f, p, value<Vec<float>>(-0.5));
}
/// By s = f / (2 + f): log(1 + f) = 2 atanh(s) = 2 s + s R(s^2) = f - s (f - R).
BRASA_INLINE Vec<double> log1p_reduced_tail(Vec<double> f) {
  const auto s = f / (f + value<Vec<double>>(2)), z = s * s;
  const auto R = z * polynomial(z, 0.6666666666666735, 0.3999999999940875, 0.2857142874391049,
                                0.22222198398975826, 0.18183574215550144, 0.1531377787957395,
                                0.14798861687704107);
  const auto half_square = value<Vec<double>>(0.5) * f * f;
  return s * (half_square + R) - half_square;
}

/// log(2^n (1 + f)): n ln2 + f with its rounding error kept, and the small rest added last.
template <class V> BRASA_INLINE V log_from_parts(V n, V f) {
  using F = FloatFormat<ElementOf<V>>;
  const V high = value<V>(F::kLn2High), large = fma(n, high, f);
  const V lost = f - fma(n, -high, large);
  return large + (log1p_reduced_tail(f) + fma(n, value<V>(F::kLn2Low), lost));
}

/// x = 2^n m with sqrt(1/2) <= m < sqrt(2), for normal positive x.
template <class V> BRASA_INLINE IntVec<ElementOf<V>> exponent_around_one(V x) {
  constexpr double kSqrtHalf = 0.70710678118654752440;
  return (bits(x) - bits(value<V>(kSqrtHalf))) >> FloatFormat<ElementOf<V>>::kFractionBits;
}

// --------------------------------------------------------------------------------- exp and logarithm

template <class T> struct ExpLimits;  ///< beyond them exp(x) is 0 or infinity
template <> struct ExpLimits<float> { static constexpr double kLow = -104, kHigh = 89; };
template <> struct ExpLimits<double> { static constexpr double kLow = -746, kHigh = 710; };

/// exp(x).
template <class V> BRASA_INLINE V vexp(V x) {
  using Limits = ExpLimits<ElementOf<V>>;
  const Reduced<V> z = reduce_by_ln2(clamp(x, Limits::kLow, Limits::kHigh));
  return scale(expm1_reduced(z.r) + value<V>(1), z.n);
}

/// exp(x) - 1 = 2^n p + (2^n - 1) with p = exp(r) - 1, halved in between so that 2^n cannot overflow.
template <class V> BRASA_INLINE V vexpm1(V x) {
  constexpr double kAllOfMinusOne = -40;  // exp(-40) < 2^-54
  const Reduced<V> z = reduce_by_ln2(clamp(x, kAllOfMinusOne, ExpLimits<ElementOf<V>>::kHigh));
  const V p = expm1_reduced(z.r), half_power = power_of_two<V>(z.n - 1);
  const V shifted = fma(half_power, p, half_power - value<V>(0.5));
  return copysign(z.n == 0 ? p : shifted + shifted, x);
}

/// log(x): NaN below 0, -infinity at 0.
template <class V> BRASA_INLINE V vlog(V x) {
  using F = FloatFormat<ElementOf<V>>;
  constexpr double kUp = 2.0 * (1ull << F::kFractionBits);
  const auto denormal = x < value<V>(F::kSmallestNormal);
  const V normal = denormal ? x * value<V>(kUp) : x;
  const auto n = exponent_around_one(normal);
  const V m = (V)(bits(normal) - (n << F::kFractionBits));
  const V exponent = __builtin_convertvector(n, V) -
                     (denormal ? value<V>(F::kFractionBits + 1) : V{});
  V y = log_from_parts(exponent, m - value<V>(1));
  y = x < infinity<V>() ? y : x;  // infinity and NaN
  y = x == V{} ? -infinity<V>() : y;
  return x < V{} ? value<V>(__builtin_nan("")) : y;
}

/// log(1 + x). 2^n is taken from the rounded 1 + x; then f = 2^-n (1 + x) - 1 is formed from x itself.
template <class V> BRASA_INLINE V vlog1p(V x) {
  using F = FloatFormat<ElementOf<V>>;
  const V one = value<V>(1), u = one + x;
  const auto n = exponent_around_one(u);
  const V down = power_of_two<V>(-n), m = (V)(bits(u) - (n << F::kFractionBits));
  const auto one_is_lost = x > value<V>(4.0 * (1ull << F::kFractionBits));
  const V f = one_is_lost ? m - one : fma(x, down, down - one);
  V y = log_from_parts(__builtin_convertvector(n, V), f);
  y = x < infinity<V>() ? y : x;
  y = x == -one ? -infinity<V>() : y;
  y = x < -one ? value<V>(__builtin_nan("")) : y;
  return copysign(y, x);
}

// --------------------------------------------------------------------------------- sigmoid and tanh

/// 1 / (1 + exp(-x)); from exp(-|x|), so that nothing overflows and small results keep their digits.
template <class V> BRASA_INLINE V vsigmoid(V x) {
  const V e = vexp(-abs(x)), reciprocal = value<V>(1) / (value<V>(1) + e);
  return x < V{} ? e * reciprocal : reciprocal;
}

/// tanh(x): x + x^3 P(x^2) below 0.625 (fit 4.5e-9), 1 - 2 / (exp(2 |x|) + 1) above.
BRASA_INLINE Vec<float> vtanh(Vec<float> x) {
  using V = Vec<float>;
  constexpr double kAllOfOne = 9.5;
  const V square = x * x;
  const V p = polynomial(square, -0.3333328068256378, 0.13331405818462372, -0.05373651534318924,
                         0.02062816545367241, -0.005692290607839823);
  const V a = abs(x), limited = a > value<V>(kAllOfOne) ? value<V>(kAllOfOne) : a;
  const V large = value<V>(1) - value<V>(2) / (exp_in_range(limited + limited) + value<V>(1));
  return a >= value<V>(0.625) ? copysign(large, x) : fma(x * square, p, x);
}
/// tanh(x) = d / (d + 2) with d = exp(2 |x|) - 1.
BRASA_INLINE Vec<double> vtanh(Vec<double> x) {
  using V = Vec<double>;
  constexpr double kAllOfOne = 20;
  const V a = abs(x), limited = a > value<V>(kAllOfOne) ? value<V>(kAllOfOne) : a;
  const V d = vexpm1(limited + limited);
  return copysign(d / (d + value<V>(2)), x);
}

// -------------------------------------------------------------------------- erf, normal distribution

/// erf(x): x + x P(x^2) below 0.921875 (fit 1.6e-8), 1 - exp(-|x| R(|x|)) above (fit 1.4e-9).
BRASA_INLINE Vec<float> verf(Vec<float> x) {
  using V = Vec<float>;
  constexpr double kAllOfOne = 4;
  const V square = x * x, a = abs(x);
  const V p = polynomial(square, 0.12837915122509003, -0.37612494826316833, 0.11281804740428925,
                         -0.02676580473780632, 0.004991641268134117, -0.0005981807480566204);
  const V limited = a > value<V>(kAllOfOne) ? value<V>(kAllOfOne) : a;
  const V rate = polynomial(limited, 1.1286802291870117, 0.6350095868110657, 0.10649473965167999,
                            -0.024006446823477745, 0.0037695695646107197, -0.00035717542050406337,
                            1.5003445696493145e-05);
  const V large = value<V>(1) - exp_in_range(-limited * rate);
  return a >= value<V>(0.921875) ? copysign(large, x) : fma(x, p, x);
}
BRASA_INLINE Vec<double> verf(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_erf(x[i]);
  return x;
}

/// The normal distribution function, 0.5 erfc(-x / sqrt(2)). Its tail at -a is exp(-a^2 / 2) g(a) with
/// a smooth g = P / Q (fit 5.8e-9). a^2 is formed without error, or the tail would lose a^2 ULP: the 12
/// upper bits of a have an exact square, and the rest of it enters after the reduction.
BRASA_INLINE Vec<float> vnormal_cdf(Vec<float> x) {
  using V = Vec<float>;
  constexpr double kTailIsZero = 14.5;
  V a = abs(x);
  a = a > value<V>(kTailIsZero) ? value<V>(kTailIsZero) : a;
  const V upper = (V)(bits(a) & ~0xfff);
  const V half_square = value<V>(-0.5) * upper * upper;
  const V rest = value<V>(-0.5) * (a - upper) * (a + upper);
  const Reduced<V> z = reduce_by_ln2(half_square, rest);
  const V p = polynomial(a, 0.5000000028972168, 0.43808934071780725, 0.18308255233627632,
                         0.040581710908423926, 0.004108638904943835);
  const V q = polynomial(a, 1.0, 1.6740636567836733, 1.2018699183864434, 0.46906774130930345,
                         0.10172978090222817, 0.010298708984355866);
  const V tail = scale((expm1_reduced(z.r) + value<V>(1)) * (p / q), z.n);
  return x < V{} ? tail : value<V>(1) - tail;
}
/// z = -x / sqrt(2) is rounded, and erfc falls by the factor exp(-2 z dz) over that error dz.
BRASA_INLINE Vec<double> vnormal_cdf(Vec<double> x) {
  using V = Vec<double>;
  constexpr double kSqrtHalf = 0x1.6a09e667f3bcdp-1, kSqrtHalfLow = -0x1.bdd3413b26456p-55;
  const V z = -x * value<V>(kSqrtHalf);
  const V dz = fma(-x, value<V>(kSqrtHalf), -z) - x * value<V>(kSqrtHalfLow);
  V y;
  for (int i = 0; i < kLanes<double>; ++i) y[i] = 0.5 * __builtin_erfc(z[i]);
  return ((z > value<V>(1)) & (z < value<V>(40))) ? fma(y, value<V>(-2) * z * dz, y) : y;
}

}  // namespace brasa::cpu::BRASA_ISA
