// How warps of tensor-core kernels finish and store their results.
//
// An accumulator tile has a lane's results scattered: two columns in each of many places. A warp
// takes it through shared memory, kStageColumns columns of 16 rows at a time, so that each lane
// then has whole packs of a row: bias, residual and results travel in 16 bytes, and there is one
// copy of the code that finishes them, not one for each accumulator.
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
template <int kLanes, class T, class Rows>
BRASA_DEVICE_FN void add_operands(const Results<T, Rows>& r, int64_t column, int64_t at, int live,
                                  float (&v)[kLanes]) {
  const Epilogue<T>& e = r.epilogue;
  T some[kLanes];
  if (e.bias) {
    read_some(e.bias + column, live, r.packs, some);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) v[i] += simt::widen(some[i]);
  }
  if (e.wide_bias) {
    float wide[kLanes];
    read_some(e.wide_bias + column, live, r.packs, wide);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) v[i] += wide[i];
  }
  if (e.residual) {
    read_some(e.residual + at, live, r.packs, some);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) v[i] += simt::widen(some[i]);
  }
  if (e.pre_activation) write_some(e.pre_activation + at, live, r.packs, v);
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

/// The common activations for results of 16 bits, smooth ones without the care for float32's last
/// places: its branches would keep a thread's elements from being computed side by side.
template <int kLanes>
BRASA_DEVICE_FN bool activate_roughly(ActivationKind kind, float (&v)[kLanes]) {
  if (kind == ActivationKind::relu) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) v[i] = v[i] < 0.0f ? 0.0f : v[i];
    return true;
  }
  if (kind != ActivationKind::gelu && kind != ActivationKind::silu) return false;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    const float share = kind == ActivationKind::gelu
                            ? rough_normal(v[i])
                            : __fdividef(1.0f, 1.0f + simt::exp2_approx(-1.44269504f * v[i]));
    v[i] = share == 0.0f ? 0.0f : v[i] * share;
  }
  return true;
}

/// Others by twos: a copy of each activation for each of many elements would be most of a kernel.
template <class T, int kLanes>
BRASA_DEVICE_FN void activate_lanes(const Activation& activation, float (&v)[kLanes]) {
  if (activation.kind == ActivationKind::none) return;
  if (sizeof(T) == 2 && activate_roughly(activation.kind, v)) return;
#pragma unroll 1
  for (int part = 0; part < kLanes / 2; ++part) {
    float some[2];
#pragma unroll
    for (int i = 0; i < kLanes; ++i)  // registers have no address: two are taken
      if (i / 2 == part) some[i % 2] = v[i];
    activate_each<float>(activation, [&](const auto& activate) {
      activate(some[0]);
      activate(some[1]);
    });
#pragma unroll
    for (int i = 0; i < kLanes; ++i)
      if (i / 2 == part) v[i] = some[i % 2];
  }
}

/// activation(v + bias + residual).
template <int kLanes, class T, class Rows>
BRASA_DEVICE_FN void finish(const Results<T, Rows>& r, int64_t column, int64_t at, int live,
                            float (&v)[kLanes]) {
  add_operands(r, column, at, live, v);
  activate_lanes<T>(r.epilogue.activation, v);
}

/// Stores what the warp has in `stage`: rows from `row`, columns from `column`.
template <class T, class Rows>
BRASA_DEVICE_FN void store_stage(const Results<T, Rows>& r, WarpStage& stage, int64_t row,
                                 int64_t column) {
  constexpr int kLanes = simt::kPackLanes<T>, kPerRow = kStageColumns / kLanes;
  constexpr int kRowsAtOnce = simt::kWarpSize / kPerRow;
  const int lane = int(threadIdx.x) % simt::kWarpSize;
  const int first = lane / kPerRow, step = lane % kPerRow * kLanes;
  column += step;
  const int live = r.n - column < kLanes ? int(r.n - column) : kLanes;
  if (live <= 0) return;
  const int rows = r.m - row < kStageRows ? int(r.m - row) : kStageRows;
#pragma unroll 1
  for (int i = first; i < rows; i += kRowsAtOnce) {
    float v[kLanes];
    read_some(&stage[i][step], kLanes, true, v);
    if (r.parts) {
      write_some(r.parts + r.offset + (row + i) * r.n + column, live, r.packs, v);
    } else {
      const int64_t at = r.offset + r.rows(row + i) + column;
      if (!r.epilogue.is_trivial()) finish(r, column, at, live, v);
      write_some(r.y + at, live, r.packs, v);
    }
  }
}

/// Stores 16 rows of a warp's accumulators, which are kColumns wide: sum[4 j + e] is in row
/// lane / 4 + 8 (e / 2), column 8 j + 2 (lane % 4) + e % 2. All lanes call.
template <int kColumns, class T, class Rows, class Sum>
BRASA_DEVICE_FN void store_accumulators(const Results<T, Rows>& r, WarpStage& stage, int64_t row,
                                        int64_t column, const Sum& sum) {
  if (row >= r.m) return;
  const int lane = int(threadIdx.x) % simt::kWarpSize, group = lane / 4, quarter = lane % 4;
#pragma unroll 1
  for (int chunk = 0; chunk < kColumns / kStageColumns; ++chunk) {
    if (column + chunk * kStageColumns >= r.n) break;
#pragma unroll
    for (int c = 0; c < kColumns / kStageColumns; ++c) {  // registers have no address: one is taken
      if (c != chunk) continue;
#pragma unroll
      for (int j = 0; j < kStageColumns / 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          simt::Pack<float, 2> pair;
          pair[0] = sum(c * (kStageColumns / 8) + j, 2 * half);
          pair[1] = sum(c * (kStageColumns / 8) + j, 2 * half + 1);
          simt::store_pack(&stage[group + 8 * half][8 * j + 2 * quarter], pair);
        }
      }
    }
    __syncwarp();
    store_stage(r, stage, row, column + chunk * kStageColumns);
    __syncwarp();
  }
}

}  // namespace brasa::cuda
