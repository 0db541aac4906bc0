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
/// and parts of `length` elements of each, the last one of `last`; threads go on by `step`, a power
/// of two as well.
struct Shares {
  int columns = 1, column_bits = 0, step_bits = 0;
  int length, last;
  int groups, parts;
  /// By the elements of a short plane. Else by kFar: a place in a plane that ends there is on the
  /// next plane exactly if its highest bit is set.
  simt::Divisor plane;
  static constexpr int64_t kFar = int64_t(1) << 31, kShortPlane = kFar / 2;

  Shares(const BatchNormParams& p, int lanes) {
    if (p.channels_last)
      for (columns = kColumns; columns / 2 >= lanes && columns / 2 >= p.c;) columns /= 2;
    while (1 << column_bits < columns) ++column_bits;
    while (1 << step_bits < kThreads * lanes / columns) ++step_bits;
    groups = int(simt::ceil_div(p.c, int64_t(columns)));
    const int64_t n = p.n * p.s, step = int64_t(1) << step_bits;
    const int64_t wanted = (p.channels_last ? kPartBlocks : kPlanePartBlocks) / groups;
    int64_t steps = simt::ceil_div(simt::ceil_div(n, step), wanted < 1 ? 1 : wanted);
    steps = steps < 1 ? 1 : steps > kLongestChain ? kLongestChain : steps;
    length = int(steps * step);
    parts = n < 1 ? 1 : int(simt::ceil_div(n, int64_t(length)));
    last = int(n - int64_t(parts - 1) * length);
    plane = simt::Divisor(has_short_planes(p) ? p.s : kFar);
  }
  static BRASA_HOST_DEVICE_FN bool has_short_planes(const BatchNormParams& p) {
    return !p.channels_last && p.s <= kShortPlane;
  }
  /// Elements of a channel in a part.
  BRASA_DEVICE_FN int count(int part) const { return part + 1 < parts ? length : last; }
};

/// Adds up what the threads of a column hold, of kArrays arrays and kSums columns each; everyone
/// gets its columns' sums.
template <int kArrays, int kSums, class T>
BRASA_DEVICE_FN void column_sums(T (&value)[kArrays][kSums], int columns) {
  BRASA_SHARED(T, values, [kArrays][kThreads * kSums]);
  const int rank = int(threadIdx.x);
  __syncthreads();  // an earlier call may still be reading
#pragma unroll
  for (int array = 0; array < kArrays; ++array) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) values[array][rank * kSums + k] = value[array][k];
  }
  __syncthreads();
#pragma unroll 1
  for (int half = kThreads * kSums / 2; half >= columns; half /= 2) {
#pragma unroll 1
    for (int i = rank; i < half; i += kThreads) {
#pragma unroll
      for (int array = 0; array < kArrays; ++array) values[array][i] += values[array][i + half];
    }
    __syncthreads();
  }
#pragma unroll
  for (int array = 0; array < kArrays; ++array) {
#pragma unroll
    for (int k = 0; k < kSums; ++k)
      value[array][k] = values[array][(rank * kSums + k) & (columns - 1)];
  }
}

