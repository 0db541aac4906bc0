// How warps of tensor-core kernels finish and store their results.
//
// An accumulator tile has a lane's results scattered: two columns in each of many places. A warp
// takes it through shared memory in pieces of 16 rows and kStageColumns columns, one after another,
// so that there is one copy of the code that finishes them, not one for each accumulator.
//
// Where rows are whole aligned packs and the activation is a common one, a lane takes packs of a
// row: bias, residual and results travel in 16 bytes. All else is one loop, a column to a lane:
// neighbouring lanes write neighbours wherever a row begins, and it has the only copy of the rare
// activations, which in every loop and for every lane of a pack were nine tenths of a kernel.
#pragma once

#include "core/epilogue.cuh"
#include "core/ptx_convert.cuh"
#include "core/ptx_math.cuh"

namespace brasa::cuda {

constexpr int kStageRows = 16, kStageColumns = 32;

/// Rows start 8 banks apart, so that the lanes of a warp write pairs without conflicts.
using WarpStage = float[kStageRows][kStageColumns + 8];

/// Where rows of a matrix begin.
struct MatrixRows {
  int64_t step;
  int64_t pitch() const { return step; }  ///< of rows that lie one behind the other
  BRASA_DEVICE_FN int64_t operator()(int64_t row) const { return row * step; }
};

/// Where the results of one position of the batch go: into `parts` as they are where K is split,
/// (m, n), else finished into y. `packs` says that all arrays may be written 16 bytes at a time.
template <class T, class Rows = MatrixRows> struct Results {
  int64_t m, n, offset;  ///< offset of the position in `parts`, or in arrays laid out as y
  T* y;
  float* parts;
  Epilogue<T> epilogue;
  bool packs;
  Rows rows;  ///< of arrays laid out as y
};

/// Sums that another kernel adds up and finishes: parts of (m, n), one behind the other. `offset`
/// is that of a part's own matrix.
struct PartSums {
  int64_t m, n, offset;
  float* parts;
  bool packs;
};

/// Up to kLanes neighbours of an array; `live` of them are inside.
template <int kLanes, class T>
BRASA_DEVICE_FN void read_some(const T* from, int live, bool packs, T (&to)[kLanes]) {
  constexpr int kPack = kLanes < simt::kPackLanes<T> ? kLanes : simt::kPackLanes<T>;
  if (packs && live == kLanes) {
#pragma unroll
    for (int i = 0; i < kLanes; i += kPack) {
      const auto pack = simt::load_pack<kPack>(from + i);
#pragma unroll
      for (int l = 0; l < kPack; ++l) to[i + l] = pack[l];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kLanes; ++i) to[i] = i < live ? from[i] : T{};
}
template <int kLanes>
BRASA_DEVICE_FN void write_some(float* to, int live, bool packs, const float (&from)[kLanes]) {
  constexpr int kPack = kLanes < 4 ? kLanes : 4;
  if (packs && live == kLanes) {
#pragma unroll
    for (int i = 0; i < kLanes; i += kPack) {
      simt::Pack<float, kPack> pack;
#pragma unroll
      for (int l = 0; l < kPack; ++l) pack[l] = from[i + l];
      simt::store_pack(to + i, pack);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kLanes; ++i)
    if (i < live) to[i] = from[i];
}
/// The same, rounded to a 16-bit type.
template <int kLanes, class T>
BRASA_DEVICE_FN void write_some(T* to, int live, bool packs, const float (&from)[kLanes]) {
  static_assert(sizeof(T) == 2);
  if (packs && live == kLanes) {
    simt::Pack<uint32_t, kLanes / 2> pack;
#pragma unroll
    for (int i = 0; i < kLanes / 2; ++i)
      pack[i] = simt::narrow_pair<T>(from[2 * i], from[2 * i + 1]);
    simt::store_pack(reinterpret_cast<uint32_t*>(to), pack);
    return;
  }
#pragma unroll
  for (int i = 0; i < kLanes; ++i)
    if (i < live) to[i] = simt::narrow<T>(from[i]);
}

/// v + bias + residual, kept where the backward pass wants it.
template <int kLanes, class T>
BRASA_DEVICE_FN void add_operands(const Epilogue<T>& e, int64_t column, int64_t at, int live,
                                  bool packs, float (&v)[kLanes]) {
  T some[kLanes];
  if (e.bias) {
    read_some(e.bias + column, live, packs, some);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) v[i] += simt::widen(some[i]);
  }
  if (e.wide_bias) {
    float wide[kLanes];
    read_some(e.wide_bias + column, live, packs, wide);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) v[i] += wide[i];
  }
  if (e.residual) {
    read_some(e.residual + at, live, packs, some);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) v[i] += simt::widen(some[i]);
  }
  if (e.pre_activation) write_some(e.pre_activation + at, live, packs, v);
}

