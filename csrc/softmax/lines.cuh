// Who works on one line of an axis: a thread, a warp or a block. What softmax and cross-entropy
// share.
//
// Contiguous lines go to a warp, long ones to a block, so that neighbouring threads read
// neighbouring elements. Where the axis is not innermost, neighbouring lines do, and each line has
// one thread. The choice depends on the shape of a line alone, never on how many there are.
//
// T is what is computed in. Long contiguous lines of 16 bits go by packs of 16 bytes; whether packs
// are aligned changes the loads alone, so that bits depend on shapes.
#pragma once

#include "core/ptx_convert.cuh"
#include "core/vmath.cuh"
#include "softmax/softmax.h"

namespace brasa::cuda {

constexpr int kLineThreads = 256;
constexpr int64_t kBlockLine =
    1024;                           ///< a line this long gets a block, in packs four times as long
constexpr int64_t kPackLine = 256;  ///< a line this long has a pack of 16 bits for each lane
constexpr int kPartialSum = 16;     ///< terms added before they join a thread's sum: shorter chains

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

/// One line: element j stands `stride` elements after element j - 1. A thread takes kLanes
/// neighbours at a time; where that is more than 1 the stride is 1, and `packs` says that arrays
/// are aligned and lines whole packs.
template <class T, template <class> class Group, int kLanes> struct Line {
  static constexpr int64_t kStep = int64_t(Group<T>::kSize) * kLanes;
  using Values = simt::Lanes<T, kLanes>;

  Group<T> group;
  int64_t index, offset, n, stride;
  bool packs;

  BRASA_DEVICE_FN int64_t at(int64_t j) const { return offset + j * stride; }
  BRASA_DEVICE_FN int64_t first() const { return int64_t(group.rank()) * kLanes; }

  /// Elements j, j + 1 ... of the line that starts at `line`, and `beyond` in place of those after
  /// its end.
  template <class E> BRASA_DEVICE_FN Values load(const E* line, int64_t j, T beyond = 0) const {
    if constexpr (kLanes > 1) {
      if (packs) return simt::load_wide<kLanes>(line + j);
    }
    Values values;
#pragma unroll
    for (int k = 0; k < kLanes; ++k)
      values[k] = kLanes == 1 || j + k < n ? simt::widen(line[(j + k) * stride]) : beyond;
    return values;
  }
  template <class E> BRASA_DEVICE_FN void store(E* line, int64_t j, const Values& values) const {
    if constexpr (kLanes > 1) {
      if (packs) return simt::store_wide(line + j, values);
    }
#pragma unroll
    for (int k = 0; k < kLanes; ++k)
      if (kLanes == 1 || j + k < n) line[(j + k) * stride] = simt::narrow<E>(values[k]);
  }
  /// f(i) for elements i from j on, 0 after the end.
  template <class F> BRASA_DEVICE_FN Values lanes(int64_t j, const F& f) const {
    Values values;
#pragma unroll
    for (int k = 0; k < kLanes; ++k) values[k] = kLanes == 1 || j + k < n ? f(j + k) : T(0);
    return values;
  }

  /// f(j) for every kLanes elements from j on, by one thread of the group.
  template <class F> BRASA_DEVICE_FN void each(const F& f) const {
    for (int64_t j = first(); j < n; j += kStep) f(j);
  }
  /// The sum of f(j), the values from j on.
  template <class F> BRASA_DEVICE_FN T sum(const F& f) const {
    T total = 0;
    for (int64_t j = first(); j < n;) {
      T part = 0;
      for (int turn = 0; turn < kPartialSum / kLanes && j < n; ++turn, j += kStep) {
        const Values values = f(j);
#pragma unroll
        for (int k = 0; k < kLanes; ++k) part += values[k];
      }
      total += part;
    }
    return group.sum(total);
  }
  /// The largest element of the line that starts at `line`, and the sum of exp(element - largest),
  /// in one pass: a sum is scaled where a larger element comes (Milakov and Gimelshein 2018). NaN
  /// where the line is all -inf or holds a NaN or +inf.
  template <class E> BRASA_DEVICE_FN MaximumAndSum<T> max_and_sum(const E* line) const {
    constexpr int kBatch = kLanes > 1 ? 1 : Group<T>::kSize == 1 ? 8 : 4;
    T largest = -infinity<T>(), total = 0;
    for (int64_t j = first(); j < n; j += kBatch * kStep) {
      Values v[kBatch];
      T m = largest, part = 0;
#pragma unroll
      for (int turn = 0; turn < kBatch; ++turn) {
        const int64_t i = j + turn * kStep;
        if (kBatch == 1 || i < n)
          v[turn] = load(line, i, -infinity<T>());
        else
          v[turn][0] = -infinity<T>();
      }
#pragma unroll
      for (int k = 0; k < kBatch * kLanes; ++k) m = cuda::max(v[k / kLanes][k % kLanes], m);
      if (m == -infinity<T>()) continue;  // nothing yet that is more
#pragma unroll
      for (int k = 0; k < kBatch * kLanes; ++k) part += vexp(v[k / kLanes][k % kLanes] - m);
      total = total * vexp(largest - m) + part;
      largest = m;
    }
    const T maximum = group.max(largest);
    return {maximum, group.sum(total * vexp(largest - maximum))};
  }
};

/// Calls f(line) for the lines that this thread takes part in.
template <class T, template <class> class Group, int kLanes, class F>
BRASA_DEVICE_FN void for_lines(AxisShape shape, bool packs, const F& f) {
  constexpr int kPerBlock = kLineThreads / Group<T>::kSize;
  const int64_t lines = shape.outer * shape.inner, step = int64_t(gridDim.x) * kPerBlock;
  for (int64_t i = int64_t(blockIdx.x) * kPerBlock + threadIdx.x / Group<T>::kSize; i < lines;
       i += step) {
    const int64_t slab = i / shape.inner, first = i % shape.inner;
    f(Line<T, Group, kLanes>{
        {}, i, slab * shape.n * shape.inner + first, shape.n, shape.inner, packs});
  }
}

/// Whether contiguous lines of n elements are whole packs, and these arrays aligned for them.
template <class T, class... Arrays> bool lines_in_packs(int64_t n, const Arrays*... arrays) {
  return n % simt::kPackLanes<T> == 0 && (simt::pack_aligned(arrays) && ...);
}

/// Elements of T that a thread takes at a time.
template <class T> inline constexpr int kLineLanes = sizeof(T) == 2 ? simt::kPackLanes<T> : 1;

inline dim3 line_per_warp(int64_t lines) {
  return simt::blocks_for(lines, kLineThreads / simt::kWarpSize);
}

/// Calls f.operator()<group, lanes>(grid) with what suits contiguous lines of n elements of T.
template <class T, class F> void choose_row_group(int64_t lines, int64_t n, const F& f) {
  constexpr int kLanes = kLineLanes<T>;
  if (n < (kLanes > 1 ? 4 * kBlockLine : kBlockLine))
    f.template operator()<WarpGroup, kLanes>(line_per_warp(lines));
  else
    f.template operator()<BlockGroup, kLanes>(simt::blocks_for(lines, 1));
}

/// The same for lines of any stride; short ones are shared out element by element, as exponentials
/// take longer than their loads.
template <class T, class F> void choose_group(AxisShape shape, const F& f) {
  if (shape.inner > 1)
    f.template operator()<ThreadGroup, 1>(simt::blocks_for(shape.lines(), kLineThreads));
  else if (kLineLanes<T> > 1 && shape.n < kPackLine)
    f.template operator()<WarpGroup, 1>(line_per_warp(shape.lines()));
  else
    choose_row_group<T>(shape.lines(), shape.n, f);
}

}  // namespace brasa::cuda
