// Images in C order, backward: a row of dx gathers from the rows of windows that cover it. In every
// phase of the row (lines.h) a tap reads consecutive outputs; the phases are then joined. Wide and
// adaptive windows scatter one output at a time within the row, which belongs to one thread. Every
// element of dx adds its windows in scan order either way.
#pragma once

#include "pool/lines.h"

namespace brasa::cpu::BRASA_ISA {

/// The scratch of one chunk.
template <class T> struct GradientBuffers {
  LinePlan plan;
  int64_t lead;  ///< zeros before the first output, as many as a tap may reach back
  T* dy;         ///< a row of dy, or the sum of several, between zeros
  T* column_of;  ///< the winners' columns as integer lanes, negative where none is
  T* phases;     ///< of dx
  T* line;       ///< the phases joined
  T* divisors;

  static int64_t lead_of(const PoolAxis& w) {
    return round_up((w.kernel - 1) * w.dilation / w.stride, 16);
  }
  static int64_t row_length(const PoolAxis& w, const LinePlan& plan) {
    if (!plan.phased) return plan.line;
    return lead_of(w) + round_up(w.out > plan.phase ? w.out : plan.phase, 16) + 16;
  }
  static int64_t elements(const PoolParams& p) {
    const LinePlan plan = gradient_plan<T>(p.w);
    return 2 * row_length(p.w, plan) + 2 * (plan.line + 16) + round_up(p.w.out, 16) + 16;
  }

  GradientBuffers(const PoolParams& p, T* memory) : plan(gradient_plan<T>(p.w)) {
    Scratch<T> scratch{memory};
    lead = plan.phased ? lead_of(p.w) : 0;
    const int64_t length = row_length(p.w, plan);
    dy = scratch.take(length);
    column_of = scratch.take(length);
    phases = scratch.take(plan.line);
    line = plan.stride > 1 ? scratch.take(plan.line) : phases;
    divisors = scratch.take(p.w.out + 16);
    fill(dy, length, T(0));
    const Vec<T> none = (Vec<T>)int_lanes<T>(-1);
    for (int64_t i = 0; i < length; i += kLanes<T>) store(column_of + i, none);
  }

  void write_row(const PoolAxis& w, T* dx) const {
    if (line != phases) join_line(plan, phases, line);
    for (int64_t i = 0; i < w.in; i += kLanes<T>)
      write(dx + i, load(line + plan.pad + i), w.in - i < kLanes<T> ? w.in - i : kLanes<T>);
  }
};

/// A row of dy and of offsets to the buffers, offsets as columns of the window's row `tap`.
template <class T, class Offset>
static void load_winners(const PoolAxis& w, const GradientBuffers<T>& b, const T* dy,
                         const Offset* offsets, int64_t tap) {
  for (int64_t o = 0; o < w.out; o += kLanes<T>) {
    const int64_t live = w.out - o < kLanes<T> ? w.out - o : kLanes<T>;
    const IntVec<T> column = load_offsets<T>(offsets + o, live) - int_lanes<T>(tap * w.kernel);
    write(b.dy + b.lead + o, read(dy + o, live), live);
    write(b.column_of + b.lead + o, (Vec<T>)column, live);
  }
}

/// phases += what the buffers' winners give to each input.
template <class T> static void gather_winners(const PoolAxis& w, const GradientBuffers<T>& b) {
  for (int64_t q = 0; q < w.stride; ++q) {
    T* phase = b.phases + q * b.plan.phase;
    for (int64_t m = 0; m < b.plan.phase; m += kLanes<T>) {
      Vec<T> sum = load(phase + m);
      for (int64_t j = w.kernel - 1; j >= 0; --j) {
        const TapPlace place = tap_place(w, j);
        if (place.phase != q) continue;
        const int64_t at = b.lead + m - place.shift;
        const IntVec<T> wins = bits(load(b.column_of + at)) == int_lanes<T>(j);
        sum += keep<T>(wins, load(b.dy + at));
      }
      store(phase + m, sum);
    }
  }
}

/// Row `tap` of the windows of one row of outputs, scattered to the row of dx.
template <class T, class Offset>
static void scatter_winners(const PoolAxis& w, const T* dy, const Offset* offsets, int64_t tap,
                            T* dx) {
  const int64_t first = tap * w.kernel, end = first + w.kernel;
  for (int64_t o = 0; o < w.out; ++o) {
    if (offsets[o] < first || offsets[o] >= end) continue;
    const int64_t column =
        window_begin(w, o) + (offsets[o] - first) * (w.adaptive ? 1 : w.dilation);
    if (column >= 0 && column < w.in) dx[column] += dy[o];
  }
}

template <class T, class Offset>
void max_pool_planes_backward(const PoolParams& p, const T* dy, const Offset* offsets, T* dx,
                              int64_t begin, int64_t end, T* scratch) {
  const GradientBuffers<T> b(p, scratch);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t plane = row / p.h.in, ih = row % p.h.in;
    T* target = dx + row * p.w.in;
    fill(b.plan.phased ? b.phases : target, b.plan.phased ? b.plan.line : p.w.in, T(0));
    const Covering h = covering(p.h, ih);
    for (int64_t oh = h.first; oh < h.end; ++oh) {
      const int64_t tap = tap_of(p.h, oh, ih), at = (plane * p.h.out + oh) * p.w.out;
      if (tap < 0) continue;
      if (b.plan.phased) {
        load_winners(p.w, b, dy + at, offsets + at, tap);
        gather_winners(p.w, b);
      } else {
        scatter_winners(p.w, dy + at, offsets + at, tap, target);
      }
    }
    if (b.plan.phased) b.write_row(p.w, target);
  }
}

