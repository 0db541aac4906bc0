// Transcendental functions on Vec<float> and Vec<double>.
//
// Written with the exactly rounded operations + - * / fma and integer arithmetic on the bits, so
// that scalar, avx2, avx512 and NEON agree bit for bit (`baseline` has no fma and rounds on its
// own). A special value costs a select, never a branch. NaN gives NaN, the sign of zero and
// denormals are right.
//
// The polynomials are minimax fits of our own: Remez exchange in 50-digit arithmetic (for float:
// reweighted least squares) on the reduced interval, weighted for the relative error of the result;
// coefficients rounded to the element type one after the other from the lowest, each time refitting
// those that are left. "Fit" below is that error, in relative terms: 2^-24 = 6.0e-8 is half a unit
// in the last place (ULP) of float.
//
// Largest error found, in ULP of the exact result. float: every bit pattern for exp, tanh and log
// around 1, every third or seventh for the others; double: 3 million samples. Speed of float in
// 10^9 elements per second, one Zen 4 core at 3.7 GHz, AVX-512, data in L1 (on a busy machine):
//
//              float  double  speed                 float  double  speed
//   exp         0.88    0.93    3.7     tanh         1.97    1.92    2.9
//   expm1       1.50    1.43    3.2     sigmoid      2.40    2.28    3.1
//   log         0.92    0.86    2.4     erf          1.10    1.16    1.9
//   log1p       1.52    1.36    2.3
//
// erf of double goes to libm lane by lane: it serves gradient checks, where time does not count.
#pragma once

#include "core/simd.h"

