// Products of a step: weights packed once per call, tiles of rows against panels, and who does
// what.
//
// A panel holds `blocks` vectors of hidden units for each of `gates` gates: of an LSTM the four
// gates of one vector of units, so that a tile of products is all that its units' gates need and
// they are applied while it is in L1. Plain matrices have one gate and as many blocks as a wide
// tile has vectors.
//
// Two ways to share the work out, the same bits either way. By units: a thread owns some panels of
// all rows, reads only its part of the weights again at every step (from L2 where it fits), and
// meets the others at a barrier after each step. By rows: a thread takes its rows through all
// steps, without any barrier, but reads all weights.
//
// Measured, two cores, LSTM T 50, B 32, H 256, in ms of 2.03: the products 1.67, 94 % of the FMA
// peak within a tile (panels stream from L2; fetching them ahead by hand: as fast or slower); h on
// its way between the cores, c and y 0.11; reading G 0.05 where L3 is quiet; the functions 0.2 (48
// cycles for 16 units, and filling the pipeline after each tile). With the input product of I 128,
// another 0.85 at 92 %, and 0.05 to pack the weights, the forward cannot go much below 2.75.
// Divisions cost nothing: one for several gates, or Newton's steps instead, were slower (81 and 107
// cycles for 71). Lost: fetching ahead gates that are in L3 (up to 4 % slower).
//
// Where neighbours crowd L3, which is most of the time, writing and reading G costs much more, and
// the forward took 3.3 to 3.7. So each tile makes its part of G itself, from x and the panel of
// W_ih beside that of W_hh, and G never leaves L1: 3.0 to 3.2, others (LSTM, GRU, simple cell of 64
// to 512 units) a tenth to a seventh faster, the same bits. The price is that W_ih is read at every
// step: equal at 14 to 19 MiB of weights, a fifth to a third slower at 32; with 2 to 4 rows to each
// reading slower from 2 MiB on (2 rows of H 256: 1.04 ms for 0.64). One row, or up to three steps,
// do not repay packing W_ih.
//
// The backward there is 5.9: the kernel 2.0 (its products 1.6; the rest is 832 bytes for every 16
// units, from L3), dx 0.82 (93 %), dW_ih 0.88, dW_hh 1.83 (83 %: packing a transposed A; parts of
// other heights gain 1 %).
#pragma once

#include "core/order.h"
#include "core/parallel.h"
#include "matmul/gemm_tile.h"
#include "rnn/rnn.h"

namespace brasa::cpu::BRASA_ISA {

/// Columns of scratch rows: whole vectors.
template <class T> BRASA_INLINE int64_t padded(int64_t columns) {
  return ceil_div(columns, kLanes<T>) * kLanes<T>;
}

/// A matrix (depth, units of every gate) of which element (k, gate, unit) is
/// w[gate * gate_stride + unit * unit_stride + k * depth_stride]; one of the last two is 1.
template <class T> struct Weights {
  const T* w;
  int64_t gates, units, depth, gate_stride, unit_stride, depth_stride;
};

/// The vectors of units are dealt out evenly: 13 make panels of 3, 3, 3 and 4.
template <class T> struct Panels {
  Weights<T> weights;
  int64_t count, depth;
  T* packed;

  int64_t vectors() const { return ceil_div(weights.units, kLanes<T>); }
  int64_t first_vector(int64_t i) const { return vectors() * i / count; }
  int64_t first_unit(int64_t i) const { return first_vector(i) * kLanes<T>; }
  int64_t blocks(int64_t i) const { return first_vector(i + 1) - first_vector(i); }
  int64_t width(int64_t i) const { return blocks(i) * weights.gates * kLanes<T>; }
  int64_t elements() const { return vectors() * weights.gates * kLanes<T> * depth; }
  T* panel(int64_t i) const { return packed + first_unit(i) * weights.gates * depth; }
};

template <class T> static Panels<T> make_panels(const Weights<T>& weights) {
  const int64_t most = kWideMainTile ? kWideTileVectors : kTileVectors;
  const int64_t vectors = ceil_div(weights.units, kLanes<T>);
  return {weights, weights.gates > 1 ? vectors : ceil_div(vectors, most), weights.depth, nullptr};
}

/// One vector of units of one gate over all of K, every `width` elements; 0 for lanes from `live`.
template <class T>
static void pack_vector(const Weights<T>& w, const T* from, int64_t live, int64_t width, T* to) {
  constexpr int kWidth = kLanes<T>;
  if (w.unit_stride == 1) {
    for (int64_t k = 0; k < w.depth; ++k, from += w.depth_stride, to += width)
      store(to, read(from, live));
    return;
  }
  for (int64_t k = 0; k < w.depth; k += kWidth) {
    const int64_t steps = w.depth - k < kWidth ? w.depth - k : kWidth;
    Vec<T> r[kWidth];
    load_transposed(from + k, w.unit_stride, live, steps, r);
    for (int i = 0; i < steps; ++i) store(to + (k + i) * width, r[i]);
  }
}

template <class T> static void pack_panels(const Panels<T>& p, int64_t begin, int64_t end) {
  const Weights<T>& w = p.weights;
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t q = 0; q < p.blocks(i) * w.gates; ++q) {
      const int64_t unit = p.first_unit(i) + q / w.gates * kLanes<T>, left = w.units - unit;
      pack_vector(w, w.w + q % w.gates * w.gate_stride + unit * w.unit_stride,
                  left < kLanes<T> ? left : kLanes<T>, p.width(i), p.panel(i) + q * kLanes<T>);
    }
  }
}