/// sum += dy / divisor of the row's windows.
template <class T>
static void add_quotients(int64_t n, const T* dy, T row_divisor, const T* divisors, T* sum) {
  for (int64_t o = 0; o < n; o += kLanes<T>) {
    const int64_t live = n - o < kLanes<T> ? n - o : kLanes<T>;
    const Vec<T> divisor = broadcast(row_divisor) * load(divisors + o);
    write(sum + o, load(sum + o) + read(dy + o, live) / divisor, live);
  }
}

/// Every input gets the sum of its windows, taken from b.dy.
template <class T> static void spread_means(const PoolAxis& w, const GradientBuffers<T>& b, T* dx) {
  if (!b.plan.phased) {
    for (int64_t iw = 0; iw < w.in; ++iw) {
      const Covering c = covering(w, iw);
      T total = 0;
      for (int64_t ow = c.first; ow < c.end; ++ow) total += b.dy[ow];
      dx[iw] = total;
    }
    return;
  }
  for (int64_t q = 0; q < w.stride; ++q) {
    for (int64_t m = 0; m < b.plan.phase; m += kLanes<T>) {
      Vec<T> total{};
      for (int64_t j = w.kernel - 1; j >= 0; --j) {
        const TapPlace place = tap_place(w, j);
        if (place.phase == q) total += load(b.dy + b.lead + m - place.shift);
      }
      store(b.phases + q * b.plan.phase + m, total);
    }
  }
  b.write_row(w, dx);
}

template <class T>
void mean_pool_planes_backward(const PoolParams& p, const T* dy, T* dx, int64_t begin, int64_t end,
                               T* scratch) {
  const GradientBuffers<T> b(p, scratch);
  fill_column_divisors(p, b.divisors, p.w.out + 16);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t plane = row / p.h.in, ih = row % p.h.in;
    fill(b.dy + b.lead, p.w.out, T(0));
    const Covering h = covering(p.h, ih);
    for (int64_t oh = h.first; oh < h.end; ++oh)
      add_quotients(p.w.out, dy + (plane * p.h.out + oh) * p.w.out, T(row_divisor(p, oh)),
                    b.divisors, b.dy + b.lead);
    spread_means(p.w, b, dx + row * p.w.in);
  }
}

}  // namespace brasa::cpu::BRASA_ISA
