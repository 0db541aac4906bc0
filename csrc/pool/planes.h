// Images in C order, forward: the rows of a window are reduced to one line, vectors along W; the
// line is then reduced along W, through phases (lines.h) or, for wide and adaptive windows, one
// output at a time.
//
// For the maximum with offsets both steps carry integer lanes beside the values: the vertical step
// the row of the winner, the horizontal step its offset. The first in scan order is the smallest
// offset, so a tie between columns goes to the smaller one.
#pragma once

#include "pool/lines.h"

namespace brasa::cpu::BRASA_ISA {

/// The scratch of one chunk. Integer lanes are kept in T's registers and memory as bits.
template <class T> struct PlaneBuffers {
  LinePlan plan;
  T* line;
  T* row_of;  ///< offsets of the winners' rows
  T* phases;
  T* row_phases;
  T* divisors;

  static int64_t elements(const PoolParams& p) {
    const LinePlan plan = input_plan<T>(p.w);
    return 2 * (plan.line + plan.stride * plan.phase) + round_up(p.w.out, 16) + 16;
  }

  PlaneBuffers(const PoolParams& p, T* memory, T padding) : plan(input_plan<T>(p.w)) {
    Scratch<T> scratch{memory};
    line = scratch.take(plan.line);
    row_of = scratch.take(plan.line);
    const bool split = plan.phased && plan.stride > 1;
    phases = split ? scratch.take(plan.stride * plan.phase) : line;
    row_phases = split ? scratch.take(plan.stride * plan.phase) : row_of;
    divisors = scratch.take(p.w.out + 16);
    fill(line, plan.line, padding);
    const Vec<T> no_row = (Vec<T>)int_lanes<T>(kNoRow);
    for (int64_t i = 0; i < plan.line; i += kLanes<T>) store(row_of + i, no_row);
  }
};

/// The rows of one window: the first of them, how far apart they are, the tap of the first.
template <class T> struct Rows {
  const T* first;
  int64_t count, step, tap;
};

template <class T> static Rows<T> rows_of(const PoolParams& p, const T* plane, int64_t oh) {
  const Window h = window_of(p.h, oh);
  return {plane + h.first * p.w.in, h.count, (p.h.adaptive ? 1 : p.h.dilation) * p.w.in, h.tap};
}

template <class T> static void add_rows(const Rows<T>& rows, int64_t n, T* line) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const int64_t live = n - i < kLanes<T> ? n - i : kLanes<T>;
    Vec<T> sum{};
    for (int64_t r = 0; r < rows.count; ++r) sum += read(rows.first + r * rows.step + i, live);
    write(line + i, sum, live);
  }
}

template <bool kKeep, class T>
static void max_rows(const Rows<T>& rows, int64_t n, int64_t kernel_w, T* line, T* row_of) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const int64_t live = n - i < kLanes<T> ? n - i : kLanes<T>;
    Vec<T> best = broadcast(T(-__builtin_inf()));
    IntVec<T> where = int_lanes<T>(rows.count ? rows.tap * kernel_w : kNoRow);
    for (int64_t r = 0; r < rows.count; ++r) {
      const Vec<T> value = read(rows.first + r * rows.step + i, live);
      const IntVec<T> better = (value > best) | (value != value);
      best = better ? value : best;
      if constexpr (kKeep) where = better ? int_lanes<T>((rows.tap + r) * kernel_w) : where;
    }
    write(line + i, best, live);
    if constexpr (kKeep) write(row_of + i, (Vec<T>)where, live);
  }
}

template <class T>
static void mean_line(const PoolParams& p, const PlaneBuffers<T>& b, T row_divisor, T* y) {
  if (!b.plan.phased) {
    for (int64_t o = 0; o < p.w.out; ++o) {
      const Window w = window_of(p.w, o);
      T total = 0;
      for (int64_t j = 0; j < w.count; ++j) total += b.line[w.first + j];
      y[o] = total / (row_divisor * b.divisors[o]);
    }
    return;
  }
  for (int64_t o = 0; o < p.w.out; o += kLanes<T>) {
    Vec<T> total{};
    for (int64_t j = 0; j < p.w.kernel; ++j) {
      const TapPlace place = tap_place(p.w, j);
      total += load(b.phases + place.phase * b.plan.phase + place.shift + o);
    }
    const Vec<T> divisor = broadcast(row_divisor) * load(b.divisors + o);
    write(y + o, total / divisor, p.w.out - o < kLanes<T> ? p.w.out - o : kLanes<T>);
  }
}

