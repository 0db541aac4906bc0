// An array as the bindings see it: pointer, shape, strides. Views own nothing, so they may be
// copied while the GIL is released; the caller keeps the array alive.
#pragma once

#include <cstdint>

#include "core/half.h"

namespace brasa {

enum class DType : int8_t { float32, float64, float16, bfloat16, int32, int64, uint8, other };

template <class T> struct DTypeOf;
template <> struct DTypeOf<float> {
  static constexpr DType value = DType::float32;
};
template <> struct DTypeOf<double> {
  static constexpr DType value = DType::float64;
};
template <> struct DTypeOf<float16> {
  static constexpr DType value = DType::float16;
};
template <> struct DTypeOf<bfloat16> {
  static constexpr DType value = DType::bfloat16;
};
template <> struct DTypeOf<int32_t> {
  static constexpr DType value = DType::int32;
};
template <> struct DTypeOf<int64_t> {
  static constexpr DType value = DType::int64;
};
template <> struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::uint8;
};

/// That of Wide<T>, for T's.
constexpr DType wide_of(DType dtype) {
  return dtype == DType::float16 || dtype == DType::bfloat16 ? DType::float32 : dtype;
}

constexpr int kMaxRank = 8;

struct ArrayView {
  void* data = nullptr;
  DType dtype = DType::other;
  int rank = 0;
  int64_t size = 0;  ///< number of elements
  int64_t shape[kMaxRank] = {};
  int64_t strides[kMaxRank] = {};  ///< in elements
  int device = 0;

  template <class T> T* as() const { return static_cast<T*>(data); }
};

/// Operands: read only, written, and either of them absent (None) when `data` is null and `rank` <
/// 0.
struct In : ArrayView {};
struct Out : ArrayView {};
struct OptionalIn : In {
  explicit operator bool() const { return rank >= 0; }
};
struct OptionalOut : Out {
  explicit operator bool() const { return rank >= 0; }
};

/// How the elements lie in memory. Size-1 dimensions have no say; an array that is both counts as
/// channels-last, so that formats survive layers where C = 1 or H = W = 1.
enum class Layout : int8_t { strided, c_order, channels_last };

inline bool is_dense_in_order(const ArrayView& a, const int* order) {
  int64_t expected = 1;
  for (int i = a.rank - 1; i >= 0; --i) {
    const int d = order[i];
    if (a.shape[d] != 1 && a.strides[d] != expected) return false;
    expected *= a.shape[d];
  }
  return true;
}

inline bool is_c_order(const ArrayView& a) {
  constexpr int kOrder[kMaxRank] = {0, 1, 2, 3, 4, 5, 6, 7};
  return a.size == 0 || is_dense_in_order(a, kOrder);
}

/// Rank 3, 4 or 5 (N, C, spatial...) with the channels innermost.
inline bool is_channels_last(const ArrayView& a) {
  if (a.rank < 3 || a.rank > 5) return false;
  if (a.size == 0) return true;
  int order[kMaxRank] = {0};
  for (int i = 2; i < a.rank; ++i) order[i - 1] = i;
  order[a.rank - 1] = 1;
  return is_dense_in_order(a, order);
}

inline Layout layout_of(const ArrayView& a) {
  if (is_channels_last(a)) return Layout::channels_last;
  return is_c_order(a) ? Layout::c_order : Layout::strided;
}

}  // namespace brasa
