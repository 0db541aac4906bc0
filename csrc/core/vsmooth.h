// The smooth activations: sigmoid-weighted and softplus-like functions of Vec<float> and
// Vec<double>.
//
// Memory should be what limits them, so the float forms are made of few instructions: some 20
// multiply-adds per vector are all that a core has time for at 90 % of the copy bandwidth. They use
//   - exp(x) = 2^n 2^(j/16) exp(r), the sixteen powers from a table: a cubic does for |r| <= ln2 /
//   32,
//     where vexp needs six steps for its 1 ULP;
//   - one exponential and one division each: numerator and denominator are multiplied out;
//   - q and n of exp(x) = q 2^n apart, 2^n being the last factor: x exp(x) may be a normal number
//     where exp(x) is not.
// Double keeps the textbook forms: it serves gradient checks, where time does not count.
//
// Largest error found, in ULP of the exact result, over every float where it is largest; speed of
// float as in vmath.h:
//
//              silu    mish    softplus  gelu    logistic   their slopes
//   float      3.67    4.91    2.24      3.51    3.0
//   double     2.86       -    1.62         -    2.3
//   speed      4.5     3.9     3.0       2.6                3.8 3.1 4.1 2.6 (silu mish softplus
//   gelu)
#pragma once

#include "core/vmath.h"

namespace brasa::cpu::BRASA_ISA {

// ------------------------------------------------------------------------------ exp in sixteenths

/// table[index % 16], lane by lane.
BRASA_INLINE Vec<float> lookup16(const float* table, IntVec<float> index) {
#if defined(__AVX512F__) && !defined(BRASA_SCALAR)
  return (Vec<float>)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)index, _mm512_load_ps(table));
#elif defined(__AVX2__) && !defined(BRASA_SCALAR)
  const __m256i upper = _mm256_slli_epi32((__m256i)index, 28);  // its sign bit chooses the half
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), (__m256i)index);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), (__m256i)index);
  return (Vec<float>)_mm256_blendv_ps(low, high, (__m256)upper);
#else
  Vec<float> y;
  for (int i = 0; i < kLanes<float>; ++i) y[i] = table[index[i] & 15];
  return y;
#endif
}

/// A function of x >= 0 by polynomials on 16 intervals, in x less the interval's left end. The four
/// bits of x + 1 from kUnusedBits on name the interval; table[k] holds the coefficients of order k.
template <int kUnusedBits, int kOrders>
BRASA_INLINE Vec<float> piecewise(const float (&table)[kOrders][16], Vec<float> x) {
  using V = Vec<float>;
  const V one = value<V>(1);
  const IntVec<float> interval = bits(x + one) >> kUnusedBits;
  const V distance = x - ((V)(interval << kUnusedBits) - one);
  V y = lookup16(table[kOrders - 1], interval);
#pragma GCC unroll 8
  for (int k = kOrders - 2; k >= 0; --k) y = fma(y, distance, lookup16(table[k], interval));
  return y;
}

// clang-format off
/// 2^(j / 16).
alignas(64) static constexpr float kPowersOfTwo[16] = {
    1.0f, 1.0442737340927124f, 1.0905077457427979f, 1.1387885808944702f,
    1.1892070770263672f, 1.2418577671051025f, 1.2968395948410034f, 1.3542555570602417f,
    1.4142135381698608f, 1.4768261909484863f, 1.5422108173370361f, 1.610490322113037f,
    1.6817928552627563f, 1.7562521696090698f, 1.8340080976486206f, 1.9152065515518188f};
// clang-format on

/// exp(x) = q 2^floor(n), 1 - 2^-5 < q < 2, n a multiple of 1/16. `shifted` is n + kShift.
struct Power {
  static constexpr double kShift = 0x1.8p19;  ///< adding it leaves the sixteenths in the low bits
  Vec<float> q, n, shifted;

  /// The part of n below 1 and ln2, n times which is exact for n < 256, and its rest.
  static constexpr double kLn2High = 0x1.62ep-1, kLn2Low = 0x1.0bfbe8e7bcd5ep-15;

