// Pooling by the windows of networks (2x2/2, 3x3/2, 3x3/1), their numbers known to the compiler. A
// thread makes 16 bytes of results: neighbours along W of a C-contiguous row, or along C of a
// channels-last pixel. It reads the rows of their windows once, in packs of 16 bytes and single
// elements at the ends, and takes every window's elements from registers.
//
// Backward it makes, for S rows and 16 bytes along W (or S x S pixels of 16 bytes along C), the
// sums over the few windows that cover them, which it reads once too; which of a window's offsets
// mean which of its elements is a constant then. Nothing is added by two threads, so nothing
// depends on who comes first.
//
// Floor: 64 x 64 x 112 x 112 by 3x3/2 moves 270 MB either way, 90 us at the 3.0 TB/s to which an
// H100 copies. One element per thread with 64-bit positions took 234 us forward and 503 back, with
// three quarters of the issue slots taken by indices; 16 bits took as long as 32.
#pragma once

#include "pool/narrow.cuh"

namespace brasa::cuda {

/// Windows of K x K elements, S apart, the first one P before the image.
template <int K, int S, int P> struct Windows {
  static constexpr int kKernel = K, kStride = S, kPad = P;
  /// Inputs that neighbouring windows read after S times the last one's number, its own S not
  /// counted. Before S times the first one's they read P.
  static constexpr int kInputsAfter = K - S - P;
  /// Windows that cover a group of S inputs, besides the one of the group's number.
  static constexpr int kWindowsBefore = (K - 1 - P) / S, kWindowsAfter = (S - 1 + P) / S;

  static bool are(const PoolAxis& a) { return a.kernel == K && a.stride == S && a.pad == P; }
};

/// The shape of a thread's work: kColumns x kChannels results of a row are 16 bytes.
template <class T, bool kChannelsLast> struct Strip {
  static constexpr int kLanes = simt::kPackLanes<T>;
  static constexpr int kColumns = kChannelsLast ? 1 : kLanes;
  static constexpr int kChannels = kChannelsLast ? kLanes : 1;
};

/// kBefore + N + kAfter columns of a row of `width`, those before and after column `first` and its
/// N
/// - 1 successors; `outside` stands for what the row has not. kChannels elements each.
template <bool kChannelsLast, int kBefore, int N, int kAfter, class T>
BRASA_DEVICE_FN auto load_columns(bool inside, const T* row, int first, int width, int step,
                                  Wide<T> outside) {
  constexpr int kChannels = Strip<T, kChannelsLast>::kChannels, kAll = kBefore + N + kAfter;
  constexpr int kPiece = kChannelsLast ? 1 : simt::kPieceLanes<T, N>;
  simt::Lanes<Wide<T>, kAll * kChannels> columns;
  const auto load = [&]<int kMany>(int at) {
    const int column = first - kBefore + at;
    const auto piece = load_inside<kMany * kChannels>(inside && column >= 0 && column < width,
                                                      row + column * step, outside);
#pragma unroll
    for (int i = 0; i < kMany * kChannels; ++i) columns[at * kChannels + i] = piece[i];
  };
#pragma unroll
  for (int at = 0; at < kBefore; ++at) load.template operator()<1>(at);
#pragma unroll
  for (int at = kBefore; at < kBefore + N; at += kPiece) load.template operator()<kPiece>(at);
#pragma unroll
  for (int at = kBefore + N; at < kAll; ++at) load.template operator()<1>(at);
  return columns;
}

/// The same of offsets, which stay bytes until they are looked at.
template <bool kChannelsLast, int kBefore, int N, int kAfter, int kChannels> struct OffsetColumns {
  static constexpr int kAll = kBefore + N + kAfter;
  static constexpr int kPiece = kChannelsLast ? 1 : N;
  Bytes<kChannels> before[kBefore + 1], after[kAfter + 1];
  Bytes<kPiece * kChannels> middle[N / kPiece];

  BRASA_DEVICE_FN OffsetColumns(bool inside, const uint8_t* row, int first, int width, int step) {
#pragma unroll
    for (int i = 0; i < kBefore; ++i)
      before[i] = load_at<kChannels>(inside, row, first - kBefore + i, width, step);
#pragma unroll
    for (int i = 0; i < N / kPiece; ++i)
      middle[i] = load_at<kPiece * kChannels>(inside, row, first + i * kPiece, width, step);
#pragma unroll
    for (int i = 0; i < kAfter; ++i)
      after[i] = load_at<kChannels>(inside, row, first + N + i, width, step);
  }
  template <int kMany>
  static BRASA_DEVICE_FN Bytes<kMany> load_at(bool inside, const uint8_t* row, int column,
                                              int width, int step) {
    return load_offsets<kMany>(inside && column >= 0 && column < width, row + column * step);
  }
  BRASA_DEVICE_FN int get(int column, int channel) const {
    if (column < kBefore) return before[column][channel];
    if (column >= kBefore + N) return after[column - kBefore - N][channel];
    const int i = (column - kBefore) * kChannels + channel;
    return middle[i / (kPiece * kChannels)][i % (kPiece * kChannels)];
  }
};

/// Writes kLanes results, of which the first `left` exist.
template <class T, int kLanes>
BRASA_DEVICE_FN void store_some(T* at, const simt::Lanes<Wide<T>, kLanes>& results, bool packs,
                                int left) {
  if (packs) return simt::store_wide(at, results);
#pragma unroll
  for (int k = 0; k < kLanes; ++k)
    if (k < left) at[k] = simt::narrow<T>(results[k]);
}

/// `packs`: y and offsets are aligned for whole packs.
template <class T, class Windows, bool kChannelsLast>
__global__ void __launch_bounds__(kPoolThreads)
    max_strips_kernel(const T* x, T* y, uint8_t* offsets, NarrowPool p, Threads threads,
                      bool packs) {
  using Mine = Strip<T, kChannelsLast>;
  constexpr int kKernel = Windows::kKernel, kStride = Windows::kStride, kPad = Windows::kPad;
  constexpr int kLanes = Mine::kLanes, kChannels = Mine::kChannels;
  const uint32_t i = threads.mine();
  if (i >= threads.count) return;
  const Place at = threads.template place<kChannels>(i);
  const int oh = at.row, ow = at.column * Mine::kColumns;
  x += at.image * p.h.in * p.w.in * p.c + at.channel;

  const Wide<T> nothing = Wide<T>(-INFINITY);
  simt::Lanes<Wide<T>, kLanes> best;
  int winners[kLanes];
#pragma unroll
  for (int k = 0; k < kLanes; ++k) {
    const bool cut = (kChannelsLast || k == 0) && ow == 0;
    best[k] = nothing;
    winners[k] = (oh == 0 ? kPad * kKernel : 0) + (cut ? kPad : 0);  // as if no other were larger
  }
#pragma unroll
  for (int row = 0; row < kKernel; ++row) {
    const int ih = oh * kStride - kPad + row;
    const auto inputs =
        load_columns<kChannelsLast, kPad, Mine::kColumns * kStride, Windows::kInputsAfter>(
            ih >= 0 && ih < p.h.in, x + int64_t(ih) * p.w.in * p.c, ow * kStride, p.w.in, p.c,
            nothing);
#pragma unroll
    for (int column = 0; column < kKernel; ++column) {
#pragma unroll
      for (int k = 0; k < kLanes; ++k)
        take(best[k], winners[k],
             inputs[(k / kChannels * kStride + column) * kChannels + k % kChannels],
             row * kKernel + column);
    }
  }
  const int64_t to = ((at.image * p.h.out + oh) * p.w.out + ow) * int64_t(p.c) + at.channel;
  store_some(y + to, best, packs, p.w.out - ow);
  if (!offsets) return;
  if (packs) return store_offsets(offsets + to, winners);
#pragma unroll
  for (int k = 0; k < kLanes; ++k)
    if (k < p.w.out - ow) offsets[to + k] = uint8_t(winners[k]);
}

/// What the sum of a window is multiplied by, by the number of elements that count. A table in the
/// arguments: a division, which is a loop over rare numbers besides, would be half of the kernel.
template <class W> struct Shares {
  W of[10];

  explicit Shares(int64_t divisor_override) {
    for (int i = 0; i < 10; ++i) of[i] = W(1) / W(divisor_override ? divisor_override : i);
  }
};

template <class T, class Windows, bool kChannelsLast>
__global__ void __launch_bounds__(kPoolThreads)
    mean_strips_kernel(const T* x, T* y, NarrowPool p, Threads threads, Shares<Wide<T>> shares,
                       bool packs) {
  using Mine = Strip<T, kChannelsLast>;
  constexpr int kKernel = Windows::kKernel, kStride = Windows::kStride, kPad = Windows::kPad;
  constexpr int kLanes = Mine::kLanes, kChannels = Mine::kChannels;
  constexpr int kInputs = kPad + Mine::kColumns * kStride + Windows::kInputsAfter;
  const uint32_t i = threads.mine();
  if (i >= threads.count) return;
  const Place at = threads.template place<kChannels>(i);
  const int oh = at.row, ow = at.column * Mine::kColumns;
  x += at.image * p.h.in * p.w.in * p.c + at.channel;

  simt::Lanes<Wide<T>, kInputs * kChannels> sums;
#pragma unroll
  for (int k = 0; k < kInputs * kChannels; ++k) sums[k] = 0;
#pragma unroll
  for (int row = 0; row < kKernel; ++row) {
    const int ih = oh * kStride - kPad + row;
    const auto inputs =
        load_columns<kChannelsLast, kPad, Mine::kColumns * kStride, Windows::kInputsAfter>(
            ih >= 0 && ih < p.h.in, x + int64_t(ih) * p.w.in * p.c, ow * kStride, p.w.in, p.c,
            Wide<T>(0));
#pragma unroll
    for (int k = 0; k < kInputs * kChannels; ++k) sums[k] += inputs[k];
  }
  const int tall = p.h.extent(oh, p.include_pad);
  Wide<T> share[Mine::kColumns];
#pragma unroll
  for (int k = 0; k < Mine::kColumns; ++k)
    share[k] = shares.of[tall * p.w.extent(ow + k, p.include_pad)];
  simt::Lanes<Wide<T>, kLanes> means;
#pragma unroll
  for (int k = 0; k < kLanes; ++k) {
    Wide<T> total = 0;
#pragma unroll
    for (int column = 0; column < kKernel; ++column)
      total += sums[(k / kChannels * kStride + column) * kChannels + k % kChannels];
    means[k] = total * share[k / kChannels];
  }
  const int64_t to = ((at.image * p.h.out + oh) * p.w.out + ow) * int64_t(p.c) + at.channel;
  store_some(y + to, means, packs, p.w.out - ow);
}

/// What the backward kernels share: a group of S rows, and of kColumns columns with kChannels
/// channels; and the windows that cover it.
template <class T, class Windows, bool kChannelsLast> struct Gather {
  static constexpr int kStride = Windows::kStride, kKernel = Windows::kKernel;
  static constexpr int kLanes = simt::kPackLanes<T>, kChannels = kChannelsLast ? kLanes : 1;
  static constexpr int kColumns = kChannelsLast ? kStride : kLanes;
  static constexpr int kBefore = Windows::kWindowsBefore, kAfter = Windows::kWindowsAfter;
  static constexpr int kMiddle = kColumns / kStride;  ///< windows of the group's own numbers
  static constexpr int kAcross = kBefore + kMiddle + kAfter, kDown = kBefore + 1 + kAfter;
  static constexpr int kResults = kColumns * kChannels;

  const NarrowPool& p;
  Place at;
  BRASA_DEVICE_FN Gather(const NarrowPool& pool, const Threads& threads, uint32_t i)
      : p(pool), at(threads.template place<kChannels>(i)) {}

  /// The row of windows `down`, and the first one of the middle.
  BRASA_DEVICE_FN int window_row(int down) const { return at.row - kBefore + down; }
  BRASA_DEVICE_FN bool has_row(int down) const {
    return window_row(down) >= 0 && window_row(down) < p.h.out;
  }
  BRASA_DEVICE_FN int first_window() const { return at.column * kMiddle; }
  BRASA_DEVICE_FN int64_t row_start(int down) const {
    return (at.image * p.h.out + window_row(down)) * p.w.out * int64_t(p.c) + at.channel;
  }
  BRASA_DEVICE_FN auto load(const T* dy, int down) const {
    return load_columns<kChannelsLast, kBefore, kMiddle, kAfter>(
        has_row(down), dy + row_start(down), first_window(), p.w.out, p.c, Wide<T>(0));
  }
  /// The tap of window `window` that input `input` of the group is; outside [0, K) it is none.
  static BRASA_DEVICE_FN constexpr int tap(int window, int input) {
    return input + Windows::kPad - (window - kBefore) * kStride;
  }
  static BRASA_DEVICE_FN constexpr bool covers(int window, int input) {
    return tap(window, input) >= 0 && tap(window, input) < kKernel;
  }
  BRASA_DEVICE_FN void store(T* dx, int row, const simt::Lanes<Wide<T>, kResults>& sums) const {
    const int ih = at.row * kStride + row, iw = at.column * kColumns;
    if (ih >= p.h.in) return;
    T* const to = dx + ((at.image * p.h.in + ih) * p.w.in + iw) * int64_t(p.c) + at.channel;
#pragma unroll
    for (int first = 0; first < kResults; first += kLanes) {
      simt::Lanes<Wide<T>, kLanes> pack;
#pragma unroll
      for (int k = 0; k < kLanes; ++k) pack[k] = sums[first + k];
      if (iw + first / kChannels < p.w.in) simt::store_wide(to + first / kChannels * p.c, pack);
    }
  }
};

template <class T, class Windows, bool kChannelsLast>
__global__ void __launch_bounds__(kPoolThreads)
    max_strips_backward_kernel(const T* dy, const uint8_t* offsets, T* dx, NarrowPool p,
                               Threads threads) {
  using Mine = Gather<T, Windows, kChannelsLast>;
  constexpr int kStride = Mine::kStride, kChannels = Mine::kChannels;
  const uint32_t i = threads.mine();
  if (i >= threads.count) return;
  const Mine mine(p, threads, i);
  simt::Lanes<Wide<T>, Mine::kResults> sums[kStride];
#pragma unroll
  for (int row = 0; row < kStride; ++row)
#pragma unroll
    for (int k = 0; k < Mine::kResults; ++k) sums[row][k] = 0;
#pragma unroll
  for (int down = 0; down < Mine::kDown; ++down) {
    const auto gradients = mine.load(dy, down);
    const OffsetColumns<kChannelsLast, Mine::kBefore, Mine::kMiddle, Mine::kAfter, kChannels>
        winners(mine.has_row(down), offsets + mine.row_start(down), mine.first_window(), p.w.out,
                p.c);
#pragma unroll
    for (int window = 0; window < Mine::kAcross; ++window)
#pragma unroll
      for (int channel = 0; channel < kChannels; ++channel)
#pragma unroll
        for (int row = 0; row < kStride; ++row)
#pragma unroll
          for (int column = 0; column < Mine::kColumns; ++column)
            if (Mine::covers(down, row) && Mine::covers(window, column) &&
                winners.get(window, channel) ==
                    Mine::tap(down, row) * Mine::kKernel + Mine::tap(window, column))
              sums[row][column * kChannels + channel] += gradients[window * kChannels + channel];
  }
#pragma unroll
  for (int row = 0; row < kStride; ++row) mine.store(dx, row, sums[row]);
}

template <class T, class Windows, bool kChannelsLast>
__global__ void __launch_bounds__(kPoolThreads)
    mean_strips_backward_kernel(const T* dy, T* dx, NarrowPool p, Threads threads,
                                Shares<Wide<T>> shares) {
  using Mine = Gather<T, Windows, kChannelsLast>;
  constexpr int kStride = Mine::kStride, kChannels = Mine::kChannels;
  const uint32_t i = threads.mine();
  if (i >= threads.count) return;
  const Mine mine(p, threads, i);
  int wide[Mine::kAcross];  // extents; where there is no window its gradient is 0, and any will do
#pragma unroll
  for (int window = 0; window < Mine::kAcross; ++window) {
    const int ow = mine.first_window() - Mine::kBefore + window;
    wide[window] = ow >= 0 && ow < p.w.out ? p.w.extent(ow, p.include_pad) : 1;
  }
  simt::Lanes<Wide<T>, Mine::kAcross * kChannels> parts[Mine::kDown];
#pragma unroll
  for (int down = 0; down < Mine::kDown; ++down) {
    parts[down] = mine.load(dy, down);
    const int tall = mine.has_row(down) ? p.h.extent(mine.window_row(down), p.include_pad) : 1;
#pragma unroll
    for (int k = 0; k < Mine::kAcross * kChannels; ++k)
      parts[down][k] *= shares.of[tall * wide[k / kChannels]];
  }
#pragma unroll
  for (int row = 0; row < kStride; ++row) {
    simt::Lanes<Wide<T>, Mine::kResults> sums;
#pragma unroll
    for (int k = 0; k < Mine::kResults; ++k) {
      sums[k] = 0;
#pragma unroll
      for (int window = 0; window < Mine::kAcross; ++window) {
        if (!Mine::covers(window, k / kChannels)) continue;
        Wide<T> column = 0;
#pragma unroll
        for (int down = 0; down < Mine::kDown; ++down)
          if (Mine::covers(down, row)) column += parts[down][window * kChannels + k % kChannels];
        sums[k] += column;
      }
    }
    mine.store(dx, row, sums);
  }
}

}  // namespace brasa::cuda