/// values[turn] in a loop that is not unrolled: registers have no address.
template <class V, int kTurns> BRASA_DEVICE_FN V taken(const V (&values)[kTurns], int turn) {
  V value = values[0];
#pragma unroll
  for (int i = 1; i < kTurns; ++i)
    if (i == turn) value = values[i];
  return value;
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
  bool aligned;
  int column;  ///< of the first lane, among the block's
  int part;
  int64_t first_channel, c;
  int first, end, step;  ///< elements of the part
  // Where the part begins in the array, how far apart its elements stand, and how much farther
  // those of the next image; where it begins in its plane (a long one ends at kFar).
  int64_t base, stride = 1, jump = 0;
  uint32_t place = 0;

  BRASA_DEVICE_FN Share(const BatchNormParams& params, const Shares& all, bool packs)
      : p(params), shares(all), aligned(packs) {
    const int element = int(threadIdx.x) * kLanes;
    const unsigned groups = unsigned(shares.groups), block = blockIdx.x / groups;
    column = element & (shares.columns - 1);
    part = int(block);
    first_channel = int64_t(blockIdx.x - block * groups) << shares.column_bits;
    c = first_channel + column;
    step = 1 << shares.step_bits;
    first = element >> shares.column_bits;
    end = c < p.c ? count() : first;
    find_places(int64_t(part) * shares.length);
  }
  /// Parts are short, so that one division of 64 bits is enough for all elements of one.
  BRASA_DEVICE_FN void find_places(int64_t begin) {
    if (p.channels_last) {
      base = begin * p.c + c;
      stride = p.c;
      return;
    }
    const int64_t image = begin > 0 ? begin / p.s : 0, in_plane = begin - image * p.s;
    base = (image * p.c + c) * p.s + in_plane;
    jump = (p.c - 1) * p.s;
    const int64_t left = p.s - in_plane;
    place = uint32_t(Shares::has_short_planes(p) ? in_plane
                     : left < Shares::kFar       ? Shares::kFar - left
                                                 : 0);
  }
  /// Elements of a channel in this part.
  BRASA_DEVICE_FN int count() const { return shares.count(part); }
  /// The block's channel whose numbers this thread finds, if it is one of the first.
  BRASA_DEVICE_FN int64_t found_channel() const {
    return first_channel + (int(threadIdx.x) & (shares.columns - 1));
  }

  BRASA_DEVICE_FN int64_t offset(int i) const {
    return base + i * stride + shares.plane.narrow_quotient(place + uint32_t(i)) * jump;
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
  BRASA_DEVICE_FN int steps() const {
    return end > first ? ((end - first - 1) >> shares.step_bits) + 1 : 0;
  }
  /// f(offset, turn) for packs first, first + step ..., kTurns at a time: load(f) for all of them,
  /// then use(f); the last ones first. What is rare is not unrolled: all that `use` does where
  /// kRolled, and packs that are not aligned, which are loaded one by one.
  template <int kTurns, bool kRolled = false, class Load, class Use>
  BRASA_DEVICE_FN void backward(const Load& load, const Use& use) const {
    const int packs = steps(), stride = kTurns * step;
#pragma unroll 1
    for (int i = first + (packs - 1) / kTurns * stride; packs > 0 && i >= first; i -= stride) {
      const auto has = [&](int turn) { return i + turn * step < end; };
      const bool at_once = kLanes == 1 || aligned;
      int64_t at[kTurns];
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        at[turn] = offset(i + turn * step);
        if (at_once && has(turn)) load(at[turn], turn);
      }
      if (!kRolled && at_once) {
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn)
          if (has(turn)) use(at[turn], turn);
        continue;
      }
      if constexpr (kRolled || kLanes > 1) {
#pragma unroll 1
        for (int turn = 0; turn < kTurns && has(turn); ++turn) {
          const int64_t place = offset(i + turn * step);
          if (!at_once) load(place, 0);
          use(place, at_once ? turn : 0);
        }
      }
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

/// What normalising needs of a block's channels, in shared memory: its first threads read it.
template <class W> struct OfChannels {
  W (&mean)[kColumns];
  W (&scale)[kColumns];
  W (&bias)[kColumns];

  BRASA_DEVICE_FN void put(W of_mean, W of_scale, W of_bias) const {
    mean[threadIdx.x] = of_mean;
    scale[threadIdx.x] = of_scale;
    bias[threadIdx.x] = of_bias;
  }
};

/// f(part, pair) for parts of a block's channel `column`, by the threads that share it; what
/// they hold is added up by column_sums.
template <class F>
BRASA_DEVICE_FN void for_parts(const BatchNormParams& p, const Shares& shares, int64_t c,
                               const Pair* results, const F& f) {
  if (c >= p.c) return;
  constexpr int kAtOnce = 4;
  const int step = kThreads >> shares.column_bits;
#pragma unroll 1
  for (int first = int(threadIdx.x) >> shares.column_bits; first < shares.parts;
       first += kAtOnce * step) {
    Pair pairs[kAtOnce];
    const auto has = [&](int i) { return first + i * step < shares.parts; };
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (has(i)) pairs[i] = results[(first + i * step) * p.c + c];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (has(i)) f(first + i * step, pairs[i]);
  }
}

}  // namespace brasa::cuda