  /// From r, where exp(x - n ln2) is 1 + c1 r + c2 r^2 + c3 r^3 (fit 1.6e-9).
  BRASA_INLINE Power from(Vec<float> r, Vec<float> n, Vec<float> shifted, double c1, double c2,
                          double c3) {
    const Vec<float> power = lookup16(kPowersOfTwo, bits(shifted));
    return {fma(power * r, polynomial(r, c1, c2, c3), power), n, shifted};
  }
  /// m 2^floor(n), rounded once where it is denormal; |m| 2^(n / 2) must be a normal number.
  __attribute__((always_inline)) Vec<float> scaled(Vec<float> m) const {
#if defined(__AVX512F__) && !defined(BRASA_SCALAR)
    return (Vec<float>)_mm512_maskz_scalef_ps(0xffff, (__m512)m, (__m512)n);
#else
    const auto whole = (bits(shifted) - bits(value<Vec<float>>(kShift))) >> 4, half = whole >> 1;
    return m * power_of_two<Vec<float>>(half) * power_of_two<Vec<float>>(whole - half);
#endif
  }
};

/// exp(x) for -110 <= x <= 88.
BRASA_INLINE Power exp_parts(Vec<float> x) {
  using V = Vec<float>;
  const V shift = value<V>(Power::kShift);
  const V shifted = fma(x, value<V>(kInverseLn2), shift), n = shifted - shift;
  const V r = fma(n, value<V>(-Power::kLn2Low), fma(n, value<V>(-Power::kLn2High), x));
  return Power::from(r, n, shifted, 1, 0.5000162124633789, 0.166667178273201);
}

/// exp(-a^2 / 2) for 0 <= a <= 14.5. The fma takes a^2 without error, or the tail would lose a^2
/// ULP; `baseline` has none, so there the 12 upper bits of a, whose square is exact, go first.
BRASA_INLINE Power exp_minus_half_square(Vec<float> a) {
  using V = Vec<float>;
  const V shift = value<V>(Power::kShift), t = a * value<V>(-0.5 * kInverseLn2);
  const V shifted = fma(t, a, shift), n = shifted - shift;
  const V twice = n * value<V>(-2 * Power::kLn2High);
#if defined(__x86_64__) && !defined(__FMA__) && !defined(BRASA_SCALAR)
  const V upper = (V)(bits(a) & ~0xfff);
  const V difference = (twice - upper * upper) - (a - upper) * (a + upper);
#else
  const V difference = fma(-a, a, twice);
#endif
  const V r = fma(n, value<V>(-2 * Power::kLn2Low), difference);
  return Power::from(r, n, shifted, 0.5, 0.12500405311584473, 0.020833397284150124);
}

// --------------------------------------------------------------------- silu, mish, softplus, gelu

/// Below, x exp(x) is 0.
constexpr double kLowestExponent = -110;

/// x / (1 + exp(-v)) = x exp(v) / (1 + exp(v)), where x is v or of its sign and |v| is at least
/// min(|x|, 110). From kAllOfOne on it is x; q is then a little below 1, so that x q is finite.
BRASA_INLINE Vec<float> vx_sigmoid(Vec<float> x, Vec<float> v) {
  using V = Vec<float>;
  constexpr double kAllOfOne = 22.18;
  const Power e = exp_parts(clamp(v, kLowestExponent, kAllOfOne));
  const V limited = not_below(x, kLowestExponent);
  return e.scaled(limited * e.q / (value<V>(1) + e.scaled(e.q)));
}
template <class V> BRASA_INLINE V vx_sigmoid(V x, V v) {
  return x * vsigmoid(v);
}

/// 1 / (1 + exp(-x)) in fewer instructions than vsigmoid, within 4 ULP: for slopes.
BRASA_INLINE Vec<float> vlogistic(Vec<float> x) {
  using V = Vec<float>;
  constexpr double kAllOfOne = 30;
  const Power power = exp_parts(clamp(x, kLowestExponent, kAllOfOne));
  const V e = power.scaled(power.q);
  return e / (value<V>(1) + e);
}
template <class V> BRASA_INLINE V vlogistic(V x) {
  return vsigmoid(x);
}

/// x / (1 + exp(-x)).
BRASA_INLINE Vec<float> vsilu(Vec<float> x) {
  return vx_sigmoid(x, x);
}
template <class V> BRASA_INLINE V vsilu(V x) {
  const V e = vexp(-abs(x));
  return (x < V{} ? vx_exp_x(x) : x) / (value<V>(1) + e);
}

