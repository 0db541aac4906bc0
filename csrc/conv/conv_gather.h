// The gather: what forward and backward data compute. conv_axis.h has its geometry.
#pragma once

#include "conv/conv_stage.h"
#include "conv/conv_tile.h"

namespace brasa::cpu::BRASA_ISA {

/// The output pixels that share one set of taps.
template <class T> struct GatherClass {
  Axis axis[3];
  int64_t pixels;      ///< batch included
  int64_t line;        ///< pixels in a row that lie at even steps, or 0: then read by a table
  int64_t blocks;      ///< of pixels: what a panel of weights is read once for
  int64_t first_item;  ///< of the work handed to threads
  Tap* tap;
  int64_t taps, run;
  T* packed;  ///< [group][panel][tap][run][panel's columns]
};

template <class T> struct Gather {
  int64_t batch, groups, group_in, group_out;
  Source<T> source;
  T* staged;
  T* zeros;  ///< a pixel of padding, all groups' channels
  T* start;  ///< what each output channel's sum starts at, [group][padded columns]
  T* out;
  int64_t out_image, out_step[3];
  GatherClass<T>* classes;
  int64_t class_count, items, splits;
};

/// Where a weight stands: taps in C order, `in` and `out` the channels as the gather sees them.
struct WeightStrides {
  int64_t group, out, in, tap[3];
};

/// packed[tap][channel][column] for the columns of one panel, zeros beyond the last channel.
template <class T>
static void pack_panel(const Axis* axis, const T* w, const WeightStrides& stride, int64_t channels,
                       int64_t live, int64_t columns, T* packed) {
  for (int64_t d = 0; d < axis[0].taps; ++d)
    for (int64_t h = 0; h < axis[1].taps; ++h)
      for (int64_t k = 0; k < axis[2].taps; ++k) {
        const T* from = w + (axis[0].kernel_first + d * axis[0].kernel_step) * stride.tap[0] +
                        (axis[1].kernel_first + h * axis[1].kernel_step) * stride.tap[1] +
                        (axis[2].kernel_first + k * axis[2].kernel_step) * stride.tap[2];
        for (int64_t c = 0; c < channels; ++c, packed += columns) {
          for (int64_t o = 0; o < live; ++o) packed[o] = from[o * stride.out + c * stride.in];
          for (int64_t o = live; o < columns; ++o) packed[o] = T(0);
        }
      }
}

template <class T>
static void pack_weights(Context ctx, const Gather<T>& g, const T* w, const WeightStrides& stride) {
  const Panels<T> panels(g.group_out);
  parallel_for(ctx, g.groups * panels.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / panels.count, panel = i % panels.count;
      for (int64_t k = 0; k < g.class_count; ++k) {
        const GatherClass<T>& part = g.classes[k];
        const int64_t depth = part.taps * part.run;
        pack_panel(part.axis, w + group * stride.group + panels.column(panel) * stride.out, stride,
                   g.group_in, panels.live(panel), panels.width(panel) * kLanes<T>,
                   part.packed + (group * panels.padded() + panels.column(panel)) * depth);
      }
    }
  });
}

/// Lists the taps of one class; with `merged` one entry per row of taps.
template <class T>
static void list_taps(GatherClass<T>& part, const Source<T>& source, bool merged) {
  const Axis* a = part.axis;
  Tap* tap = part.tap;
  for (int64_t d = 0; d < a[0].taps; ++d)
    for (int64_t h = 0; h < a[1].taps; ++h)
      for (int64_t w = 0; w < (merged ? smaller(a[2].taps, 1) : a[2].taps); ++w) {
        *tap = {{d * a[0].tap_step, h * a[1].tap_step, w * a[2].tap_step}, 0};
        tap->offset = source.offset(tap->at[0], tap->at[1], tap->at[2]);
        ++tap;
      }
}

/// Walks the pixels of a class in memory order.
struct PixelCursor {
  int64_t n, q[3];
  PixelCursor(const Axis* axis, int64_t pixel)
      : n(pixel / (axis[0].count * axis[1].count * axis[2].count)),
        q{pixel / (axis[1].count * axis[2].count) % axis[0].count,
          pixel / axis[2].count % axis[1].count, pixel % axis[2].count} {}
  void advance(const Axis* axis) {
    for (int d = 2; d >= 0; --d) {
      if (++q[d] < axis[d].count) return;
      q[d] = 0;
    }
    ++n;
  }
};

}  // namespace brasa::cpu::BRASA_ISA
