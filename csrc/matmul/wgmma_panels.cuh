// How warpgroups store finished results: in panels of 64 lines of 128 bytes, by the copy engine.
//
// Bias and activation meet the accumulators in registers, where they are. A residual comes, and
// what the backward pass wants goes, through the panel in whole lines: a lane has two columns in
// each of many places of the accumulators, but 16 bytes of a line. Each warp has 16 lines of the
// panel to itself until the copy engine takes all.
//
// Floor: the bytes of the results. Lost, on an H100: results with an epilogue 32 columns at a time
// through a stage of each warp, the bias read again for each pack (1x1 64->256 over 56 x 56 pixels,
// batch 64: 166 us where its bytes take 45; the same convolution 3x3 64->64 80 us with a bias and
// 51 without).
#pragma once

#include "core/ptx_mma.cuh"
#include "core/ptx_wgmma.cuh"
#include "matmul/gemm_store.cuh"

namespace brasa::cuda {

constexpr int kGroupThreads = 128, kLine128 = 128;
constexpr int kPanelBytes = 64 * kLine128;

#if BRASA_HAS_WGMMA

/// A warp's 16 lines of half a panel, 64 bytes each; their pieces are swapped as the copy engine
/// reads them. A lane's values of them are accumulators of wgmma(), columns in order.
template <class T> struct HalfPanel {
  static constexpr int kColumns = kLine128 / 2 / int(sizeof(T)), kValues = kColumns / 2;
  unsigned char* lines;
  int lane, first_piece;

  BRASA_DEVICE_FN unsigned char* at(int line, int piece) const {
    return lines + line * kLine128 + ((piece + first_piece) ^ (line & 7)) * 16;
  }

  BRASA_DEVICE_FN void put(const float (&v)[kValues]) const {
#pragma unroll
    for (int i = 0; i < kValues; i += 8) {
      if constexpr (sizeof(T) == 2) {
        uint32_t words[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) words[w] = simt::narrow_pair<T>(v[i + 2 * w], v[i + 2 * w + 1]);
        simt::stmatrix_x4(matrices(i), words);
      } else {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          simt::Pack<float, 2> pair;
          pair[0] = v[i + 2 * w], pair[1] = v[i + 2 * w + 1];
          simt::store_pack(place(i, w), pair);
        }
      }
    }
  }

  /// v += what the lines hold.
  BRASA_DEVICE_FN void add_to(float (&v)[kValues]) const {
#pragma unroll
    for (int i = 0; i < kValues; i += 8) {
      if constexpr (sizeof(T) == 2) {
        uint32_t words[4];
        simt::ldmatrix_x4(words, matrices(i));
#pragma unroll
        for (int e = 0; e < 8; ++e)
          v[i + e] += simt::widen(T{uint16_t(words[e / 2] >> (e % 2 * 16))});
      } else {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const auto pair = simt::load_pack<2>(place(i, w));
          v[i + 2 * w] += pair[0], v[i + 2 * w + 1] += pair[1];
        }
      }
    }
  }

 private:
  /// Of 16 bits, 16 columns from value i on: the row of four matrices that is the lane's.
  BRASA_DEVICE_FN unsigned char* matrices(int i) const { return at(lane % 16, i / 4 + lane / 16); }
  /// Of 32 bits: where values i + 2 w and the next one stand.
  BRASA_DEVICE_FN float* place(int i, int w) const {
    const int group = lane / 4, quarter = lane % 4;
    unsigned char* piece = at(group + 8 * (w % 2), i / 2 + w / 2 * 2 + quarter / 2);
    return reinterpret_cast<float*>(piece) + 2 * (quarter % 2);
  }
};

/// Carries lines between a warp's half panel and rows in memory, two pieces of 16 bytes a lane.
template <class T> struct PanelRows {
  static constexpr int kLanes = simt::kPackLanes<T>, kPieces = 2, kApart = 16 / kPieces;
  using Words = simt::Pack<uint32_t, 4>;
  int64_t first, apart;  ///< elements before the lane's first piece, and to the next one
  int live;              ///< pieces inside the matrix
  int line, piece;

  template <class Rows>
  BRASA_DEVICE_FN PanelRows(const Results<T, Rows>& r, int lane, int item, int64_t row,
                            int64_t column)
      : apart(kApart * r.n), line(lane / 4), piece(lane % 4) {
    row += line, column += piece * kLanes;
    first = simt::opaque((item * r.m + row) * r.n + column);
    const int64_t rows = column < r.n ? r.m - row : 0;
    live = rows <= 0 ? 0 : rows <= kApart ? 1 : 2;
  }

  BRASA_DEVICE_FN void load(const T* from, Words (&words)[kPieces]) const {
    const auto* at = reinterpret_cast<const uint32_t*>(from + first);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      words[i] = {};
      if (i < live) words[i] = simt::load_pack<4>(at + i * apart * int(sizeof(T)) / 4);
    }
  }
  BRASA_DEVICE_FN void put(const HalfPanel<T>& panel, const Words (&words)[kPieces]) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) simt::store_pack(words_of(panel, i), words[i]);
  }
  BRASA_DEVICE_FN void store(const HalfPanel<T>& panel, T* to) const {
    auto* at = reinterpret_cast<uint32_t*>(to + first);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (i < live)
        simt::store_pack(at + i * apart * int(sizeof(T)) / 4,
                         simt::load_pack<4>(words_of(panel, i)));
    }
  }

 private:
  BRASA_DEVICE_FN uint32_t* words_of(const HalfPanel<T>& panel, int i) const {
    return reinterpret_cast<uint32_t*>(panel.at(line + kApart * i, piece));
  }
};