/// Its slope s (1 + x (1 - s)), s = e / (1 + e), e = exp(x).
BRASA_INLINE Vec<float> vsilu_slope(Vec<float> x) {
  using V = Vec<float>;
  constexpr double kAllOfOne = 30;
  const V limited = clamp(x, kLowestExponent, kAllOfOne), one = value<V>(1);
  const Power power = exp_parts(limited);
  const V e = power.scaled(power.q), rest = one / (one + e);
  return e * rest * fma(limited, rest, one);
}
template <class V> BRASA_INLINE V vsilu_slope(V x) {
  const V s = vsigmoid(x), slope = s * (value<V>(1) - s);
  return s + select(slope == V{}, V{}, x * slope);
}

/// x tanh(log(1 + e)) = x e (e + 2) / (e (e + 2) + 2), e = exp(x); x itself from kAllOfOne on.
BRASA_INLINE Vec<float> vmish(Vec<float> x) {
  using V = Vec<float>;
  constexpr double kAllOfOne = 10;
  const V limited = not_below(x, kLowestExponent), two = value<V>(2);
  const Power power = exp_parts(not_above(limited, kAllOfOne));
  const V e = power.scaled(power.q), more = e + two;
  return power.scaled(power.q * more / fma(e, more, two) * limited);
}
/// With e = exp(-|x|), tanh(log(1 + exp(x))) is n / (n + 2) with n = exp(x) (exp(x) + 2), scaled by
/// exp(-2x) where x > 0, so nothing overflows.
template <class V> BRASA_INLINE V vmish(V x) {
  const V e = vexp(-abs(x)), one = value<V>(1), two = value<V>(2);
  const V n = select(x > V{}, one + two * e, e * (e + two));
  const V product = select(x > V{}, x * n, vx_exp_x(x) * (e + two));
  return product / (n + two * select(x > V{}, e * e, one));
}

/// Its slope e (4 (x + 1) + e (4x + 6) + e^2 (4 + e)) / (e (e + 2) + 2)^2.
BRASA_INLINE Vec<float> vmish_slope(Vec<float> x) {
  using V = Vec<float>;
  constexpr double kAllOfOne = 20;
  const V limited = clamp(x, kLowestExponent, kAllOfOne), two = value<V>(2), four = value<V>(4);
  const Power power = exp_parts(limited);
  const V e = power.scaled(power.q), d = fma(e, e + two, two);
  const V linear = fma(e, e + four, fma(four, limited, value<V>(6)));
  return e * fma(e, linear, fma(four, limited, four)) / (d * d);
}
template <class V> BRASA_INLINE V vmish_slope(V x) {
  const V e = vexp(-abs(x)), one = value<V>(1), two = value<V>(2);
  const V n = select(x > V{}, one + two * e, e * (e + two));
  const V t = n / (n + two * select(x > V{}, e * e, one));
  const V slope = (one - t * t) * vsigmoid(x);
  return t + select(slope == V{}, V{}, x * slope);
}

/// log(1 + exp(x)) = max(x, 0) + log(1 + e) with e = exp(-|x|) in [0, 1]. With s = e / (2 + e),
/// log(1 + e) = 2 atanh(s) = 2 s + s^3 P(s^2) = e - s (e - s^2 P(s^2)) (fit 4.5e-9). (e P(e) takes
/// three steps more in place of the division: 5 % faster, at 3.0 ULP. Eight intervals are slower.)
BRASA_INLINE Vec<float> vsoftplus(Vec<float> x) {
  using V = Vec<float>;
  const Power power = exp_parts(-not_above(abs(x), -kLowestExponent));
  const V e = power.scaled(power.q), s = e / (value<V>(2) + e), square = s * s;
  const V p = polynomial(square, 0.666664183139801, 0.40021437406539917, 0.2800302803516388,
                         0.280067503452301);
  return not_below(x, 0) + fma(-s, fma(-square, p, e), e);
}
template <class V> BRASA_INLINE V vsoftplus(V x) {
  constexpr double kSqrt2MinusOne = 0.41421356237309504880;
  const V e = vexp(-abs(x)), one = value<V>(1);
  const auto above = e > value<V>(kSqrt2MinusOne);
  const V n = above ? one : V{}, f = above ? value<V>(0.5) * (e - one) : e;
  return max(x, V{}) + log_from_parts(n, f);
}

