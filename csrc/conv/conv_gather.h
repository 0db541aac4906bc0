// The gather: what forward and backward data compute. conv_axis.h has its geometry.
#pragma once

#include "conv/conv_stage.h"
#include "conv/conv_tile.h"
#include "conv/conv_transpose.h"

namespace brasa::cpu::BRASA_ISA {

/// The output pixels that share one set of taps: one residue and part of each axis.
template <class T> struct GatherClass {
  Axis axis[3];
  bool inside;         ///< all taps of all pixels lie in the image, or in padding that is in memory
  int64_t pixels;      ///< batch included
  int64_t line;        ///< pixels in a row that lie at even steps, or 0: then read by a table
  int64_t blocks;      ///< of pixels: what a panel of weights is read once for
  int64_t first_item;  ///< of the work handed to threads
  Tap* tap;
  int64_t taps, run;
  T* packed;      ///< [group][panel][row][panel's columns], of all taps of these residues
  int64_t depth;  ///< rows of a panel
};

/// Where the weights of one element of the kernel are packed: in the panels of its residues, which
/// have `depth` rows of which its channels begin at `first`. Null where no pixel asks for it.
template <class T> struct PackedTap {
  T* packed;
  int64_t depth, first;
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
  PackedTap<T>* packed_tap;  ///< of the kernel's elements in C order
  int64_t class_count, items, splits;
};

/// Channels whose weights are packed at a time.
constexpr int64_t kPackedChannels = 32;

/// One vector of columns of a panel, `live` of which exist: where its weights go.
template <class T> struct PackedVector {
  int64_t live, panel, pitch, lane;

  PackedVector(const Panels<T>& panels, int64_t group, int64_t number, int64_t vector)
      : live(smaller(kLanes<T>, panels.live(number) - vector * kLanes<T>)),
        panel(group * panels.padded() + panels.column(number)),
        pitch(panels.width(number) * kLanes<T>),
        lane(vector * kLanes<T>) {}
  __attribute__((always_inline)) void put(const PackedTap<T>& tap, int64_t channel,
                                          Vec<T> weights) const {
    if (tap.packed)
      store(tap.packed + panel * tap.depth + (tap.first + channel) * pitch + lane, weights);
  }
};

/// Channels [begin, end) of w[column][channel][k]: a column's weights follow one another.
template <class T>
static void pack_forward(const Gather<T>& g, const PackedVector<T>& to, const T* w, int64_t taps,
                         int64_t begin, int64_t end) {
  int64_t c = begin, k = 0;
  transpose_rows(w + (to.lane * g.group_in + begin) * taps, g.group_in * taps, to.live,
                 (end - begin) * taps, [&](int64_t, Vec<T> weights) {
                   to.put(g.packed_tap[k], c, weights);
                   if (++k == taps) k = 0, ++c;
                 });
}

/// One channel of w[channel][column][k].
template <class T>
static void pack_backward(const Gather<T>& g, const PackedVector<T>& to, const T* w, int64_t taps,
                          int64_t channel) {
  const T* from = w + (channel * g.group_out + to.lane) * taps;
  if (taps == 1)
    to.put(*g.packed_tap, channel, load_live(from, to.live));
  else
    transpose_rows(from, taps, to.live, taps,
                   [&](int64_t k, Vec<T> weights) { to.put(g.packed_tap[k], channel, weights); });
}

/// Packs w (out_channels, in_channels / groups, taps) for all classes.
template <class T>
static void pack_weights(Context ctx, const Gather<T>& g, const T* w, int64_t taps, bool backward) {
  const Panels<T> panels(g.group_out);
  const int64_t pieces = ceil_div(g.group_in, kPackedChannels);
  parallel_for(ctx, g.groups * panels.count * pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i % pieces * kPackedChannels,
                    end = smaller(begin + kPackedChannels, g.group_in);
      const int64_t panel = i / pieces % panels.count, group = i / pieces / panels.count;
      const T* from = w + (group * g.group_out * g.group_in +
                           panels.column(panel) * (backward ? 1 : g.group_in)) *
                              taps;
      for (int64_t c = begin; c < end; c = backward ? c + 1 : end)
        for (int64_t v = 0; v < panels.width(panel); ++v) {
          const PackedVector<T> to(panels, group, panel, v);
          if (backward)
            pack_backward(g, to, from, taps, c);
          else
            pack_forward(g, to, from, taps, begin, end);
        }
    }
  });
}

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

/// Enters where the weights of the taps along these axes are packed into `entry`.
template <class T>
static void list_packed_taps(const Axis* a, T* packed, const int64_t* kernel, int64_t channels,
                             PackedTap<T>* entry) {
  const int64_t depth = a[0].taps * a[1].taps * a[2].taps * channels;
  int64_t first = 0;
  for (int64_t d = 0; d < a[0].taps; ++d)
    for (int64_t h = 0; h < a[1].taps; ++h)
      for (int64_t w = 0; w < a[2].taps; ++w, first += channels) {
        const int64_t at[3] = {a[0].kernel_first + d * a[0].kernel_step,
                               a[1].kernel_first + h * a[1].kernel_step,
                               a[2].kernel_first + w * a[2].kernel_step};
        entry[(at[0] * kernel[1] + at[1]) * kernel[2] + at[2]] = {packed, depth, first};
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
