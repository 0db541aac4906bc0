// Blocks of pixels and the tiles that compute them.
//
// Where rows are not tiny, pixels are taken by lines, at the left and right border by columns: a
// tile is one pointer and a step. Elsewhere a table has a pointer for every pixel and tap: tiles
// run over the ends of rows, and what was not cut at its borders (conv_axis.h) reads padding as a
// row of zeros.
#pragma once

#include "conv/conv_gather.h"

namespace brasa::cpu::BRASA_ISA {

/// Shorter lines make tiles too low: their pixels go by the table. So do lines that would be cut
/// into tiles below 5/6 of their height where a panel has more bytes than kLowTileBytes: each tile
/// reads it from L2 or L3.
constexpr int64_t kLeastLine = 4, kLowTileBytes = 128 * 1024;

static inline int line_rows(int vectors) {
  int rows = 0;
  visit_width(vectors, [&]<int kVectors>() { rows = kConvLineRows<kVectors>; });
  return rows;
}

template <class T> static bool makes_low_tiles(const Gather<T>& g, int64_t depth, int64_t line) {
  const int vectors = Panels<T>(g.group_out).width(0);
  if (line < kLeastLine) return true;
  if (depth * vectors * kVectorBytes<T> <= kLowTileBytes) return false;
  const int rows = line_rows(vectors);
  return 6 * line < 5 * rows * ceil_div(line, rows);
}

/// The axis that lines run along: a row of pixels or, at a border, a column.
template <class T> static int line_axis(const GatherClass<T>& part) {
  for (int d = 2; d > 0; --d)
    if (part.axis[d].count > 1) return d;
  return 2;
}

/// Between pixels of a line that are written, where those of axis d are out_step[d] apart.
template <class T> static int64_t line_step(const GatherClass<T>& part, const int64_t* out_step) {
  const int d = line_axis(part);
  return part.axis[d].out_step * out_step[d];
}

/// How long lines are: longer than the axis where such follow one another at the same step. `depth`
/// is that of all taps, also of those that lie in padding here.
template <class T>
static int64_t line_length(const Gather<T>& g, const GatherClass<T>& part, int64_t depth) {
  const Axis* a = part.axis;
  if (!part.inside) return 0;
  const int along = line_axis(part);
  const int64_t step = a[along].in_step * g.source.step[along],
                out_step = line_step(part, g.out_step);
  int64_t line = a[along].count;
  for (int d = along - 1; d >= -1; --d) {
    const int64_t next = d >= 0 ? a[d].in_step * g.source.step[d] : g.source.image;
    const int64_t out_next = d >= 0 ? a[d].out_step * g.out_step[d] : g.out_image;
    const int64_t count = d >= 0 ? a[d].count : g.batch;
    if (count > 1 && (next != line * step || out_next != line * out_step)) break;
    line *= count;
  }
  return makes_low_tiles(g, depth, line) ? 0 : line;
}

/// Pieces that a line is cut into, and lines in one block: one of the two is 1. Pieces are cut
/// between whole tiles of `rows` pixels: 222 pixels are 37 tiles of 6, not 40 of 5 and 6.
template <class T> static int64_t pieces_of(const GatherClass<T>& part) {
  return ceil_div(part.line, part.block);
}
template <class T> static int64_t piece_first(const GatherClass<T>& part, int64_t piece, int rows) {
  return smaller(part.line, ceil_div(part.line, rows) * piece / pieces_of(part) * rows);
}
/// Of short lines several make a block, while 64 blocks are left to share out: finding where lines
/// begin takes as long as a tile of 3 channels (12 % of 16 outputs of 3x3 on 32x32, batch 64).
constexpr int64_t kManyLines = 4 * kConvBlock, kLeastBlocks = 64;
static_assert(kManyLines / kLeastLine <= kConvBlock);

template <class T> static int64_t lines_per_block(const GatherClass<T>& part) {
  if (part.line > part.block) return 1;
  return larger(part.block, smaller(kManyLines, part.pixels / kLeastBlocks)) / part.line;
}

template <class T> static int64_t count_blocks(const GatherClass<T>& part) {
  if (!part.line) return ceil_div(part.pixels, part.block);
  return ceil_div(part.pixels / part.line, lines_per_block(part)) * pieces_of(part);
}

/// Places pixel `index` of a class: where its first tap is read, in image coordinates and memory,
/// and where it is written.
template <class T> struct Place {
  int64_t at[3];
  const T* in;
  T* out;

  Place(const Gather<T>& g, const Axis* axis, const PixelCursor& pixel) {
    int64_t offset = pixel.n * g.out_image;
    for (int d = 0; d < 3; ++d) {
      at[d] = pixel.q[d] * axis[d].in_step + axis[d].in_first;
      offset += (axis[d].out_first + pixel.q[d] * axis[d].out_step) * g.out_step[d];
    }
    out = g.out + offset;
    in = g.source.data + pixel.n * g.source.image + g.source.offset(at[0], at[1], at[2]);
  }
};

/// A range of panels, packed one after another.
template <class T> struct PackedRange {
  PanelRange range;
  const T* packed;
};

/// What one panel's tiles share.
template <class T> struct PanelPlace {
  int width;
  const T* w;
  const T* start;
  int64_t in_channel, out_channel, live;

  PanelPlace(const Gather<T>& g, const GatherClass<T>& part, const Panels<T>& panels,
             const PackedRange<T>& from, int64_t i) {
    const int64_t group = i / panels.count, panel = i % panels.count;
    const int64_t column = g.weights.column(i),
                  before = column - g.weights.column(from.range.begin);
    width = panels.width(panel);
    w = from.packed + before * g.weights.depth() + part.first_row * width * kLanes<T>;
    start = g.start + column;
    in_channel = group * g.group_in;
    out_channel = group * g.group_out + panels.column(panel);
    live = panels.live(panel);
  }
};

/// Taps whose rows of a panel stay in L2 while the tiles of a block go over them; the sums wait in
/// `out` for the next ones. A panel of 512 channels of 3x3 has 1.1 MiB; read from L3 for every tile
/// it costs 5 % of a layer.
constexpr int64_t kPanelBytes = 400 * 1024;

template <class T>
static int64_t taps_at_a_time(const GatherClass<T>& part, const Panels<T>& panels) {
  return larger(1, kPanelBytes / (larger(1, part.run) * panels.width(0) * kVectorBytes<T>));
}

// ---- by lines

template <class T> struct LineBlock {
  int64_t count = 0, pixels = 0;
  const T* in[kConvBlock];
  T* out[kConvBlock];
  int64_t length[kConvBlock];

  void add(const Gather<T>& g, const GatherClass<T>& part, int64_t line, int64_t begin,
           int64_t end) {
    const Place<T> place(g, part.axis, PixelCursor(part.axis, line * part.line + begin));
    in[count] = place.in;
    out[count] = place.out;
    length[count++] = end - begin;
    pixels += end - begin;
  }
};

template <class T>
static LineBlock<T> place_lines(const Gather<T>& g, const GatherClass<T>& part, int64_t block) {
  LineBlock<T> lines;
  const int64_t pieces = pieces_of(part), per_block = lines_per_block(part);
  const int64_t first = block / pieces * per_block, piece = block % pieces;
  const int64_t last = smaller(part.pixels / part.line, first + per_block);
  const int rows = line_rows(Panels<T>(g.group_out).width(0));
  for (int64_t line = first; line < last; ++line)
    lines.add(g, part, line, piece_first(part, piece, rows), piece_first(part, piece + 1, rows));
  return lines;
}

template <class T, int kVectors>
static void run_line_panel(const LineInput<T>& input, const PanelPlace<T>& panel,
                           const LineBlock<T>& block, bool resume) {
  LineTile<T> multiply = nullptr;
  int picked = 0;
  for (int64_t line = 0; line < block.count; ++line) {
    const int64_t length = block.length[line], tiles = ceil_div(length, kConvLineRows<kVectors>);
    const T* in = block.in[line] + panel.in_channel;
    T* out = block.out[line] + panel.out_channel;
    int rows = int(length / tiles);
    for (int64_t tile = 0, higher = tiles - length % tiles; tile < tiles; ++tile) {
      if (tile == higher) ++rows;
      if (rows != picked) multiply = pick_line_tile<T, kVectors>(picked = rows);
      multiply(input, in, panel.w, resume ? nullptr : panel.start, out, panel.live);
      in += rows * input.step;
      out += rows * input.out_step;
    }
  }
}

template <class T>
static void run_lines(const Gather<T>& g, const GatherClass<T>& part, const LineBlock<T>& block,
                      const PackedRange<T>& from) {
  const Panels<T> panels(g.group_out);
  const int64_t most = taps_at_a_time(part, panels);
  const int d = line_axis(part);
  int64_t first = 0;
  do {
    const LineInput<T> input{part.tap + first, smaller(most, part.taps - first), part.run,
                             part.axis[d].in_step * g.source.step[d], line_step(part, g.out_step)};
    for (int64_t i = from.range.begin; i < from.range.end; ++i) {
      const PanelPlace<T> panel(g, part, panels, from, i);
      visit_width(panel.width, [&]<int kVectors>() {
        run_line_panel<T, kVectors>(input, panel, block, first > 0);
      });
    }
    first += most;
  } while (first < part.taps);
}

// ---- by table

/// A block of pixels: where each is written, and its first tap.
template <class T> struct PixelBlock {
  static constexpr int kBeyond = 24;  // a tile and the next one may be read beyond the last pixel
  static constexpr int kSlots = kConvBlock + kBeyond;
  int64_t count;
  T* out[kSlots];
  const T* in[kSlots];
  int64_t at[kSlots][3];
};

/// Pixels [first, first + count) of the class.
template <class T>
static void place_pixels(const Gather<T>& g, const GatherClass<T>& part, int64_t first,
                         int64_t count, PixelBlock<T>& block) {
  const Axis* a = part.axis;
  const int64_t in_step = a[2].in_step * g.source.step[2], out_step = a[2].out_step * g.out_step[2];
  PixelCursor pixel(a, first);
  block.count = count;
  for (int64_t i = 0; i < count;) {
    const Place<T> place(g, a, pixel);
    const int64_t run = smaller(a[2].count - pixel.q[2], count - i);
    for (int64_t j = 0; j < run; ++j) {
      block.in[i + j] = place.in + j * in_step;
      block.out[i + j] = place.out + j * out_step;
    }
    for (int64_t j = 0; j < run; ++j) {
      block.at[i + j][0] = place.at[0];
      block.at[i + j][1] = place.at[1];
      block.at[i + j][2] = place.at[2] + j * a[2].in_step;
    }
    i += run;
    pixel.q[2] += run - 1;
    pixel.advance(a);
  }
  for (int64_t i = count; i < count + PixelBlock<T>::kBeyond; ++i) {
    block.in[i] = block.in[0];
    block.out[i] = block.out[0];
    for (int d = 0; d < 3; ++d) block.at[i][d] = block.at[0][d];
  }
}

/// Bit t: whether the pixel at `at` reads tap first + t from within the image.
template <class T>
static uint64_t existing_taps(const Gather<T>& g, const GatherClass<T>& part, const int64_t* at,
                              int64_t first, int64_t count) {
  const int64_t* size = g.source.size;
  bool inside = true;
  for (int d = 0; d < 3; ++d)
    inside &= at[d] >= 0 && at[d] + (part.axis[d].taps - 1) * part.axis[d].tap_step < size[d];
  if (inside) return ~uint64_t{0};
  uint64_t exists = 0;
  for (int64_t t = 0; t < count; ++t) {
    const Tap& tap = part.tap[first + t];
    exists |= uint64_t(uint64_t(at[0] + tap.at[0]) < uint64_t(size[0]) &&
                       uint64_t(at[1] + tap.at[1]) < uint64_t(size[1]) &&
                       uint64_t(at[2] + tap.at[2]) < uint64_t(size[2]))
              << t;
  }
  return exists;
}

/// table[t][i]: where tap first + t of pixel i is read; zeros where that is outside of the image.
template <class T>
static void point_taps(const Gather<T>& g, const GatherClass<T>& part, const PixelBlock<T>& block,
                       int64_t first, int64_t count, const T** table) {
  constexpr int kSlots = PixelBlock<T>::kSlots;
  static_assert(kConvTableTaps <= 64);
  const int64_t slots = block.count + block.kBeyond;
  if (part.inside) {
    for (int64_t t = 0; t < count; ++t)
      for (int64_t i = 0; i < slots; ++i)
        table[t * kSlots + i] = block.in[i] + part.tap[first + t].offset;
    return;
  }
  uint64_t exists[kSlots];
  for (int64_t i = 0; i < slots; ++i) exists[i] = existing_taps(g, part, block.at[i], first, count);
  const T* zeros = g.zeros;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t offset = part.tap[first + t].offset;
    for (int64_t i = 0; i < slots; ++i)
      table[t * kSlots + i] = exists[i] >> t & 1 ? block.in[i] + offset : zeros;
  }
}