// ---------------------------------------------------------------------------------------- multiply

/// Rows of A: those of the first row, and from one to the next.
template <class T> struct Rows {
  const T* first;
  int64_t stride;
};

/// C (rows x a panel) = or += A B[k0 : k0 + depth] in blocks of K, + the panel's bias last; B
/// begins at k0's row of the panel.
template <class T>
static void multiply_rows(Rows<T> a, int64_t rows, const T* b, int64_t width, int64_t depth, T* c,
                          int64_t c_stride, bool accumulate, const T* bias = nullptr) {
  const int64_t blocks = order::gemm_blocks<T>(depth);
  const TileKernel<T> kernel = tile_kernel<T>(rows, width / kLanes<T>, false);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t begin = order::gemm_block_begin(depth, blocks, i);
    kernel({.depth = order::gemm_block_begin(depth, blocks, i + 1) - begin,
            .a = a.first + begin,
            .a_stride = a.stride,
            .b = b + begin * width,
            .b_stride = width,
            .c = c,
            .c_stride = c_stride,
            .columns = width,
            .accumulate = accumulate || i > 0,
            .bias = i + 1 < blocks ? nullptr : bias});
  }
}

/// The products of a tile of rows with a panel, on the stack.
constexpr int kVectorsOfTile = kTileRows * kTileVectors > kWideTileRows* kWideTileVectors
                                   ? kTileRows * kTileVectors
                                   : kWideTileRows * kWideTileVectors;
template <class T> constexpr int kTileElements = kVectorsOfTile * kLanes<T>;

/// f(row, count) for tiles of balanced height in [begin, end).
template <class F>
BRASA_INLINE void each_tile(int64_t begin, int64_t end, int64_t most, const F& f) {
  const int64_t rows = end - begin, tiles = ceil_div(rows, most);
  for (int64_t i = 0, row = begin; i < tiles; ++i) {
    const int64_t next = begin + rows * (i + 1) / tiles;
    f(row, next - row);
    row = next;
  }
}

// -------------------------------------------------------------------------------------------- team

/// A range of rows or panels.
struct Range {
  int64_t begin, end;
};
BRASA_INLINE Range share_of(int64_t n, int member, int size) {
  return {n * member / size, n * (member + 1) / size};
}

/// What one member of the team does.
struct Member {
  int index, size;
  bool by_rows;
  Barrier barrier;