/// 1/2 erfc(-v / sqrt(2)), within 10^-7: a polynomial of Hastings (Abramowitz and Stegun, 7.1.26),
/// in 16 instructions where erfcf takes 45.
BRASA_DEVICE_FN float rough_normal(float v) {
  const float t = __fdividef(1.0f, fmaf(0.23164189f, fabsf(v), 1.0f));
  float tail = fmaf(0.53070271f, t, -0.72657601f);
  tail = fmaf(tail, t, 0.71070687f);
  tail = fmaf(tail, t, -0.14224837f);
  tail = fmaf(tail, t, 0.12741480f);
  tail *= t * simt::exp2_approx(-0.72134752f * v * v);
  return v < 0.0f ? tail : 1.0f - tail;
}

/// What activate_commonly() has for results of T.
template <class T> BRASA_HOST_DEVICE_FN bool is_common(ActivationKind kind) {
  return kind == ActivationKind::none || kind == ActivationKind::relu ||
         (sizeof(T) == 2 && (kind == ActivationKind::gelu || kind == ActivationKind::silu));
}

/// The common activations, for all lanes of a pack side by side; for results of 16 bits smooth ones
/// too, without the care for float32's last places, whose branches would keep lanes apart.
template <class T, int kLanes>
BRASA_DEVICE_FN void activate_commonly(ActivationKind kind, float (&v)[kLanes]) {
  if (kind == ActivationKind::none) return;
  if (kind == ActivationKind::relu) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) v[i] = Relu::forward(v[i], 0.0f, 0.0f);
  } else if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const float share = kind == ActivationKind::gelu
                              ? rough_normal(v[i])
                              : __fdividef(1.0f, 1.0f + simt::exp2_approx(-1.44269504f * v[i]));
      v[i] = share == 0.0f ? 0.0f : v[i] * share;
    }
  }
}

/// Any activation.
template <class T, int kLanes>
BRASA_DEVICE_FN void activate(const Activation& activation, float (&v)[kLanes]) {
  if (is_common<T>(activation.kind)) return activate_commonly<T>(activation.kind, v);
  activate_registers(activation, v);
}

/// The rows of a stage that a lane has if lanes take kLanes neighbours: f(row, values) for each.
template <int kLanes, class F>
BRASA_DEVICE_FN void for_lanes(const WarpStage& stage, int rows, const F& f) {
  constexpr int kPerRow = kStageColumns / kLanes, kRowsAtOnce = simt::kWarpSize / kPerRow;
  const int lane = int(threadIdx.x) % simt::kWarpSize;
#pragma unroll 1
  for (int i = lane / kPerRow; i < rows; i += kRowsAtOnce) {
    float v[kLanes];
    read_some(&stage[i][lane % kPerRow * kLanes], kLanes, true, v);
    f(i, v);
  }
}
/// The first of the columns that such a lane has.
template <int kLanes> BRASA_DEVICE_FN int64_t column_of_lane(int64_t column) {
  return column + int(threadIdx.x) % (kStageColumns / kLanes) * kLanes;
}

/// Stores `rows` rows of `stage`, the first of them row `row` of the results.
template <int kLanes>
BRASA_DEVICE_FN void store_lanes(const PartSums& r, const WarpStage& stage, int rows, int64_t row,
                                 int64_t column) {
  column = column_of_lane<kLanes>(column);
  if (column >= r.n) return;
  for_lanes<kLanes>(stage, rows, [&](int i, float (&v)[kLanes]) {
    write_some(r.parts + simt::opaque(r.offset + (row + i) * r.n + column), kLanes, true, v);
  });
}
BRASA_DEVICE_FN void store_stage(const PartSums& r, const WarpStage& stage, int rows, int64_t row,
                                 int64_t column) {
  r.packs ? store_lanes<4>(r, stage, rows, row, column)
          : store_lanes<1>(r, stage, rows, row, column);
}

