// SIMD vectors, exactly as wide as the instruction set this file is compiled for.
//
// Vec<T> is a GCC/Clang vector: + - * / < == ?: and [] work as they stand; here is only what the
// extension lacks. A vector wider than the registers would live on the stack (measured: 8x slower),
// so the width follows the target macros; `scalar` has one lane.
//
// Arithmetic that several instruction sets must round alike uses fma(), never a * b + c: the build
// forbids contraction. Sums use virtual lanes and one fixed tree (LaneSum), whatever the width.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef BRASA_ISA
#error "core/simd.h belongs into kernel files only"
#endif

#define BRASA_INLINE static inline __attribute__((always_inline))
#define BRASA_INLINE_MEMBER inline __attribute__((always_inline))

namespace brasa::cpu::BRASA_ISA {

#if defined(BRASA_SCALAR)
template <class T> constexpr int kVectorBytes = sizeof(T);
#elif defined(__AVX512F__)
template <class T> constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
template <class T> constexpr int kVectorBytes = 32;
#else
template <class T> constexpr int kVectorBytes = 16;
#endif

/// Lanes of Vec<T>.
template <class T> constexpr int kLanes = kVectorBytes<T> / int(sizeof(T));

template <class T> struct IntOf;
template <> struct IntOf<float> {
  using type = int32_t;
};
template <> struct IntOf<double> {
  using type = int64_t;
};

template <class T> struct VectorTypes {
  using Int = typename IntOf<T>::type;
  typedef T Vec __attribute__((vector_size(kVectorBytes<T>)));
  typedef Int IntVec __attribute__((vector_size(kVectorBytes<T>)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes<T>), aligned(alignof(T)), may_alias));
};
template <class T> using Vec = typename VectorTypes<T>::Vec;
template <class T> using IntVec = typename VectorTypes<T>::IntVec;

/// The element type of a vector: ElementOf<Vec<float>> is float.
template <class V> struct ElementOfImpl;
template <> struct ElementOfImpl<Vec<float>> {
  using type = float;
};
template <> struct ElementOfImpl<Vec<double>> {
  using type = double;
};
template <class V> using ElementOf = typename ElementOfImpl<V>::type;

template <class T> BRASA_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

template <class T> BRASA_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorTypes<T>::Unaligned*>(p);
}
template <class T> BRASA_INLINE void store(T* p, Vec<T> x) {
  *reinterpret_cast<typename VectorTypes<T>::Unaligned*>(p) = x;
}

/// The first n lanes from p, the others 0. 0 <= n <= kLanes<T>.
template <class T> BRASA_INLINE Vec<T> load_partial(const T* p, int64_t n) {
#if defined(__AVX512F__) && !defined(BRASA_SCALAR)
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
  } else {
    return (Vec<T>)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
  }
#else
  Vec<T> x{};
  for (int i = 0; i < kLanes<T>; ++i)
    if (i < n) x[i] = p[i];
  return x;
#endif
}

/// The first n lanes of x to p.
template <class T> BRASA_INLINE void store_partial(T* p, Vec<T> x, int64_t n) {
#if defined(__AVX512F__) && !defined(BRASA_SCALAR)
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)x);
  } else {
    _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)x);
  }
#else
  for (int i = 0; i < kLanes<T>; ++i)
    if (i < n) p[i] = x[i];
#endif
}

/// a * b + c with one rounding (two in `baseline` on x86-64, which has no such instruction).
BRASA_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(BRASA_SCALAR)
  return broadcast(__builtin_fmaf(a[0], b[0], c[0]));
#elif defined(__AVX512F__)
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
BRASA_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(BRASA_SCALAR)
  return broadcast(__builtin_fma(a[0], b[0], c[0]));
#elif defined(__AVX512F__)
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

/// The same for one number, rounded as one lane of the vector form is.
template <class T> BRASA_INLINE T fma_scalar(T a, T b, T c) {
#if defined(__x86_64__) && !defined(__FMA__) && !defined(BRASA_SCALAR)
  return a * b + c;
#else
  if constexpr (sizeof(T) == 4)
    return __builtin_fmaf(a, b, c);
  else
    return __builtin_fma(a, b, c);
#endif
}

BRASA_INLINE Vec<float> sqrt(Vec<float> x) {
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}
BRASA_INLINE Vec<double> sqrt(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
}

template <class V> BRASA_INLINE auto bits(V x) {
  return (IntVec<ElementOf<V>>)x;
}

/// mask lane ? a : b, where mask comes from a comparison.
template <class M, class V> BRASA_INLINE V select(M mask, V a, V b) {
  return mask ? a : b;
}

/// |x|, and x with the sign of s.
template <class V> BRASA_INLINE V abs(V x) {
  using I = typename IntOf<ElementOf<V>>::type;
  constexpr I kSign = I(1ull << (8 * sizeof(I) - 1));
  return (V)(bits(x) & ~kSign);
}
template <class V> BRASA_INLINE V copysign(V x, V s) {
  using I = typename IntOf<ElementOf<V>>::type;
  constexpr I kSign = I(1ull << (8 * sizeof(I) - 1));
  return (V)((bits(x) & ~kSign) | (bits(s) & kSign));
}

/// The larger / smaller lane; a NaN in either wins.
template <class V> BRASA_INLINE V max(V a, V b) {
  return ((a > b) | (a != a)) ? a : b;
}
template <class V> BRASA_INLINE V min(V a, V b) {
  return ((a < b) | (a != a)) ? a : b;
}