/// a Phi(-a) exp(a^2 / 2), Phi the normal distribution function, and its slope (Phi(-a) - a phi(a))
/// exp(a^2 / 2), phi the density, for 0 <= a <= 14.5: quintics (fit 8.7e-8, of the slope 3.7e-8) on
/// 16 intervals, four to each octave of a + 1.
alignas(64) static constexpr float kNormalTail[6][16] = {
    {0.2615782916545868f, 0.3086709976196289f, 0.33620399236679077f, 0.35332831740379333f,
     0.3645418584346771f, 0.37764257192611694f, 0.3845965266227722f, 0.38867589831352234f,
     0.39125439524650574f, 0.39418908953666687f, 0.39572378993034363f, 0.3966223895549774f, 0,
     0.10350802540779114f, 0.17480941116809845f, 0.22517435252666473f},
    {0.12421337515115738f, 0.07037357240915298f, 0.04262634739279747f, 0.02729751542210579f,
     0.018311701714992523f, 0.009211366064846516f, 0.005190418567508459f, 0.0031803215388208628f,
     0.0020776407327502966f, 0.001020405674353242f, 0.0005713437567465007f, 0.0003507818328216672f,
     0.4999999701976776f, 0.3401733636856079f, 0.23755359649658203f, 0.16990527510643005f},
    {-0.07522907108068466f, -0.037483204156160355f, -0.02012537606060505f, -0.011509643867611885f,
     -0.006920682266354561f, -0.002871992066502571f, -0.0013683367287740111f,
     -0.0007184692658483982f, -0.00041194423101842403f, -0.00016334219253621995f,
     -7.50853942008689e-05f, -3.937065412173979e-05f, -0.39893466234207153f, -0.252900630235672f,
     -0.16478031873703003f, -0.1100107803940773f},
    {0.03675214946269989f, 0.01635749824345112f, 0.007958739064633846f, 0.004155097063630819f,
     0.0021790105383843184f, 0.0007555950433015823f, 0.0003087536315433681f,
     0.00012881107977591455f, 6.817991379648447e-05f, 2.3868469725130126e-05f,
     8.160723155015148e-06f, 3.574273705453379e-06f, 0.2497452199459076f, 0.14876948297023773f,
     0.09166435152292252f, 0.056928906589746475f},
    {-0.014672421850264072f, -0.005953382235020399f, -0.0028064593207091093f,
     -0.001452369848266244f, -0.000551162171177566f, -0.0001612515770830214f,
     -5.8280529628973454e-05f, -8.725141015020199e-06f, -8.425800842815079e-06f,
     -3.4331956157984678e-06f, -5.479637934513448e-07f, -7.925449097001547e-08f,
     -0.13003014028072357f, -0.07290194183588028f, -0.0445709265768528f, -0.023267561569809914f},
    {0.0037218579091131687f, 0.0014215412084013224f, 0.0007385010831058025f,
     0.00043449358781799674f, 8.18276239442639e-05f, 2.0228946596034802e-05f,
     6.802914413128747e-06f, -3.4714860248641344e-06f, 5.17386581577739e-07f,
     3.514733464271558e-07f, -8.429864806203113e-09f, -4.947945342337334e-08f,
     0.048250555992126465f, 0.02518143132328987f, 0.017575647681951523f, 0.004774557426571846f}};
