// Scratch memory of a call, handed out piece by piece.
#pragma once

#include "rnn/rnn_panels.h"

namespace brasa::cpu::BRASA_ISA {

/// Without memory it only counts.
template <class T> class Scratch {
 public:
  explicit Scratch(void* memory) : memory_(static_cast<char*>(memory)) {}

  /// n elements on a line of their own.
  T* take(int64_t n) {
    T* const piece = memory_ ? reinterpret_cast<T*>(memory_ + bytes_) : nullptr;
    bytes_ += ceil_div(n * int64_t(sizeof(T)), 64) * 64;
    return piece;
  }
  size_t bytes() const { return size_t(bytes_); }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

/// to[i, j] = from[i, j] for j < columns, zeros behind; zeros alone without `from`.
template <class T>
static void copy_rows(const T* from, int64_t rows, int64_t from_columns, int64_t columns, T* to,
                      int64_t to_columns) {
  for (int64_t i = 0; i < rows; ++i, to += to_columns) {
    const int64_t copied = from ? columns : 0;
    if (from) __builtin_memcpy(to, from + i * from_columns, size_t(columns) * sizeof(T));
    __builtin_memset(to + copied, 0, size_t(to_columns - copied) * sizeof(T));
  }
}

}  // namespace brasa::cpu::BRASA_ISA
