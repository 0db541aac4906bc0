// Who works on one line of an axis: a thread, a warp or a block. What softmax and cross-entropy
// share.
//
// Contiguous lines go to a warp, long ones to a block, so that neighbouring threads read
// neighbouring elements. Where the axis is not innermost, neighbouring lines do, and each line has
// one thread. The choice depends on the shape of a line alone, never on how many there are.
//
// T is what is computed in: elements of 16 bits are widened where they are read.
#pragma once

#include "core/ptx_convert.cuh"
#include "core/vmath.cuh"
#include "softmax/softmax.h"

namespace brasa::cuda {

constexpr int kLineThreads = 256;
constexpr int64_t kBlockLine = 1024;  ///< a line this long gets a block
constexpr int kPartialSum = 16;  ///< terms added before they join a thread's sum: shorter chains

template <class T> struct ThreadGroup {
  static constexpr int kSize = 1;
  BRASA_DEVICE_FN T sum(T v) const { return v; }
  BRASA_DEVICE_FN T max(T v) const { return v; }
  BRASA_DEVICE_FN int rank() const { return 0; }
};
template <class T> struct WarpGroup {
  static constexpr int kSize = simt::kWarpSize;
  BRASA_DEVICE_FN T sum(T v) const { return simt::warp_sum(v); }
  BRASA_DEVICE_FN T max(T v) const { return simt::warp_max(v); }
  BRASA_DEVICE_FN int rank() const { return threadIdx.x % simt::kWarpSize; }
};
template <class T> struct BlockGroup {
  static constexpr int kSize = kLineThreads;
  BRASA_DEVICE_FN T sum(T v) const { return simt::block_reduce_sum(v); }
  BRASA_DEVICE_FN T max(T v) const { return simt::block_reduce_max(v); }
  BRASA_DEVICE_FN int rank() const { return threadIdx.x; }
};

template <class T> struct MaximumAndSum {
  T maximum, sum;
};

/// One line: element j stands `stride` elements after element j - 1.
template <class T, template <class> class Group> struct Line {
  Group<T> group;
  int64_t index, offset, n, stride;

  BRASA_DEVICE_FN int64_t at(int64_t j) const { return offset + j * stride; }

  /// f(j) for every element, each by one thread of the group.
  template <class F> BRASA_DEVICE_FN void each(const F& f) const {
    for (int64_t j = group.rank(); j < n; j += Group<T>::kSize) f(j);
  }
  template <class F> BRASA_DEVICE_FN T sum(const F& f) const {
    T total = 0;
    for (int64_t j = group.rank(); j < n;) {
      T part = 0;
      for (int k = 0; k < kPartialSum && j < n; ++k, j += Group<T>::kSize) part += f(j);
      total += part;
    }
    return group.sum(total);
  }
  /// The largest of f(j), and the sum of exp(f(j) - largest) over the line, in one pass: a sum is
  /// scaled where a larger element comes (Milakov and Gimelshein 2018). NaN where the line is all
  /// -inf or holds a NaN or +inf.
  template <class F> BRASA_DEVICE_FN MaximumAndSum<T> max_and_sum(const F& f) const {
    constexpr int kBatch = Group<T>::kSize == 1 ? 8 : 4;
    T largest = -infinity<T>(), total = 0;
    for (int64_t j = group.rank(); j < n; j += kBatch * Group<T>::kSize) {
      T v[kBatch], m = largest, part = 0;
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int64_t i = j + k * Group<T>::kSize;
        v[k] = i < n ? f(i) : -infinity<T>();
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) m = cuda::max(v[k], m);
      if (m == -infinity<T>()) continue;  // nothing yet that is more
#pragma unroll
      for (int k = 0; k < kBatch; ++k) part += vexp(v[k] - m);
      total = total * vexp(largest - m) + part;
      largest = m;
    }
    const T maximum = group.max(largest);
    return {maximum, group.sum(total * vexp(largest - maximum))};
  }
};

/// Calls f(line) for the lines that this thread takes part in.
template <class T, template <class> class Group, class F>
BRASA_DEVICE_FN void for_lines(AxisShape shape, const F& f) {
  constexpr int kPerBlock = kLineThreads / Group<T>::kSize;
  const int64_t lines = shape.outer * shape.inner, step = int64_t(gridDim.x) * kPerBlock;
  for (int64_t i = int64_t(blockIdx.x) * kPerBlock + threadIdx.x / Group<T>::kSize; i < lines;
       i += step) {
    const int64_t slab = i / shape.inner, first = i % shape.inner;
    f(Line<T, Group>{{}, i, slab * shape.n * shape.inner + first, shape.n, shape.inner});
  }
}

/// Calls launch(group, grid) with the kind of group that suits the shape.
template <class F> void choose_group(AxisShape shape, const F& f) {
  const int64_t lines = shape.lines();
  if (shape.inner > 1) {
    f.template operator()<ThreadGroup>(simt::blocks_for(lines, kLineThreads));
  } else if (shape.n < kBlockLine) {
    f.template operator()<WarpGroup>(simt::blocks_for(lines, kLineThreads / simt::kWarpSize));
  } else {
    f.template operator()<BlockGroup>(simt::blocks_for(lines, 1));
  }
}

}  // namespace brasa::cuda
