// How the launches of batch norm share an array out: who has which channels and which elements of
// them, how threads walk over these, and how sums of a channel are added up.
#pragma once

#include "core/raw.cuh"
#include "norm/norm.h"

namespace brasa::cuda {

constexpr int kThreads = 256;
constexpr int kColumns = 32;  ///< most channels per block of a channels-last array

/// Blocks that the parts are chosen for; constants, as they fix the rounding. Channels-last, two
/// for each multiprocessor of an H100: each part costs every block reads. In C order parts are
/// short.
constexpr int64_t kPartBlocks = 264, kPlanePartBlocks = 1056;
constexpr int64_t kLongestChain = 256;  ///< packs that a thread adds up in one type

/// Packs of each of kArrays arrays that a thread has on their way at once, beside the numbers of
/// its channels: those of 16 bits have eight.
template <class T, int kArrays>
inline constexpr int kFlying = (sizeof(T) == 4   ? 8
                                : sizeof(T) == 2 ? 6
                                                 : 4) /
                               kArrays;

struct alignas(16) Pair {
  double first, second;
};

/// How channels and their elements are shared out: blocks take `columns` (a power of two) channels,
/// and parts of `length` elements of each.
struct Shares {
  int columns = 1;
  int64_t groups, parts, length;

  Shares(const BatchNormParams& p, int lanes) {
    if (p.channels_last)
      for (columns = kColumns; columns / 2 >= lanes && columns / 2 >= p.c;) columns /= 2;
    groups = simt::ceil_div(p.c, int64_t(columns));
    const int64_t n = p.n * p.s, step = kThreads * lanes / columns;
    const int64_t wanted = (p.channels_last ? kPartBlocks : kPlanePartBlocks) / groups;
    int64_t steps = simt::ceil_div(simt::ceil_div(n, step), wanted < 1 ? 1 : wanted);
    steps = steps < 1 ? 1 : steps > kLongestChain ? kLongestChain : steps;
    length = steps * step;
    parts = n < 1 ? 1 : simt::ceil_div(n, length);
  }
};

/// Adds up what the threads of a column hold, of kSums columns each; everyone gets its columns'
/// sums.
template <int kSums, class T> BRASA_DEVICE_FN void column_sums(T (&value)[kSums], int columns) {
  BRASA_SHARED(T, values, [kThreads * kSums]);
  const int rank = int(threadIdx.x);
  __syncthreads();  // an earlier call may still be reading
#pragma unroll
  for (int k = 0; k < kSums; ++k) values[rank * kSums + k] = value[k];
  __syncthreads();
  for (int half = kThreads * kSums / 2; half >= columns; half /= 2) {
    for (int i = rank; i < half; i += kThreads) values[i] += values[i + half];
    __syncthreads();
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) value[k] = values[(rank * kSums + k) & (columns - 1)];
}

/// What a thread works on: packs of kLanes neighbours, which are elements of one channel, or in a
/// channels-last array one element of each of as many channels. Whether packs are aligned changes
/// the loads alone.
template <class T, int kLanes> struct Share {
  using W = Wide<T>;
  using Values = simt::Lanes<W, kLanes>;
  using Raw = simt::Raw<T, kLanes>;

  const BatchNormParams& p;
  const Shares& shares;
  const simt::Divisor& pixels;
  bool aligned;
  int column;  ///< of the first lane, among the block's
  int64_t part, c, first, end, step;

  BRASA_DEVICE_FN Share(const BatchNormParams& params, const Shares& all,
                        const simt::Divisor& by_pixels, bool packs)
      : p(params), shares(all), pixels(by_pixels), aligned(packs) {
    const int element = int(threadIdx.x) * kLanes;
    column = element & (shares.columns - 1);
    part = blockIdx.x / unsigned(shares.groups);
    c = int64_t(blockIdx.x % unsigned(shares.groups)) * shares.columns + column;
    step = kThreads * kLanes / shares.columns;
    first = part * shares.length + element / shares.columns;
    end = part * shares.length + count();
    if (c >= p.c) end = first;
  }
  /// Elements of a channel in a part.
  BRASA_DEVICE_FN int64_t count(int64_t of) const {
    const int64_t left = p.n * p.s - of * shares.length;
    return left < shares.length ? left : shares.length;
  }
  BRASA_DEVICE_FN int64_t count() const { return count(part); }

  BRASA_DEVICE_FN int64_t offset(int64_t i) const {
    if (p.channels_last) return i * p.c + c;
    const int64_t pixel = pixels.take_remainder(i);
    return (i * p.c + c) * p.s + pixel;
  }
  BRASA_DEVICE_FN Raw load(const T* x, int64_t at) const {
    return aligned ? simt::load_raw<kLanes>(x + at) : simt::gather_raw<kLanes>(x + at, 1);
  }
  static BRASA_DEVICE_FN Values widen(const Raw& raw) { return simt::widen_raw<T, kLanes>(raw); }
  BRASA_DEVICE_FN void store(T* y, int64_t at, const Values& values) const {
    if (aligned) return simt::store_wide(y + at, values);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) y[at + lane] = simt::narrow<T>(values[lane]);
  }
  /// f(offset, turn) for packs first, first + step ..., kTurns at a time: load(f) for all of them,
  /// then use(f); the last ones first.
  template <int kTurns, class Load, class Use>
  BRASA_DEVICE_FN void backward(const Load& load, const Use& use) const {
    const int64_t stride = kTurns * step, turns = end > first ? (end - first - 1) / stride : -1;
    for (int64_t i = first + turns * stride; i >= first; i -= stride) {
      int64_t at[kTurns];
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        at[turn] = offset(i + turn * step);
        if (i + turn * step < end) load(at[turn], turn);
      }
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn)
        if (i + turn * step < end) use(at[turn], turn);
    }
  }
  /// numbers[k] of the channel of lane k.
  template <int kSums>
  BRASA_DEVICE_FN void fetch(W (&mine)[kSums], const W (&numbers)[kColumns]) const {
#pragma unroll
    for (int k = 0; k < kSums; ++k) mine[k] = numbers[p.channels_last ? column + k : column];
  }
  /// put(sum, channel) by one thread of each channel that this thread has kSums sums of.
  template <int kSums, class Put> BRASA_DEVICE_FN void for_channels(const Put& put) const {
    if (int(threadIdx.x) * kSums >= shares.columns) return;
#pragma unroll
    for (int k = 0; k < kSums; ++k)
      if (c + k < p.c) put(k, c + k);
  }
};

}  // namespace brasa::cuda
