// Memory-safety checks of the bindings. Python's operators word errors for users; what fails here
// is a direct call of a kernel with arrays that do not fit, and must never reach the kernel.
#pragma once

#include <stdexcept>
#include <string>

#include "core/array.h"

namespace brasa {

#define BRASA_REQUIRE(condition, message)                                           \
  do {                                                                              \
    if (!(condition)) ::brasa::fail_check(#condition, message, __FILE__, __LINE__); \
  } while (false)

[[noreturn]] inline void fail_check(const char* condition, const std::string& message,
                                    const char* file, int line) {
  std::string name(file);
  name = name.substr(name.find_last_of('/') + 1);
  throw std::invalid_argument(message + " [" + condition + ", " + name + ":" +
                              std::to_string(line) + "]");
}

inline std::string shape_text(const ArrayView& a) {
  std::string text = "(";
  for (int i = 0; i < a.rank; ++i) text += (i ? ", " : "") + std::to_string(a.shape[i]);
  return text + (a.rank == 1 ? ",)" : ")");
}

inline void require_same_shape(const ArrayView& a, const ArrayView& b) {
  bool same = a.rank == b.rank;
  for (int i = 0; same && i < a.rank; ++i) same = a.shape[i] == b.shape[i];
  BRASA_REQUIRE(same, "shapes " + shape_text(a) + " and " + shape_text(b) + " differ");
}

inline void require_same_dtype(const ArrayView& a, const ArrayView& b) {
  BRASA_REQUIRE(a.dtype == b.dtype, "dtypes differ");
}

inline void require_dtype(const ArrayView& a, DType dtype) {
  BRASA_REQUIRE(a.dtype == dtype, "unexpected dtype");
}

inline void require_rank(const ArrayView& a, int rank) {
  BRASA_REQUIRE(a.rank == rank, "rank " + std::to_string(rank) + " needed, got " + shape_text(a));
}

/// Exactly these extents.
template <class... Extents> inline void require_shape(const ArrayView& a, Extents... extents) {
  const int64_t wanted[] = {int64_t(extents)...};
  require_rank(a, int(sizeof...(extents)));
  for (int i = 0; i < a.rank; ++i)
    BRASA_REQUIRE(a.shape[i] == wanted[i], "unexpected shape " + shape_text(a));
}

inline void require_c_order(const ArrayView& a) {
  BRASA_REQUIRE(is_c_order(a), "C-contiguous array needed");
}

inline void require_dense(const ArrayView& a) {
  BRASA_REQUIRE(layout_of(a) != Layout::strided, "C-contiguous or channels-last array needed");
}

/// Dense, and both in the same order: an elementwise kernel may then walk memory.
inline void require_same_dense_layout(const ArrayView& a, const ArrayView& b) {
  require_same_shape(a, b);
  BRASA_REQUIRE((is_c_order(a) && is_c_order(b)) || (is_channels_last(a) && is_channels_last(b)),
                "both arrays must be C-contiguous or both channels-last");
}

inline int64_t item_size(DType dtype) {
  switch (dtype) {
    case DType::float64:
    case DType::int64:
      return 8;
    case DType::float32:
    case DType::int32:
      return 4;
    case DType::float16:
    case DType::bfloat16:
      return 2;
    default:
      return 1;
  }
}

/// The first byte of an array and the one behind its last.
struct Span {
  const char *begin, *end;
};
inline Span span_of(const ArrayView& a) {
  const auto* data = static_cast<const char*>(a.data);
  if (a.size == 0) return {data, data};
  int64_t first = 0, last = 1;
  for (int i = 0; i < a.rank; ++i)
    (a.strides[i] < 0 ? first : last) += (a.shape[i] - 1) * a.strides[i];
  return {data + first * item_size(a.dtype), data + last * item_size(a.dtype)};
}

/// The memory of `y` from its first byte to its last has nothing of the memory of `x`.
inline void require_apart(const ArrayView& y, const ArrayView& x) {
  const Span a = span_of(y), b = span_of(x);
  BRASA_REQUIRE(a.end <= b.begin || b.end <= a.begin, "the output overlaps an input");
}

/// a * b and a + b for sizes; overflow is an error, never a wrap.
inline int64_t checked_multiply(int64_t a, int64_t b) {
  int64_t r;
  BRASA_REQUIRE(!__builtin_mul_overflow(a, b, &r), "size overflows 64 bits");
  return r;
}
inline int64_t checked_add(int64_t a, int64_t b) {
  int64_t r;
  BRASA_REQUIRE(!__builtin_add_overflow(a, b, &r), "size overflows 64 bits");
  return r;
}

/// Calls f.operator()<T>() for the T of the list whose dtype this is.
template <class T, class... Rest, class F> inline void visit(DType dtype, const F& f) {
  if (dtype == DTypeOf<T>::value) {
    f.template operator()<T>();
  } else if constexpr (sizeof...(Rest) > 0) {
    visit<Rest...>(dtype, f);
  } else {
    throw std::invalid_argument("this kernel does not take this dtype");
  }
}

}  // namespace brasa