  Range rows(int64_t batch) const {
    return by_rows ? share_of(batch, index, size) : Range{0, batch};
  }
  Range panels(int64_t count) const {
    return by_rows ? Range{0, count} : share_of(count, index, size);
  }
  /// Between phases that read what other members' panels gave.
  void meet() const {
    if (!by_rows && size > 1) barrier();
  }
  /// Packs a share; afterwards the panels this member reads are ready.
  template <class T> void pack(const Panels<T>& p) const {
    const Range share = share_of(p.count, index, size);
    pack_panels(p, share.begin, share.end);
  }
};

/// Below this many multiply-adds in a call a second thread costs more than it brings.
constexpr int64_t kRnnSerialWork = 200'000;

/// Rows per thread from which the rows are shared, and up to how many bytes of weights, which every
/// thread then reads at every step: those beside which L2 has room for more, or with many rows to
/// each reading. LSTM of H 256 (1 MiB): 8 rows a thread take 4.3 ms, by units 3.3; 16 and 32 rows
/// by units 3 to 8 % less than by rows, 64 the same. H 200 (640 KiB), 10 rows: 0.60 and 0.64. H
/// 1024: a fifth slower by rows, 2048 a third.
constexpr int64_t kRnnThreadRows = 8, kRnnNearBytes = 768 << 10;
constexpr int64_t kRnnManyRows = 64, kRnnSharedBytes = 8 << 20;

/// The forward makes the products of the inputs itself from so many steps on, and up to so many
/// bytes of weights; the last for fewer rows.
constexpr int64_t kRnnInputSteps = 4, kRnnInputRows = 8;
constexpr int64_t kRnnInputBytes = 12 << 20, kRnnInputNearBytes = 1 << 20;

/// Bytes of gates that are in memory rather than in a cache.
constexpr int64_t kRnnFarBytes = 16 << 20;

/// Of the weights read at every step.
BRASA_INLINE int64_t rnn_weights(const RnnParams& p) {
  return rnn_gates(p.cell) * p.hidden * (p.inputs + p.state);
}

static int rnn_team(const RnnParams& p, int threads) {
  return p.steps * p.batch * rnn_weights(p) < kRnnSerialWork ? 1 : threads;
}

template <class T> BRASA_INLINE bool shares_rows(const RnnParams& p, int size) {
  const int64_t weights = rnn_weights(p) * int64_t(sizeof(T));
  return weights < kRnnNearBytes ? p.batch >= kRnnThreadRows * size
                                 : p.batch >= kRnnManyRows * size && weights < kRnnSharedBytes;
}

/// Whether arrays of gates are in memory rather than in a cache.
template <class T> BRASA_INLINE bool gates_are_far(const RnnParams& p) {
  return p.steps * p.batch * rnn_gates(p.cell) * p.hidden * int64_t(sizeof(T)) >= kRnnFarBytes;
}

// ----------------------------------------------------------------------------------------- lengths

BRASA_INLINE bool is_alive(const RnnParams& p, int64_t t, int64_t b) {
  return !p.lengths || t < p.lengths[b];
}

BRASA_INLINE int64_t row_of(const RnnParams& p, int64_t t, int64_t b) {
  return t * p.row_step + b * p.row_batch;
}

/// The s-th step walked.
BRASA_INLINE int64_t time_of(const RnnParams& p, int64_t s) {
  return p.reverse ? p.steps - 1 - s : s;
}

/// The row of a state before the living (t, b): in `array`, in `initial`, or null where that is 0.
template <class T>
BRASA_INLINE const T* state_before(const RnnParams& p, const T* array, const T* initial,
                                   int64_t columns, int64_t t, int64_t b) {
  const int64_t before = p.reverse ? t + 1 : t - 1;
  if (before >= 0 && before < p.steps && is_alive(p, before, b))
    return array + row_of(p, before, b) * columns;
  return initial ? initial + b * columns : nullptr;
}

template <class T> BRASA_INLINE Vec<T> read_or_zero(const T* from, int64_t live) {
  return from ? read(from, live) : Vec<T>{};
}

}  // namespace brasa::cpu::BRASA_ISA