/// One output at a time.
template <class T, class Offset>
static void walk_max_line(const PoolParams& p, const PlaneBuffers<T>& b, T* y, Offset* offsets) {
  using Int = typename IntOf<T>::type;
  for (int64_t o = 0; o < p.w.out; ++o) {
    const Window w = window_of(p.w, o);
    T best = T(-__builtin_inf());
    Int where = Int(kNoRow) + Int(p.w.kernel);
    for (int64_t j = 0; j < w.count; ++j) {
      const int64_t at = w.first + j * (p.w.adaptive ? 1 : p.w.dilation);
      const T value = b.line[at];
      if constexpr (kKeeps<Offset>) {
        Int offset;
        __builtin_memcpy(&offset, b.row_of + at, sizeof(offset));
        offset += Int(w.tap + j);
        const bool later = value != value ? best == best || offset > where
                                          : value > best || (value == best && offset < where);
        where = later ? offset : where;
        best = later ? value : best;
      } else {
        best = value > best || value != value ? value : best;
      }
    }
    y[o] = best;
    if constexpr (kKeeps<Offset>) offsets[o] = Offset(where);
  }
}

template <class T, class Offset>
static void max_line(const PoolParams& p, const PlaneBuffers<T>& b, T* y, Offset* offsets) {
  if (!b.plan.phased) return walk_max_line(p, b, y, offsets);
  for (int64_t o = 0; o < p.w.out; o += kLanes<T>) {
    const int64_t live = p.w.out - o < kLanes<T> ? p.w.out - o : kLanes<T>;
    Vec<T> best = load(b.phases + o);
    IntVec<T> where = bits(load(b.row_phases + o));
    for (int64_t j = 1; j < p.w.kernel; ++j) {
      const TapPlace place = tap_place(p.w, j);
      const int64_t at = place.phase * b.plan.phase + place.shift + o;
      const Vec<T> value = load(b.phases + at);
      if constexpr (kKeeps<Offset>) {
        const IntVec<T> offset = bits(load(b.row_phases + at)) + typename IntOf<T>::type(j);
        const IntVec<T> later = (value > best) | ((value == best) & (offset < where)) |
                                ((value != value) & ((best == best) | (offset > where)));
        where = later ? offset : where;
        best = later ? value : best;
      } else {
        best = ((value > best) | (value != value)) ? value : best;
      }
    }
    write(y + o, best, live);
    if constexpr (kKeeps<Offset>) store_offsets<T>(offsets + o, where, live);
  }
}

/// Rows [begin, end) of the result, counted over all planes.
template <class T, class Offset>
void max_pool_planes(const PoolParams& p, const T* x, T* y, Offset* offsets, int64_t begin,
                     int64_t end, T* scratch) {
  const PlaneBuffers<T> b(p, scratch, T(-__builtin_inf()));
  for (int64_t row = begin; row < end; ++row) {
    const Rows<T> rows = rows_of(p, x + row / p.h.out * p.h.in * p.w.in, row % p.h.out);
    max_rows<kKeeps<Offset>>(rows, p.w.in, p.w.kernel, b.line + b.plan.pad, b.row_of + b.plan.pad);
    if (b.phases != b.line) {
      split_line(b.plan, b.line, b.phases);
      if constexpr (kKeeps<Offset>) split_line(b.plan, b.row_of, b.row_phases);
    }
    max_line(p, b, y + row * p.w.out, kKeeps<Offset> ? offsets + row * p.w.out : offsets);
  }
}

template <class T>
void mean_pool_planes(const PoolParams& p, const T* x, T* y, int64_t begin, int64_t end,
                      T* scratch) {
  const PlaneBuffers<T> b(p, scratch, T(0));
  fill_column_divisors(p, b.divisors, p.w.out + 16);
  for (int64_t row = begin; row < end; ++row) {
    const Rows<T> rows = rows_of(p, x + row / p.h.out * p.h.in * p.w.in, row % p.h.out);
    add_rows(rows, p.w.in, b.line + b.plan.pad);
    if (b.phases != b.line) split_line(b.plan, b.line, b.phases);
    mean_line(p, b, T(row_divisor(p, row % p.h.out)), y + row * p.w.out);
  }
}

}  // namespace brasa::cpu::BRASA_ISA