namespace brasa::cpu::BRASA_ISA {

// ------------------------------------------------------------------------------------------ pieces

template <class V> BRASA_INLINE V value(double c) {
  return broadcast(ElementOf<V>(c));
}
template <class V> BRASA_INLINE V infinity() {
  return value<V>(__builtin_inf());
}

template <class V> BRASA_INLINE V vsqrt(V x) {
  return sqrt(x);
}

/// The larger of x and `low`, the smaller of x and `high`; NaN passes. x86's own maximum and
/// minimum return the second operand when one is a NaN, which halves the instructions of compare
/// and select.
template <class V> BRASA_INLINE V not_below(V x, double low) {
  const V floor = value<V>(low);
#if defined(__AVX512F__) && !defined(BRASA_SCALAR)
  constexpr __mmask16 kAll = -1;  // GCC 12 warns of an uninitialised value in the unmasked forms
  if constexpr (sizeof(ElementOf<V>) == 4)
    return (V)_mm512_maskz_max_ps(kAll, (__m512)floor, (__m512)x);
  else
    return (V)_mm512_maskz_max_pd(__mmask8(kAll), (__m512d)floor, (__m512d)x);
#elif defined(__AVX2__) && !defined(BRASA_SCALAR)
  if constexpr (sizeof(ElementOf<V>) == 4)
    return (V)_mm256_max_ps((__m256)floor, (__m256)x);
  else
    return (V)_mm256_max_pd((__m256d)floor, (__m256d)x);
#else
  return x < floor ? floor : x;
#endif
}
template <class V> BRASA_INLINE V not_above(V x, double high) {
  const V ceiling = value<V>(high);
#if defined(__AVX512F__) && !defined(BRASA_SCALAR)
  constexpr __mmask16 kAll = -1;
  if constexpr (sizeof(ElementOf<V>) == 4)
    return (V)_mm512_maskz_min_ps(kAll, (__m512)ceiling, (__m512)x);
  else
    return (V)_mm512_maskz_min_pd(__mmask8(kAll), (__m512d)ceiling, (__m512d)x);
#elif defined(__AVX2__) && !defined(BRASA_SCALAR)
  if constexpr (sizeof(ElementOf<V>) == 4)
    return (V)_mm256_min_ps((__m256)ceiling, (__m256)x);
  else
    return (V)_mm256_min_pd((__m256d)ceiling, (__m256d)x);
#else
  return x > ceiling ? ceiling : x;
#endif
}
template <class V> BRASA_INLINE V clamp(V x, double low, double high) {
  return not_above(not_below(x, low), high);
}

/// c + c1 x + c2 x^2 + ... by Horner's rule: the chains of neighbouring vectors overlap, so
/// splitting one chain gains nothing.
template <class V> BRASA_INLINE V polynomial(V, double c) {
  return value<V>(c);
}
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

/// x = n ln2 + r, |r| <= ln2 / 2 (1 + 2^-11), where r is the exact sum of `high` and `low`, |low|
/// << |high|. `shifted` is n + kRoundToInt.
template <class V> struct Reduced {
  V high, low, n, shifted;
  IntVec<ElementOf<V>> integer() const {
    return bits(shifted) - bits(value<V>(FloatFormat<ElementOf<V>>::kRoundToInt));
  }
};
template <class V> BRASA_INLINE Reduced<V> reduce_by_ln2(V x) {
  using F = FloatFormat<ElementOf<V>>;
  const V shift = value<V>(F::kRoundToInt);
  const V shifted = fma(x, value<V>(kInverseLn2), shift), n = shifted - shift;
  return {fma(n, value<V>(-F::kLn2High), x), n * value<V>(-F::kLn2Low), n, shifted};
}

/// 2^n for integers n of the normal range.
template <class V> BRASA_INLINE V power_of_two(IntVec<ElementOf<V>> n) {
  using F = FloatFormat<ElementOf<V>>;
  return (V)((n + F::kBias) << F::kFractionBits);
}

/// m 2^n, rounded once where it is denormal, infinite where it is too large. Without an instruction
/// for it two factors do: |m| and n must be such that m 2^(n / 2) is a normal number.
template <class V> BRASA_INLINE V scale(V m, const Reduced<V>& z) {
#if defined(__AVX512F__) && !defined(BRASA_SCALAR)
  constexpr __mmask16 kAll = -1;
  if constexpr (sizeof(ElementOf<V>) == 4)
    return (V)_mm512_maskz_scalef_ps(kAll, (__m512)m, (__m512)z.n);
  else
    return (V)_mm512_maskz_scalef_pd(__mmask8(kAll), (__m512d)m, (__m512d)z.n);
#else
  const auto n = z.integer(), half = n >> 1;
  return m * power_of_two<V>(half) * power_of_two<V>(n - half);
#endif
}

/// (exp(r) - 1 - r) / r^2. Fit, of exp(r): float 3.1e-9, double 2.6e-19.
BRASA_INLINE Vec<float> exp_tail(Vec<float> r) {
  return polynomial(r, 0.4999999403953552, 0.16666516661643982, 0.04166810214519501,
                    0.008369192481040955, 0.001383890165016055);
}
BRASA_INLINE Vec<double> exp_tail(Vec<double> r) {
  return polynomial(r, 0.5, 0.16666666666666688, 0.041666666666666824, 0.00833333333331389,
                    0.001388888888877778, 0.00019841269903389847, 2.4801587559935813e-05,
                    2.755722864471841e-06, 2.7557066714438085e-07, 2.511392884093646e-08,
                    2.0977954071250064e-09);
}
/// exp(r) - 1 for a reduced r. `low` joins the small terms, so that r is not rounded before it
/// counts: exp(x) of float would miss its 1 ULP by 0.01.
template <class V> BRASA_INLINE V expm1_reduced(const Reduced<V>& z) {
  const V r = z.high + z.low;
  return z.high + fma(r * r, exp_tail(r), z.low);
}

/// exp(x) where it is a normal number: the exponent is added in, n being the low bits of `shifted`.
/// A NaN is spoilt: callers select around it.
template <class V> BRASA_INLINE V exp_in_range(V x) {
  const Reduced<V> z = reduce_by_ln2(x);
  return (V)(bits(expm1_reduced(z) + value<V>(1)) +
             (bits(z.shifted) << FloatFormat<ElementOf<V>>::kFractionBits));
}

/// log(1 + f) - f for sqrt(1/2) <= 1 + f <= sqrt(2). Fit: float 5.9e-9, double 2.5e-18.
BRASA_INLINE Vec<float> log1p_reduced_tail(Vec<float> f) {
  const auto p = polynomial(f, 0.3333333134651184, -0.250008225440979, 0.20001250505447388,
                            -0.1662331521511078, 0.14201271533966064, -0.13160187005996704,
                            0.12764781713485718, -0.07638228684663773);
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

// ------------------------------------------------------------------------------- exp and logarithm

template <class T>
struct ExpLimits;  ///< beyond them exp(x), and |x| exp(x) below, is 0 or infinity
template <> struct ExpLimits<float> {
  static constexpr double kLow = -110, kHigh = 89;
};
template <> struct ExpLimits<double> {
  static constexpr double kLow = -755, kHigh = 710;
};

template <class V> BRASA_INLINE V limit_to_exp_range(V x) {
  using Limits = ExpLimits<ElementOf<V>>;
  return clamp(x, Limits::kLow, Limits::kHigh);
}

/// exp(x).
template <class V> BRASA_INLINE V vexp(V x) {
  const Reduced<V> z = reduce_by_ln2(limit_to_exp_range(x));
  return scale(expm1_reduced(z) + value<V>(1), z);
}

/// The same for x <= 0, which needs one limit only.
template <class V> BRASA_INLINE V vexp_below_zero(V x) {
  const Reduced<V> z = reduce_by_ln2(not_below(x, ExpLimits<ElementOf<V>>::kLow));
  return scale(expm1_reduced(z) + value<V>(1), z);
}

/// x exp(x), rounded once: where exp(x) is denormal, x exp(x) need not be. Of use for x <= 0.
template <class V> BRASA_INLINE V vx_exp_x(V x) {
  const V limited = limit_to_exp_range(x);
  const Reduced<V> z = reduce_by_ln2(limited);
  return scale((expm1_reduced(z) + value<V>(1)) * limited, z);
}

/// exp(x) - 1 = 2^n p + (2^n - 1) with p = exp(r) - 1, halved in between so that 2^n cannot
/// overflow.
template <class V> BRASA_INLINE V vexpm1(V x) {
  constexpr double kAllOfMinusOne = -40;  // exp(-40) < 2^-54
  const Reduced<V> z = reduce_by_ln2(clamp(x, kAllOfMinusOne, ExpLimits<ElementOf<V>>::kHigh));
  const V p = expm1_reduced(z), half_power = power_of_two<V>(z.integer() - 1);
  const V shifted = fma(half_power, p, half_power - value<V>(0.5));
  return copysign(z.n == V{} ? p : shifted + shifted, x);
}

/// log(x): NaN below 0, -infinity at 0.
template <class V> BRASA_INLINE V vlog(V x) {
  using F = FloatFormat<ElementOf<V>>;
  constexpr double kUp = 2.0 * (1ull << F::kFractionBits);
  const auto denormal = x < value<V>(F::kSmallestNormal);
  const V normal = denormal ? x * value<V>(kUp) : x;
  const auto n = exponent_around_one(normal);
  const V m = (V)(bits(normal) - (n << F::kFractionBits));
  const V exponent =
      __builtin_convertvector(n, V) - (denormal ? value<V>(F::kFractionBits + 1) : V{});
  V y = log_from_parts(exponent, m - value<V>(1));
  y = x < infinity<V>() ? y : x;  // infinity and NaN
  y = x == V{} ? -infinity<V>() : y;
  return x < V{} ? value<V>(__builtin_nan("")) : y;
}

/// log(1 + x). 2^n is taken from the rounded 1 + x; then f = 2^-n (1 + x) - 1 is formed from x
/// itself.
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

// -------------------------------------------------------------------------------- sigmoid and tanh

/// 1 / (1 + exp(-x)); from exp(-|x|), so that nothing overflows and small results keep their
/// digits.
struct SigmoidSteps {
  template <class V> static BRASA_INLINE_MEMBER Reduced<V> reduce(V x) {
    return reduce_by_ln2(not_below(-abs(x), ExpLimits<ElementOf<V>>::kLow));
  }
  /// With p = exp(r) - 1 of the reduced argument.
  template <class V> static BRASA_INLINE_MEMBER V finish(V x, const Reduced<V>& z, V p) {
    const V one = value<V>(1), e = scale(p + one, z);
    return (x < V{} ? e : one) / (one + e);
  }
};

/// tanh(x) = -d / (d + 2) with d = exp(-2 |x|) - 1 = s p + (s - 1), s = 2^n: d and d + 2 are each
/// one fma from p, so that neither inherits the other's rounding. (An odd polynomial below 0.625
/// with 1 - 2 / (exp(2 |x|) + 1) above it reaches 1.3 ULP, at twice the instructions.)
struct TanhSteps {
  template <class V> static BRASA_INLINE_MEMBER Reduced<V> reduce(V x) {
    constexpr double kAllOfOne = sizeof(ElementOf<V>) == 4 ? 9.5 : 20;
    const V a = not_above(abs(x), kAllOfOne);
    return reduce_by_ln2(-(a + a));
  }
  template <class V> static BRASA_INLINE_MEMBER V finish(V x, const Reduced<V>& z, V p) {
    const V s = power_of_two<V>(z.integer()), one = value<V>(1);
    return copysign(fma(s, p, s - one) / fma(s, p, s + one), x);
  }
};

/// The functions, in turn and kTimes over, of the vectors x[i]: every step for all of them before
/// the next. The bits are those of the functions one by one, but their chains overlap more: some
/// two of them fill a core's scheduler (an LSTM's five take 71 cycles one by one on Zen 5, 48 by
/// threes and fours).
template <int kTimes, class... F, class V> BRASA_INLINE void squash(V* x) {
  constexpr int kCount = kTimes * int(sizeof...(F));
  Reduced<V> z[kCount];
  V p[kCount];
#pragma GCC unroll 8
  for (int i = 0; i < kCount;) ((z[i] = F::reduce(x[i]), ++i), ...);
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) p[i] = expm1_reduced(z[i]);
#pragma GCC unroll 8
  for (int i = 0; i < kCount;) ((x[i] = F::finish(x[i], z[i], p[i]), ++i), ...);
}

template <class V> BRASA_INLINE V vsigmoid(V x) {
  const Reduced<V> z = SigmoidSteps::reduce(x);
  return SigmoidSteps::finish(x, z, expm1_reduced(z));
}
template <class V> BRASA_INLINE V vtanh(V x) {
  const Reduced<V> z = TanhSteps::reduce(x);
  return TanhSteps::finish(x, z, expm1_reduced(z));
}

// ------------------------------------------------------------------------------------------- erf

/// erf(x): x + x P(x^2) below 0.921875 (fit 1.6e-8), 1 - exp(-|x| R(|x|)) above (fit 3.0e-9).
BRASA_INLINE Vec<float> verf(Vec<float> x) {
  using V = Vec<float>;
  constexpr double kAllOfOne = 4;
  const V square = x * x, a = abs(x);
  const V p = polynomial(square, 0.12837915122509003, -0.37612494826316833, 0.11281804740428925,
                         -0.02676580473780632, 0.004991641268134117, -0.0005981807480566204);
  const V limited = a > value<V>(kAllOfOne) ? value<V>(kAllOfOne) : a;
  const V rate = polynomial(limited, 1.1285172700881958, 0.6357085108757019, 0.10527471452951431,
                            -0.02289818599820137, 0.003217509714886546, -0.00021429359912872314);
  const V large = value<V>(1) - exp_in_range(-limited * rate);
  return a >= value<V>(0.921875) ? copysign(large, x) : fma(x, p, x);
}
BRASA_INLINE Vec<double> verf(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_erf(x[i]);
  return x;
}

}  // namespace brasa::cpu::BRASA_ISA
