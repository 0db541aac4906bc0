// The geometry of pooling windows, for kernels of both devices.
#pragma once

#include "pool/pool.h"

#if defined(BRASA_ISA)
#include "core/simd.h"
#define BRASA_WINDOW_FN BRASA_INLINE
namespace brasa::cpu::BRASA_ISA {
#else
#include "core/device.cuh"
#define BRASA_WINDOW_FN static BRASA_DEVICE_FN
namespace brasa::cuda {
#endif

/// The part of a window that lies in the image: `count` inputs from `first`, a dilation apart.
/// `tap` is the number of the first one in the whole window.
struct Window {
  int64_t first, count, tap;
};

/// Dilation is nearly always 1, and a division costs more than a small window.
BRASA_WINDOW_FN int64_t divide(int64_t a, int64_t dilation) {
  return dilation == 1 ? a : a / dilation;
}

/// A GPU divides 64 bits in a hundred instructions, 32 in twenty; strides are mostly 1 or 2.
BRASA_WINDOW_FN int64_t divide_by_stride(int64_t a, int64_t stride) {
#if !defined(BRASA_ISA)
  if (stride <= 2) return a >> (stride - 1);
  if (a >> 31 == 0 && stride >> 31 == 0) return uint32_t(a) / uint32_t(stride);
#endif
  return a / stride;
}

BRASA_WINDOW_FN int64_t window_begin(const PoolAxis& a, int64_t o) {
  return a.adaptive ? o * a.in / a.out : o * a.stride - a.pad;
}

BRASA_WINDOW_FN Window window_of(const PoolAxis& a, int64_t o) {
  const int64_t begin = window_begin(a, o);
  if (a.adaptive) return {begin, ((o + 1) * a.in + a.out - 1) / a.out - begin, 0};
  const int64_t tap = begin < 0 ? divide(a.dilation - 1 - begin, a.dilation) : 0;
  const int64_t first = begin + tap * a.dilation;
  int64_t count = first < a.in ? divide(a.in - 1 - first, a.dilation) + 1 : 0;
  if (count > a.kernel - tap) count = a.kernel - tap;
  return {first, count < 0 ? 0 : count, tap};
}

/// The extent of window o that counts in the divisor of a mean.
BRASA_WINDOW_FN int64_t window_extent(const PoolAxis& a, int64_t o, bool include_pad) {
  if (a.adaptive || !include_pad) return window_of(a, o).count;
  const int64_t begin = window_begin(a, o), padded_end = a.in + a.pad;
  return (begin + a.kernel < padded_end ? begin + a.kernel : padded_end) - begin;
}

/// The windows that may hold input i: from `first` to before `end`. With dilation some of them step
/// over it; tap_of() tells.
struct Covering {
  int64_t first, end;
};

BRASA_WINDOW_FN Covering covering(const PoolAxis& a, int64_t i) {
  if (a.adaptive) return {i * a.out / a.in, ((i + 1) * a.out + a.in - 1) / a.in};
  const int64_t position = i + a.pad, before = position - a.dilation * (a.kernel - 1);
  const int64_t first = before <= 0 ? 0 : divide_by_stride(before + a.stride - 1, a.stride);
  const int64_t last = divide_by_stride(position, a.stride);
  return {first, last < a.out ? last + 1 : a.out};
}

/// The number of input i in window o, one that covering() gave; -1 where dilation steps over it.
BRASA_WINDOW_FN int64_t tap_of(const PoolAxis& a, int64_t o, int64_t i) {
  const int64_t distance = i - window_begin(a, o);
  if (a.adaptive || a.dilation == 1) return distance;
  return distance % a.dilation ? -1 : distance / a.dilation;
}

/// The divisor of a mean is the product of one number per dimension.
BRASA_WINDOW_FN int64_t row_divisor(const PoolParams& p, int64_t oh) {
  return p.divisor_override ? p.divisor_override : window_extent(p.h, oh, p.include_pad);
}
BRASA_WINDOW_FN int64_t column_divisor(const PoolParams& p, int64_t ow) {
  return p.divisor_override ? 1 : window_extent(p.w, ow, p.include_pad);
}

#if defined(BRASA_ISA)
}  // namespace brasa::cpu::BRASA_ISA
#else
}  // namespace brasa::cuda
#endif