/// The same of finished results, a pack to a lane.
template <class T, class Rows>
BRASA_DEVICE_FN void store_packs(const Results<T, Rows>& r, const WarpStage& stage, int rows,
                                 int64_t row, int64_t column) {
  constexpr int kLanes = simt::kPackLanes<T>;
  column = column_of_lane<kLanes>(column);
  if (column >= r.n) return;
  for_lanes<kLanes>(stage, rows, [&](int i, float (&v)[kLanes]) {
    const int64_t at = simt::opaque(r.offset + r.rows(row + i) + column);
    if (!r.epilogue.is_trivial()) {
      add_operands(r.epilogue, column, at, kLanes, true, v);
      activate_commonly<T>(r.epilogue.activation.kind, v);
    }
    write_some(r.y + at, kLanes, true, v);
  });
}

/// The same of any results, a column to a lane.
template <class T, class Rows>
BRASA_DEVICE_FN void store_columns(const Results<T, Rows>& r, const WarpStage& stage, int rows,
                                   int64_t row, int64_t column) {
  column = column_of_lane<1>(column);
  if (column >= r.n) return;
  for_lanes<1>(stage, rows, [&](int i, float (&v)[1]) {
    const int64_t at = r.offset + r.rows(row + i) + column;
    v[0] = before_activation(r.epilogue, v[0], column, at);
    activate<T>(r.epilogue.activation, v);
    r.y[at] = simt::narrow<T>(v[0]);
  });
}

/// Finishes and stores `rows` rows of `stage`.
template <class T, class Rows>
BRASA_DEVICE_FN void store_stage(const Results<T, Rows>& r, const WarpStage& stage, int rows,
                                 int64_t row, int64_t column) {
  if (r.parts)
    store_stage(PartSums{r.m, r.n, r.offset, r.parts, r.packs}, stage, rows, row, column);
  else if (r.packs && is_common<T>(r.epilogue.activation.kind))
    store_packs(r, stage, rows, row, column);
  else
    store_columns(r, stage, rows, row, column);
}

/// Where a piece begins, and how many rows of the stage it has.
struct StagePiece {
  int64_t row, column;
  int rows;
};

/// Stores `pieces` pieces of a warp, one after another: place(p) is where piece p begins, and
/// fill(p) leaves it in `stage`. All lanes call.
template <class Results, class Place, class Fill>
BRASA_DEVICE_FN void store_pieces(const Results& r, WarpStage& stage, int pieces,
                                  const Place& place, const Fill& fill) {
#pragma unroll 1
  for (int p = 0; p < pieces; ++p) {
    const StagePiece piece = place(p);
    if (piece.row >= r.m || piece.column >= r.n) continue;
    fill(p);
    __syncwarp();
    const int rows = r.m - piece.row < piece.rows ? int(r.m - piece.row) : piece.rows;
    store_stage(r, stage, rows, piece.row, piece.column);
    __syncwarp();
  }
}

/// Which piece of a warp's accumulators follows which: those of a row of kColumns columns first.
template <int kColumns> BRASA_DEVICE_FN StagePiece own_piece(int64_t row, int64_t column, int p) {
  constexpr int kAcross = kColumns / kStageColumns;
  return {row + p / kAcross * kStageRows, column + p % kAcross * kStageColumns, kStageRows};
}

/// Leaves piece p of kPieces in the stage: sum(i, j, e) is in row 16 i + lane / 4 + 8 (e / 2),
/// column 8 j + 2 (lane % 4) + e % 2.
template <int kPieces, int kColumns, class Sum>
BRASA_DEVICE_FN void fill_stage(WarpStage& stage, int p, const Sum& sum) {
  constexpr int kAcross = kColumns / kStageColumns, kParts = kStageColumns / 8;
  const int lane = int(threadIdx.x) % simt::kWarpSize, group = lane / 4, quarter = lane % 4;
#pragma unroll
  for (int c = 0; c < kPieces; ++c) {  // registers have no address: one is taken
    if (c != p) continue;
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int part = c % kAcross * kParts + j;
        simt::Pack<float, 2> pair;
        pair[0] = sum(c / kAcross, part, 2 * half);
        pair[1] = sum(c / kAcross, part, 2 * half + 1);
        simt::store_pack(&stage[group + 8 * half][8 * j + 2 * quarter], pair);
      }
    }
  }
}

}  // namespace brasa::cuda
