// The geometry both directions share: which input pixels, taps and weights an output pixel needs.
//
// A gather computes out[q] = sum over taps j of in[q * in_step + in_first + j * tap_step] . w[j]
// along each axis. Forward is one gather. Backward data with stride s is one per residue of i mod s
// along each axis: of the taps only those with i + pad - k * dilation divisible by s meet a dy, and
// these step by whole pixels of dy. Each axis is then cut into parts whose pixels all have the same
// taps in the image; the parts' products are what the kernels compute.
#pragma once

#include "conv/conv.h"

namespace brasa {

/// One dimension of a gather. Output pixel number q < count stands at out_first + q * out_step; tap
/// j < taps reads in[q * in_step + in_first + j * tap_step] and is element kernel_first + j *
/// kernel_step.
struct Axis {
  int64_t out_first, out_step, count;
  int64_t in_step, in_first, tap_step;
  int64_t taps, kernel_first, kernel_step;

  constexpr int64_t lowest() const { return in_first; }
  constexpr int64_t highest() const {
    return (count - 1) * in_step + in_first + (taps - 1) * tap_step;
  }
};

static inline int64_t greatest_common_divisor(int64_t a, int64_t b) {
  while (b) {
    const int64_t r = a % b;
    a = b;
    b = r;
  }
  return a;
}

static inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
static inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static inline int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

static inline Axis forward_axis(const ConvParams& p, int d) {
  return {0, 1, p.out[d], p.stride[d], -p.pad_begin[d], p.dilation[d], p.kernel[d], 0, 1};
}

/// The pixels i = residue, residue + stride, ... of dx. Taps run from the last element of the
/// kernel to the first, so that they read dy in ascending order.
static inline Axis backward_axis(const ConvParams& p, int d, int64_t residue) {
  const int64_t s = p.stride[d], dilation = p.dilation[d], at = residue + p.pad_begin[d];
  const int64_t period = s / greatest_common_divisor(dilation, s);
  Axis axis{residue, s, ceil_div(p.in[d] - residue, s), 1, 0, period * dilation / s, 0, 0, -period};
  int64_t first = 0;
  while (first < p.kernel[d] && first < period && (at - first * dilation) % s != 0) ++first;
  if (first < p.kernel[d] && first < period) {
    axis.taps = (p.kernel[d] - 1 - first) / period + 1;
    axis.kernel_first = first + (axis.taps - 1) * period;
    axis.in_first = (at - axis.kernel_first * dilation) / s;
  }
  return axis;
}

/// A stretch of an axis. Its taps are those from `tap_first` on that lie in the image.
struct AxisPart {
  Axis axis;
  int64_t residue, tap_first;
  bool inside;  ///< all taps of all pixels lie in the image
};

/// The taps [first, last) of pixel q that lie in an image of `size`.
struct TapRange {
  int64_t first, last;
  TapRange(const Axis& a, int64_t size, int64_t q) {
    const int64_t at = q * a.in_step + a.in_first;
    first = at >= 0 ? 0 : smaller(a.taps, ceil_div(-at, a.tap_step));
    last = at >= size ? 0 : smaller(a.taps, ceil_div(size - at, a.tap_step));
    last = larger(first, last);
  }
};

/// An axis is cut into at most so many parts: 7 taps with a border of 3 need 7.
constexpr int64_t kMostAxisParts = 8;

static inline AxisPart axis_part(const Axis& axis, int64_t residue, int64_t begin, int64_t end,
                                 TapRange taps) {
  AxisPart part{axis, residue, taps.first, true};
  part.axis.out_first += begin * axis.out_step;
  part.axis.count = end - begin;
  part.axis.in_first += begin * axis.in_step + taps.first * axis.tap_step;
  part.axis.taps = taps.last - taps.first;
  part.axis.kernel_first += taps.first * axis.kernel_step;
  return part;
}

/// Cuts an axis over an image of `size` where the taps that lie in the image change, the part
/// without a border first, into `parts` unless that is null. Returns how many; an axis of too many
/// stays whole.
static inline int64_t cut_axis(const Axis& axis, int64_t size, int64_t residue, AxisPart* parts) {
  int64_t count = 0;
  for (int64_t q = 0, next; q < axis.count; q = next) {
    const TapRange taps(axis, size, q);
    next = q + 1;
    const bool whole = taps.last - taps.first == axis.taps;
    if (axis.taps == 0)
      next = axis.count;
    else if (whole)
      next =
          smaller(axis.count,
                  (size - 1 - axis.in_first - (axis.taps - 1) * axis.tap_step) / axis.in_step + 1);
    for (; next < axis.count && !whole; ++next) {
      const TapRange other(axis, size, next);
      if (other.first != taps.first || other.last != taps.last) break;
    }
    if (count == kMostAxisParts) {
      if (parts) parts[0] = {axis, residue, 0, false};
      return 1;
    }
    if (parts) {
      parts[count] = axis_part(axis, residue, q, next, taps);
      if (whole && count) {
        const AxisPart first = parts[0];
        parts[0] = parts[count];
        parts[count] = first;
      }
    }
    ++count;
  }
  return count;
}

/// Residues along d that own at least one pixel.
static inline int64_t residues(const ConvParams& p, int d) {
  return smaller(p.stride[d], p.in[d]);
}

}  // namespace brasa