alignas(64) static constexpr float kNormalTailSlope[6][16] = {
    {-0.1373639851808548f, -0.39263275265693665f, -0.6297825574874878f, -0.8560243844985962f,
     -1.075312852859497f, -1.5013585090637207f, -1.9177920818328857f, -2.328874349594116f,
     -2.7367024421691895f, -3.5466816425323486f, -4.352390289306641f, -5.155740261077881f, 0.5f,
     0.31429654359817505f, 0.1501476913690567f, 0.001025751931592822f},
    {-0.5363062024116516f, -0.4892134666442871f, -0.46168071031570435f, -0.4445546567440033f,
     -0.4333445429801941f, -0.4202404320240021f, -0.41328880190849304f, -0.40920960903167725f,
     -0.40663108229637146f, -0.40369781851768494f, -0.40215834975242615f, -0.4012611508369446f,
     -0.7978843450546265f, -0.6943783164024353f, -0.6230745911598206f, -0.5727101564407349f},
    {0.06210004910826683f, 0.035182926803827286f, 0.021314142271876335f, 0.013621849939227104f,
     0.009168857708573341f, 0.004592393524944782f, 0.002601310610771179f, 0.0015979442978277802f,
     0.0010423408821225166f, 0.0005195947596803308f, 0.00027585698990151286f,
     0.00016994253383018076f, 0.24998809397220612f, 0.17013542354106903f, 0.11875924468040466f,
     0.08495041728019714f},
    {-0.024991348385810852f, -0.012453942559659481f, -0.006703539285808802f,
     -0.0036766468547284603f, -0.0023352429270744324f, -0.0009172565187327564f,
     -0.0004727253981400281f, -0.0002619058941490948f, -0.00014187372289597988f,
     -6.744172424077988e-05f, -1.1151075341331307e-05f, -2.9717757570324466e-06f,
     -0.13276441395282745f, -0.08476129174232483f, -0.05471475422382355f, -0.03663629665970802f},
    {0.00877926405519247f, 0.003914107568562031f, 0.0019344110041856766f, 0.0006419174605980515f,
     0.000558542727958411f, 0.0001377402077196166f, 9.479881555307657e-05f, 5.8850688219536096e-05f,
     1.9197806977899745e-05f, 1.312576569034718e-05f, -5.944474651187193e-06f,
     -6.800862593081547e-06f, 0.0607537105679512f, 0.038791362196207047f, 0.021731501445174217f,
     0.014001300558447838f},
    {-0.002095215255394578f, -0.0008543037110939622f, -0.00041451785364188254f,
     9.077918366529047e-05f, -9.329713066108525e-05f, -5.999281711410731e-06f,
     -1.6886930097825825e-05f, -1.343096937489463e-05f, -1.8347629975323798e-06f,
     -1.93374717127881e-06f, 1.4923778053343995e-06f, 2.0092024897166993e-06f,
     -0.019981076940894127f, -0.015229265205562115f, -0.005851311143487692f,
     -0.003944613039493561f}};
constexpr double kNormalTailIsZero = 14.5;  ///< a Phi(-a) < 2^-150 from here on

/// x Phi(x) = max(x, 0) - a Phi(-a), a = |x|.
BRASA_INLINE Vec<float> vgelu(Vec<float> x) {
  using V = Vec<float>;
  const V a = not_above(abs(x), kNormalTailIsZero);
  const Power density = exp_minus_half_square(a);
  return not_below(x, -0.0) - density.scaled(piecewise<21>(kNormalTail, a) * density.q);
}

/// Its slope Phi(x) + x phi(x): w(a) = Phi(-a) - a phi(a) where x < 0, else 1 - w(a).
BRASA_INLINE Vec<float> vgelu_slope(Vec<float> x) {
  using V = Vec<float>;
  const V a = not_above(abs(x), kNormalTailIsZero);
  const Power density = exp_minus_half_square(a);
  const V w = density.scaled(piecewise<21>(kNormalTailSlope, a) * density.q);
  return x < V{} ? w : value<V>(1) - w;
}

/// Phi(x) = 0.5 erfc(-x / sqrt(2)). z = -x / sqrt(2) is rounded, and erfc falls by the factor
/// exp(-2 z dz) over that error dz.
BRASA_INLINE Vec<double> vnormal_cdf(Vec<double> x) {
  constexpr double kSqrtHalf = 0x1.6a09e667f3bcdp-1, kSqrtHalfLow = -0x1.bdd3413b26456p-55;
  for (int i = 0; i < kLanes<double>; ++i) {
    const double z = -x[i] * kSqrtHalf, y = 0.5 * __builtin_erfc(z);
    const double dz = __builtin_fma(-x[i], kSqrtHalf, -z) - x[i] * kSqrtHalfLow;
    x[i] = z > 1 && z < 40 ? y - y * (2 * z * dz) : y;
  }
  return x;
}
BRASA_INLINE Vec<double> vgelu(Vec<double> x) {
  return x < value<Vec<double>>(-40) ? value<Vec<double>>(-0.0) : x * vnormal_cdf(x);
}
BRASA_INLINE Vec<double> vgelu_slope(Vec<double> x) {
  using V = Vec<double>;
  constexpr double kInverseSqrt2Pi = 0.39894228040143267794;
  const V density = value<V>(kInverseSqrt2Pi) * vexp(value<V>(-0.5) * x * x);
  return vnormal_cdf(x) + select(density == V{}, V{}, x * density);
}

}  // namespace brasa::cpu::BRASA_ISA