/// A tile's bias: read before its products, a column or two a thread, and looked at behind them,
/// when it has come; then the warpgroup shares it.
template <class T, int kColumns> struct TileBias {
  static constexpr int kEach = (kColumns + kGroupThreads - 1) / kGroupThreads;
  T narrow[kEach]{};
  float wide[kEach]{};

  BRASA_DEVICE_FN void load(const Epilogue<T>& e, int64_t column, int64_t columns) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t c = column + own(i);
      if (own(i) >= kColumns || c >= columns) continue;
      if (e.bias) narrow[i] = e.bias[c];
      if (e.wide_bias) wide[i] = e.wide_bias[c];
    }
  }
  BRASA_DEVICE_FN void share(const Epilogue<T>& e, float (&shared)[kColumns]) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (own(i) < kColumns) shared[own(i)] = e.wide_bias ? wide[i] : simt::widen(narrow[i]);
  }

 private:
  static BRASA_DEVICE_FN int own(int i) {
    return int(threadIdx.x) % kGroupThreads + i * kGroupThreads;
  }
};

/// activation(v + bias + residual) of half a panel, which holds the residual.
template <class T>
BRASA_DEVICE_FN void finish_half(const Epilogue<T>& e, const float* bias, const HalfPanel<T>& half,
                                 const PanelRows<T>& rows, float (&v)[HalfPanel<T>::kValues]) {
  constexpr int kValues = HalfPanel<T>::kValues;
#pragma unroll
  for (int i = 0; i < kValues; i += 4) {
    const auto pair = simt::load_pack<2>(bias + 2 * i + half.lane % 4 * 2);
#pragma unroll
    for (int k = 0; k < 4; ++k) v[i + k] += pair[k % 2];
  }
  if (e.residual) {
    half.add_to(v);
    __syncwarp();
  }
  if (e.pre_activation) {
    half.put(v);
    __syncwarp();
    rows.store(half, e.pre_activation);
    __syncwarp();
  }
  activate_commonly<T>(e.activation.kind, v);
}

/// Half a panel of a tile's accumulators. Registers have no address: one of the copies is jumped
/// to.
template <int kSums, int kValues>
BRASA_DEVICE_FN void take_half(const float (&sum)[kSums], int half, float (&v)[kValues]) {
#pragma unroll
  for (int h = 0; h < kSums / kValues; ++h) {
    if (h != half) continue;
#pragma unroll
    for (int i = 0; i < kValues; ++i) v[i] = sum[h * kValues + i];
  }
}

/// Stores a warpgroup's results in panels: two take turns, one being filled while the copy engine
/// reads the other. Plain ones have nothing to finish, and so little code that it is unrolled.
template <bool kPlain, class T, int kColumns, class Rows>
BRASA_DEVICE_FN void store_panels(unsigned char (&panels)[2][kPanelBytes], unsigned& turn,
                                  const float* bias, const simt::TensorMap& y_map,
                                  const Results<T, Rows>& r, int barrier, int64_t row,
                                  int64_t column, int item, const float (&sum)[kColumns / 2]) {
  using Half = HalfPanel<T>;
  constexpr int kHalves = kColumns / Half::kColumns;
  int64_t own = threadIdx.x % kGroupThreads;
  BRASA_FORGET(own);  // or addresses of all tiles would be kept in registers
  const int thread = int(own), lane = thread % simt::kWarpSize, warp_line = (thread - lane) / 2;
#pragma unroll(kPlain ? kHalves : 1)
  for (int h = 0; h < kHalves; ++h) {
    const int64_t from = column + h * Half::kColumns;
    if (from - h % 2 * Half::kColumns >= r.n || row >= r.m) return;
    const Half half{panels[turn] + warp_line * kLine128, lane, h % 2 * 4};
    const PanelRows<T> rows(r, lane, item, row + warp_line, from);
    typename PanelRows<T>::Words residual[PanelRows<T>::kPieces];
    if (!kPlain && r.epilogue.residual) rows.load(r.epilogue.residual, residual);
    if (h % 2 == 0) {
      if (thread == 0) simt::tma_store_wait<1>();
      simt::bar_sync(barrier, kGroupThreads);
    }
    if (!kPlain && r.epilogue.residual) {
      rows.put(half, residual);
      __syncwarp();
    }
    float v[Half::kValues];
    take_half(sum, h, v);
    if constexpr (!kPlain) finish_half(r.epilogue, bias + h * Half::kColumns, half, rows, v);
    half.put(v);
    if (h % 2 == 0) continue;
    simt::tma_store_fence();
    simt::bar_sync(barrier, kGroupThreads);
    if (thread == 0)
      simt::tma_store(y_map, panels[turn], int(from) - Half::kColumns, int(row), item);
    turn ^= 1;
  }
}

#endif

}  // namespace brasa::cuda