/// Reads or writes a whole vector, or its first `live` lanes.
template <class T> BRASA_INLINE Vec<T> read(const T* p, int64_t live) {
  return live == kLanes<T> ? load(p) : load_partial(p, live);
}
template <class T> BRASA_INLINE void write(T* p, Vec<T> x, int64_t live) {
  if (live == kLanes<T>)
    store(p, x);
  else
    store_partial(p, x, live);
}

/// x with the lanes from n on replaced; what was there leaves no trace.
template <class T> BRASA_INLINE Vec<T> first_lanes(Vec<T> x, int64_t n, Vec<T> others = Vec<T>{}) {
  IntVec<T> lane{};
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
  return lane < IntVec<T>{} + typename IntOf<T>::type(n) ? x : others;
}

/// Lane i is lane (i + kBy) % width of x.
template <int kBy, class V> BRASA_INLINE V rotate_lanes(V x) {
  constexpr int k = kBy, n = kLanes<ElementOf<V>>;
  if constexpr (n == 16)
    return __builtin_shufflevector(x, x, k, k + 1, k + 2, k + 3, k + 4, k + 5, k + 6, k + 7, k + 8,
                                   k + 9, k + 10, k + 11, k + 12, k + 13, k + 14, k + 15);
  else if constexpr (n == 8)
    return __builtin_shufflevector(x, x, k, k + 1, k + 2, k + 3, k + 4, k + 5, k + 6, k + 7);
  else if constexpr (n == 4)
    return __builtin_shufflevector(x, x, k, k + 1, k + 2, k + 3);
  else
    return __builtin_shufflevector(x, x, k, k + 1);
}

/// f over all lanes by a fixed tree: lanes half the width apart, then a quarter, ... In registers:
/// by way of memory it takes twice as long.
template <class V, class F> BRASA_INLINE ElementOf<V> fold_lanes(V x, const F& f) {
  constexpr int kWidth = kLanes<ElementOf<V>>;
  if constexpr (kWidth >= 16) x = f(x, rotate_lanes<8>(x));
  if constexpr (kWidth >= 8) x = f(x, rotate_lanes<4>(x));
  if constexpr (kWidth >= 4) x = f(x, rotate_lanes<2>(x));
  if constexpr (kWidth >= 2) x = f(x, rotate_lanes<1>(x));
  return x[0];
}

/// a > b ? a : b, which is what x86's instruction does: of zeros and where one is a NaN it is b.
template <class T> BRASA_INLINE Vec<T> max_lanes(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__) && !defined(BRASA_SCALAR)
  constexpr __mmask16 kAll = -1;  // GCC 12 warns of an uninitialised value in the unmasked forms
  if constexpr (sizeof(T) == 4)
    return (Vec<T>)_mm512_maskz_max_ps(kAll, (__m512)a, (__m512)b);
  else
    return (Vec<T>)_mm512_maskz_max_pd(__mmask8(kAll), (__m512d)a, (__m512d)b);
#else
  return a > b ? a : b;
#endif
}

/// Sum over virtual lanes: the same additions in the same order at every vector width.
template <class T, int kVirtualLanes = 16> struct LaneSum {
  static constexpr int kVirtual = kVirtualLanes;
  static constexpr int kParts = kVirtual / kLanes<T>;
  Vec<T> part[kParts] = {};

  /// Adds the kVirtual elements at p, or f(element vector, offset) of them.
  template <class F> __attribute__((always_inline)) void add_mapped(const T* p, F f) {
#pragma GCC unroll 16
    for (int i = 0; i < kParts; ++i) part[i] += f(load(p + i * kLanes<T>), i * kLanes<T>);
  }
  /// Adds the first `live` lanes of x.
  __attribute__((always_inline)) void add(int i, Vec<T> x, int64_t live) {
    part[i] += live == kLanes<T> ? x : first_lanes<T>(x, live);
  }
  /// Adds the squares of the first `live` lanes of x.
  __attribute__((always_inline)) void add_square(int i, Vec<T> x, int64_t live) {
    const Vec<T> alive = live == kLanes<T> ? x : first_lanes<T>(x, live);
    part[i] = fma(alive, alive, part[i]);
  }
  /// The fixed tree: lanes half the virtual width apart, then a quarter, ..., 1.
  __attribute__((always_inline)) T total() const {
    Vec<T> x[kParts];
    for (int i = 0; i < kParts; ++i) x[i] = part[i];
#pragma GCC unroll 8
    for (int step = kParts / 2; step; step /= 2)
#pragma GCC unroll 16
      for (int i = 0; i < step; ++i) x[i] += x[i + step];
    return fold_lanes(x[0], [](Vec<T> a, Vec<T> b) { return a + b; });
  }
};

/// f(i, j, live) for the vectors of a row of n elements: element j and the live - 1 after it, i
/// counts vectors modulo kParts (a constant, so that sums indexed by it stay in registers).
template <class T, int kParts, class F> BRASA_INLINE void each_part(int64_t n, const F& f) {
  constexpr int64_t kWidth = kLanes<T>;
  int64_t j = 0;
  for (; j + kParts * kWidth <= n; j += kParts * kWidth) {
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) f(i, j + i * kWidth, kWidth);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kParts; ++i, j += kWidth) {
    if (j >= n) break;
    f(i, j, n - j < kWidth ? n - j : kWidth);
  }
}

}  // namespace brasa::cpu::BRASA_ISA
