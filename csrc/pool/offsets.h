// Offsets of maxima in their windows: integer lanes in registers, bytes or int32 in memory.
#pragma once

#include "core/elementwise.h"
#include "pool/pool.h"

namespace brasa::cpu::BRASA_ISA {

/// Stands for the type of offsets that are not kept.
struct NoOffset {};
template <class Offset> constexpr bool kKeeps = true;
template <> constexpr bool kKeeps<NoOffset> = false;

/// As many offsets as Vec<T> has lanes.
template <class T, class Offset> struct OffsetLanes {
  typedef Offset Vec __attribute__((vector_size(sizeof(Offset) * kLanes<T>)));
};

template <class T, class Offset>
BRASA_INLINE void store_offsets(Offset* p, IntVec<T> where, int64_t live) {
  using Narrow = typename OffsetLanes<T, Offset>::Vec;
  const Narrow narrow = __builtin_convertvector(where, Narrow);
  if (live == kLanes<T>) {
    __builtin_memcpy(p, &narrow, sizeof(narrow));
  } else {
    for (int64_t i = 0; i < live; ++i) p[i] = narrow[i];
  }
}

/// The lanes from `live` on are 0. `live` may exceed the lanes.
template <class T, class Offset>
BRASA_INLINE IntVec<T> load_offsets(const Offset* p, int64_t live) {
  if (live >= kLanes<T>) {
    typename OffsetLanes<T, Offset>::Vec narrow;
    __builtin_memcpy(&narrow, p, sizeof(narrow));
    return __builtin_convertvector(narrow, IntVec<T>);
  }
  IntVec<T> lanes{};
  for (int64_t i = 0; i < live; ++i) lanes[i] = p[i];
  return lanes;
}

/// 0, 1, 2, ...
template <class T> BRASA_INLINE IntVec<T> lane_numbers() {
  IntVec<T> lanes{};
  for (int i = 0; i < kLanes<T>; ++i) lanes[i] = i;
  return lanes;
}

/// `live` may exceed the lanes.
template <class T> BRASA_INLINE Vec<T> read_at_most(const T* p, int64_t live) {
  return live >= kLanes<T> ? load(p) : load_partial(p, live);
}

/// Whether rows of `row` elements at p are written past the caches: where all that is read and
/// written, `bytes`, is more than caches hold.
template <class T> static bool streams(const T* p, int64_t row, int64_t bytes) {
  return bytes >= 2 * kStreamBytes && row * int64_t(sizeof(T)) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

/// `live` lanes past the caches. Rows need not begin at a whole vector: pieces of 16 bytes are
/// combined on their way.
template <class T> BRASA_INLINE void stream_lanes(T* p, Vec<T> x, int64_t live) {
  if (live == kLanes<T> && reinterpret_cast<uintptr_t>(p) % kVectorBytes<T> == 0)
    return stream(p, x);
#if defined(__x86_64__)
  constexpr int64_t kPiece = 16 / sizeof(T);
  alignas(64) T lanes[kLanes<T>];
  store(lanes, x);
  for (int64_t i = 0; i + kPiece <= live; i += kPiece)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p + i),
                     *reinterpret_cast<const __m128i*>(lanes + i));
#else
  write(p, x, live);
#endif
}

/// The lanes of a vector to write at `at`, `live` of which count: all of them if they end before
/// `end`. Whoever writes places in order thus writes too much and then writes it again, which is
/// cheaper than partial stores.
template <class T> BRASA_INLINE int64_t lanes_to_write(int64_t at, int64_t live, int64_t end) {
  return end - at >= kLanes<T> ? kLanes<T> : live;
}

/// `live` lanes past the caches, or `lanes` >= live into them.
template <class T>
BRASA_INLINE void put(bool streaming, T* p, Vec<T> x, int64_t live, int64_t lanes) {
  if (streaming)
    stream_lanes(p, x, live);
  else
    write(p, x, lanes);
}

/// Fetches what later windows read where this one reads p. While stores bypass the caches the
/// hardware's own prefetch falls behind (channels-last: by a third). `from_end` counts the window's
/// rows or columns from its last: where windows halve an image, the last two are new.
template <class T> BRASA_INLINE void fetch_ahead(const T* p, int64_t from_end) {
  if (from_end <= 2) __builtin_prefetch(reinterpret_cast<const char*>(p) + kFetchBytes);
}

/// x where the mask holds, +0 elsewhere; a NaN that is not chosen leaves no trace.
template <class T> BRASA_INLINE Vec<T> keep(IntVec<T> mask, Vec<T> x) {
  return (Vec<T>)(mask & bits(x));
}

template <class T> BRASA_INLINE IntVec<T> int_lanes(int64_t i) {
  return IntVec<T>{} + typename IntOf<T>::type(i);
}

/// Calls f.operator()<Offset>() for the type that the offsets have.
template <class F> static inline void visit_offsets(PoolOffsets offsets, const F& f) {
  if (!offsets.data)
    f.template operator()<NoOffset>();
  else if (offsets.wide)
    f.template operator()<int32_t>();
  else
    f.template operator()<uint8_t>();
}

}  // namespace brasa::cpu::BRASA_ISA
