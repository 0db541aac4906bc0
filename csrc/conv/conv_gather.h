// The gather: what forward and backward data compute. conv_plan.h has its geometry, conv_tile.h its
// loop.
#pragma once

#include "conv/conv_stage.h"
#include "conv/conv_tile.h"

namespace brasa::cpu::BRASA_ISA {

/// The output pixels that share one set of taps.
template <class T> struct GatherClass {
  Axis axis[3];
  int64_t pixels;      ///< batch included
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

/// A block of pixels: where each is written, and its first tap.
template <class T> struct PixelBlock {
  static constexpr int kSlots = kConvBlock + 12;  // a tile may read pointers beyond the last pixel
  int64_t count;
  T* out[kSlots];
  const T* in[kSlots];
  int64_t at[kSlots][3];
};

template <class T>
static void place_pixels(const Gather<T>& g, const GatherClass<T>& part, int64_t first,
                         PixelBlock<T>& block) {
  const Axis* axis = part.axis;
  PixelCursor pixel(axis, first);
  block.count = smaller(kConvBlock, part.pixels - first);
  for (int64_t i = 0; i < block.count; ++i, pixel.advance(axis)) {
    int64_t* at = block.at[i];
    int64_t out = pixel.n * g.out_image;
    for (int d = 0; d < 3; ++d) {
      at[d] = pixel.q[d] * axis[d].in_step + axis[d].in_first;
      out += (axis[d].out_first + pixel.q[d] * axis[d].out_step) * g.out_step[d];
    }
    block.out[i] = g.out + out;
    block.in[i] = g.source.data + pixel.n * g.source.image + g.source.offset(at[0], at[1], at[2]);
  }
  for (int64_t i = block.count; i < PixelBlock<T>::kSlots; ++i) {
    block.out[i] = block.out[block.count - 1];
    block.in[i] = block.in[block.count - 1];
    for (int d = 0; d < 3; ++d) block.at[i][d] = block.at[block.count - 1][d];
  }
}

/// table[t][i]: where tap first + t of pixel i is read; zeros where that is outside of the image.
template <class T>
static void point_taps(const Gather<T>& g, const GatherClass<T>& part, const PixelBlock<T>& block,
                       int64_t first, int64_t count, const T** table) {
  constexpr int kSlots = PixelBlock<T>::kSlots;
  const int64_t* size = g.source.size;
  for (int i = 0; i < kSlots; ++i) {
    const int64_t* at = block.at[i];
    bool inside = true;
    for (int d = 0; d < 3; ++d)
      inside &= at[d] >= 0 && at[d] + (part.axis[d].taps - 1) * part.axis[d].tap_step < size[d];
    for (int64_t t = 0; t < count; ++t) {
      const Tap& tap = part.tap[first + t];
      const bool exists = inside || (uint64_t(at[0] + tap.at[0]) < uint64_t(size[0]) &&
                                     uint64_t(at[1] + tap.at[1]) < uint64_t(size[1]) &&
                                     uint64_t(at[2] + tap.at[2]) < uint64_t(size[2]));
      table[t * kSlots + i] = exists ? block.in[i] + tap.offset : g.zeros;
    }
  }
}

template <class T> struct TileRun {
  TileInput<T> input;
  const T* w;
  const T* start;
  int64_t column, live;
  bool resume;
};

template <class T, int kVectors, bool kTable>
static void run_tiles(const TileRun<T>& run, const PixelBlock<T>& block) {
  constexpr int kRows = kConvRows<kVectors>;
  TileInput<T> input = run.input;
  for (int64_t i = 0; i < block.count; i += kRows) {
    input.pointers = run.input.pointers + i;
    gather_tile<T, kRows, kVectors, kTable>(input, run.w, run.start, block.out + i, run.column,
                                            run.live, int(smaller(kRows, block.count - i)),
                                            run.resume);
  }
}

template <class T, bool kTable>
static void run_panel(const TileRun<T>& run, int vectors, const PixelBlock<T>& block) {
  switch (vectors) {
    case 1:
      return run_tiles<T, 1, kTable>(run, block);
    case 2:
      return run_tiles<T, 2, kTable>(run, block);
#if defined(__AVX512F__) || defined(__aarch64__)
    case 3:
      return run_tiles<T, 3, kTable>(run, block);
    case 4:
      return run_tiles<T, 4, kTable>(run, block);
#endif
  }
}

/// Panels [begin, end), counted over all groups, of one block of pixels.
template <class T>
static void run_block(const Gather<T>& g, const GatherClass<T>& part, const PixelBlock<T>& block,
                      int64_t begin, int64_t end) {
  const Panels<T> panels(g.group_out);
  constexpr int kSlots = PixelBlock<T>::kSlots;
  const T* table[kConvTableTaps * kSlots];
  const int64_t step = g.source.covers ? larger(1, part.taps) : kConvTableTaps;
  int64_t first = 0;
  do {
    const int64_t taps = smaller(step, part.taps - first);
    if (!g.source.covers) point_taps(g, part, block, first, taps, table);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / panels.count, panel = i % panels.count;
      const int width = panels.width(panel);
      const int64_t column = group * panels.padded() + panels.column(panel);
      TileRun<T> run{
          {block.in, kSlots, part.tap, taps, part.run, group * g.group_in},
          part.packed + column * part.taps * part.run + first * part.run * width * kLanes<T>,
          g.start + column,
          group * g.group_out + panels.column(panel),
          panels.live(panel),
          first > 0};
      if (g.source.covers) {
        run_panel<T, false>(run, width, block);
      } else {
        run.input.pointers = table;
        run_panel<T, true>(run, width, block);
      }
    }
    first += taps;
  } while (first < part.taps);
}

}  // namespace brasa::cpu::BRASA_ISA