template <class T, int kVectors>
static void run_table_panel(TableInput<T> input, const PanelPlace<T>& panel,
                            const PixelBlock<T>& block, bool resume) {
  constexpr int kRows = kConvRows<kVectors>;
  for (int64_t i = 0; i < block.count; i += kRows, input.pointers += kRows)
    table_tile<T, kRows, kVectors>(input, panel.w, panel.start, block.out + i, panel.out_channel,
                                   panel.live, int(smaller(kRows, block.count - i)), resume);
}

template <class T>
static void run_table(const Gather<T>& g, const GatherClass<T>& part, const PixelBlock<T>& block,
                      const PackedRange<T>& from) {
  const Panels<T> panels(g.group_out);
  constexpr int kSlots = PixelBlock<T>::kSlots;
  const T* table[kConvTableTaps * kSlots];
  const int64_t most = smaller(kConvTableTaps, taps_at_a_time(part, panels));
  int64_t first = 0;
  do {
    const int64_t taps = smaller(most, part.taps - first);
    point_taps(g, part, block, first, taps, table);
    for (int64_t i = from.range.begin; i < from.range.end; ++i) {
      const PanelPlace<T> panel(g, part, panels, from, i);
      const TableInput<T> input{table, part.tap + first, kSlots, taps, part.run, panel.in_channel};
      visit_width(panel.width, [&]<int kVectors>() {
        run_table_panel<T, kVectors>(input, panel, block, first > 0);
      });
    }
    first += taps;
  } while (first < part.taps);
}

}  // namespace brasa::cpu::BRASA_ISA
