// Index values (classes, rows of a table) are checked before a CPU kernel reads through them. On
// CUDA that would mean copying them back and waiting, so kernels there answer NaN instead.
#pragma once

#include <string>

#include "core/check.h"

namespace brasa {

template <class I>
inline int64_t first_outside(const I* index, int64_t n, int64_t limit, const int64_t* ignored) {
  const I skip = ignored ? I(*ignored) : I(0);
  const bool skips = ignored && int64_t(skip) == *ignored;
  const auto outside = [=](I v) {
    return uint64_t(int64_t(v)) >= uint64_t(limit) && !(skips && v == skip);
  };
  bool any = false;  // no early exit: this loop runs on vectors
  for (int64_t i = 0; i < n; ++i) any |= outside(index[i]);
  for (int64_t i = 0; any && i < n; ++i)
    if (outside(index[i])) return i;
  return -1;
}

/// Every element of the C-contiguous int32 or int64 array lies in [0, limit), or is `*ignored`.
inline void require_indices(const char* name, const ArrayView& a, int64_t limit,
                            const int64_t* ignored = nullptr) {
  int64_t at = -1, value = 0;
  visit<int32_t, int64_t>(a.dtype, [&]<class I>() {
    at = first_outside(a.as<const I>(), a.size, limit, ignored);
    if (at >= 0) value = a.as<const I>()[at];
  });
  if (at < 0) return;
  std::string place;
  for (int i = a.rank - 1; i >= 0; at /= a.shape[i], --i)
    place = std::to_string(at % a.shape[i]) + (place.empty() ? "" : ", ") + place;
  if (a.rank == 1) place += ",";
  throw std::invalid_argument(std::string(name) + ": expected values in [0, " +
                              std::to_string(limit) + "), got " + std::to_string(value) +
                              " at position (" + place + ")");
}

}  // namespace brasa
