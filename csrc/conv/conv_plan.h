// What the CPU kernels share beside the geometry: how an array is read, edges, and workspace.
#pragma once

#include "conv/conv_axis.h"
#include "core/simd.h"

namespace brasa::cpu::BRASA_ISA {

/// Channels-last pixels: where pixel (n, 0, 0, 0) lies, steps between neighbours, and what exists.
template <class T> struct Source {
  const T* data;
  int64_t image, step[3], size[3];
  bool covers;  ///< every pixel that a tap asks for can be read, because the padding is in memory

  int64_t offset(int64_t d, int64_t h, int64_t w) const {
    return d * step[0] + h * step[1] + w * step[2];
  }
};

/// A whole vector where as many elements are live, else the live ones; none when live <= 0.
template <class T> BRASA_INLINE void store_live(T* p, Vec<T> x, int64_t live) {
  if (live >= kLanes<T>)
    store(p, x);
  else if (live > 0)
    store_partial(p, x, live);
}
template <class T> BRASA_INLINE Vec<T> load_live(const T* p, int64_t live) {
  return live >= kLanes<T> ? load(p) : live > 0 ? load_partial(p, live) : Vec<T>{};
}

/// Hands out parts of one block of memory, 64-byte aligned. Without a block it only counts.
class Arena {
 public:
  explicit Arena(void* block) : block_(static_cast<char*>(block)) {}
  template <class U> U* take(int64_t count) {
    U* part = block_ ? reinterpret_cast<U*>(block_ + used_) : nullptr;
    used_ += (size_t(count) * sizeof(U) + 63) / 64 * 64;
    return part;
  }
  size_t used() const { return used_; }
  /// What has not been handed out.
  void* rest() const { return block_ + used_; }

 private:
  char* block_;
  size_t used_ = 0;
};

}  // namespace brasa::cpu::BRASA_ISA
