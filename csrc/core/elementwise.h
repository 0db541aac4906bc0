// Loops over dense memory: whole vectors, then the tail. The tail computes in a full vector, so a
// value does not depend on where in the array it stands.
#pragma once

#include "core/parallel.h"
#include "core/simd.h"

namespace brasa::cpu::BRASA_ISA {

/// Elements per chunk: 64 KiB of float32 in and out stays in L2 and is some 5 us of work.
constexpr int64_t kElementwiseGrain = 16 * 1024;

/// y[i] = f(x[i]...) for begin <= i < end, on vectors. y may be one of the x.
template <class T, class F, class... X>
static inline void map_range(int64_t begin, int64_t end, const F& f, T* y, const X*... x) {
  constexpr int kWidth = kLanes<T>;
  int64_t i = begin;
  for (; i + kWidth <= end; i += kWidth) store(y + i, f(load(x + i)...));
  if (i < end) store_partial(y + i, f(load_partial(x + i, end - i)...), end - i);
}

/// The same for every i < n, in chunks.
template <class T, class F, class... X>
static inline void map(Context ctx, int64_t n, const F& f, T* y, const X*... x) {
  parallel_for(ctx, n, kElementwiseGrain,
               [&](int64_t begin, int64_t end) { map_range(begin, end, f, y, x...); });
}

/// Bytes of a result from which `map_large` writes past the caches: half of what 32 MiB of shared
/// cache hold, so that a smaller result is still there for whoever reads it next.
constexpr int64_t kStreamBytes = 16 << 20;

/// Stores to memory, not to the caches, where there is an instruction for it. p is aligned to the
/// vector.
template <class T> BRASA_INLINE void stream(T* p, Vec<T> x) {
#if defined(BRASA_SCALAR) || !defined(__x86_64__)
  store(p, x);
#elif defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)x);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)x);
#else
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)x);
#endif
}

/// Orders streaming stores before what other threads see next.
BRASA_INLINE void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

/// Whether a kernel that writes rows of `row` elements to y, `n` in all, streams them.
template <class T> static inline bool streams_rows(const T* y, int64_t n, int64_t row) {
  return n * int64_t(sizeof(T)) >= kStreamBytes && row % kLanes<T> == 0 &&
         reinterpret_cast<uintptr_t>(y) % kVectorBytes<T> == 0;
}

/// `live` lanes to p; with kStream, where rows are streamed, a whole vector past the caches.
template <bool kStream, class T> BRASA_INLINE void put_row(T* p, Vec<T> x, int64_t live) {
  if constexpr (kStream)
    stream(p, x);
  else
    write(p, x, live);
}

/// How far ahead of its loads a streaming loop fetches. The hardware's own prefetch falls behind
/// while stores bypass the caches: with two inputs it takes a quarter longer.
constexpr int64_t kFetchBytes = 2048;

/// Vectors of each array in a turn of a streaming loop: runs of one array keep to a page of memory
/// (two inputs: 3 % faster than one vector of each in turn; 8 bring nothing more).
constexpr int kStreamVectors = 4;

/// y[i] = f(x[i]...) for the vectors of one turn: all are fetched and read before any is written.
template <class T, class F, class... X>
BRASA_INLINE void stream_turn(const F& f, T* y, const X*... x) {
  constexpr int kWidth = kLanes<T>;
  const auto fetch = [](const T* p) {
#pragma GCC unroll 8
    for (int k = 0; k < kStreamVectors; ++k)
      __builtin_prefetch(p + k * kWidth + kFetchBytes / sizeof(T));
  };
  (fetch(x), ...);
  Vec<T> result[kStreamVectors];
#pragma GCC unroll 8
  for (int k = 0; k < kStreamVectors; ++k) result[k] = f(load(x + k * kWidth)...);
#pragma GCC unroll 8
  for (int k = 0; k < kStreamVectors; ++k) stream(y + k * kWidth, result[k]);
}

template <class T, class F, class... X>
static inline void stream_range(int64_t begin, int64_t end, const F& f, T* y, const X*... x) {
  constexpr int64_t kTurn = kStreamVectors * kLanes<T>;
  int64_t i = begin;
  for (; i + kTurn <= end; i += kTurn) stream_turn(f, y + i, (x + i)...);
  finish_streaming();
  if (i < end) map_range(i, end, f, y, x...);
}

/// `map` that streams a large result: a store that goes through the caches reads the line first, a
/// third of the traffic of y = f(x). (Computing blocks into L1 and streaming those loses 15 % to
/// storing each vector as it comes, as nothing is read meanwhile.)
template <class T, class F, class... X>
static inline void map_large(Context ctx, int64_t n, const F& f, T* y, const X*... x) {
  const bool aligned = reinterpret_cast<uintptr_t>(y) % kVectorBytes<T> == 0;
  const bool in_place = ((static_cast<const void*>(y) == static_cast<const void*>(x)) || ...);
  if (n * int64_t(sizeof(T)) < kStreamBytes || !aligned || in_place) return map(ctx, n, f, y, x...);
  static_assert(kElementwiseGrain % kLanes<T> == 0, "every chunk begins aligned");
  parallel_for(ctx, n, kElementwiseGrain,
               [&](int64_t begin, int64_t end) { stream_range(begin, end, f, y, x...); });
}

}  // namespace brasa::cpu::BRASA_ISA
