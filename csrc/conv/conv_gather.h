// The gather: what forward and backward data compute. conv_axis.h has its geometry.
#pragma once

#include "conv/conv_panels.h"
#include "conv/conv_stage.h"

namespace brasa::cpu::BRASA_ISA {

/// The output pixels that share one set of taps: one residue and part of each axis.
template <class T> struct GatherClass {
  Axis axis[3];
  bool inside;     ///< all taps of all pixels lie in the image, or in padding that is in memory
  int64_t pixels;  ///< batch included
  int64_t line;    ///< pixels in a row that lie at even steps, or 0: then read by a table
  int64_t block;   ///< pixels of one: what a panel of weights is read once for
  int64_t blocks;
  int64_t first_block;
  Tap* tap;
  int64_t taps, run;
  int64_t first_row;  ///< of panels, where the weights of these residues begin
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
  int64_t class_count, block, blocks;
  PanelWeights<T> weights;
};

/// Lists the taps of one class, which are those from first[d] on of whole[d] along each axis; with
/// `merged` one entry per row of taps.
template <class T>
static void list_taps(GatherClass<T>& part, const Source<T>& source, const int64_t* first,
                      const int64_t* whole, int64_t channels, bool merged) {
  const Axis* a = part.axis;
  Tap* tap = part.tap;
  for (int64_t d = 0; d < a[0].taps; ++d)
    for (int64_t h = 0; h < a[1].taps; ++h)
      for (int64_t w = 0; w < (merged ? smaller(a[2].taps, 1) : a[2].taps); ++w) {
        *tap = {{d * a[0].tap_step, h * a[1].tap_step, w * a[2].tap_step}, 0, 0};
        tap->offset = source.offset(tap->at[0], tap->at[1], tap->at[2]);
        tap->row =
            (((first[0] + d) * whole[1] + first[1] + h) * whole[2] + first[2] + w) * channels;
        ++tap;
      }
}

/// Enters at which row of a panel the weights of the taps along these axes begin, from `row` on,
/// and returns the row behind them.
static inline int64_t list_rows(const Axis* a, const int64_t* kernel, int64_t channels, int64_t row,
                                int64_t* first_row) {
  for (int64_t d = 0; d < a[0].taps; ++d)
    for (int64_t h = 0; h < a[1].taps; ++h)
      for (int64_t w = 0; w < a[2].taps; ++w, row += channels) {
        const int64_t at[3] = {a[0].kernel_first + d * a[0].kernel_step,
                               a[1].kernel_first + h * a[1].kernel_step,
                               a[2].kernel_first + w * a[2].kernel_step};
        first_row[(at[0] * kernel[1] + at[1]) * kernel[2] + at[2]] = row;
      }
  return row;
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
