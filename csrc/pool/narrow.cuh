// Windows whose numbers fit 32 bits, as nearly all do, and what the kernels for them share: the
// number of a thread made into a place, and loads of neighbours some of which lie outside.
#pragma once

#include "core/device.cuh"
#include "core/ptx_convert.cuh"
#include "pool/pool.h"

namespace brasa::cuda {

constexpr int kPoolThreads = 256;

/// An axis of regular windows without dilation.
struct NarrowAxis {
  int in, out, kernel, stride, pad;
  simt::Divisor by_stride;

  NarrowAxis() = default;
  explicit NarrowAxis(const PoolAxis& a)
      : in(int(a.in)),
        out(int(a.out)),
        kernel(int(a.kernel)),
        stride(int(a.stride)),
        pad(int(a.pad)),
        by_stride(a.stride) {}

  static bool fits(const PoolAxis& a) {
    constexpr int64_t kMost = int64_t(1) << 29;
    return !a.adaptive && a.dilation == 1 && a.in < kMost && a.out < kMost && a.kernel < kMost &&
           a.pad < kMost && a.stride < kMost && a.out * a.stride < kMost;
  }
  BRASA_DEVICE_FN int begin(int o) const { return o * stride - pad; }
  /// Taps of window o that lie before the image, and how many there are up to its end.
  BRASA_DEVICE_FN int first_tap(int o) const { return begin(o) < 0 ? -begin(o) : 0; }
  BRASA_DEVICE_FN int end_tap(int o) const {
    const int left = in - begin(o);
    return left < kernel ? left : kernel;
  }
  /// The extent of window o that counts in the divisor of a mean.
  BRASA_DEVICE_FN int extent(int o, bool include_pad) const {
    const int left = in + pad - begin(o), padded = left < kernel ? left : kernel;
    const int extent = include_pad ? padded : end_tap(o) - first_tap(o);
    return extent > 0 ? extent : 0;
  }
  /// The windows [first, end) that hold input i.
  BRASA_DEVICE_FN void find(int i, int& first, int& end) const {
    const int position = i + pad;
    first = position < kernel ? 0 : int(by_stride.narrow_quotient(position - kernel)) + 1;
    const int last = int(by_stride.narrow_quotient(position));
    end = last < out ? last + 1 : out;
  }
};

/// Two of them. A C-contiguous array counts as channels-last images of one channel.
struct NarrowPool {
  NarrowAxis h, w;
  int c;
  bool include_pad;
  int64_t divisor_override;

  /// What the sum of a window is divided by.
  template <class W> BRASA_DEVICE_FN W divisor(int oh, int ow) const {
    if (divisor_override) return W(divisor_override);
    return W(h.extent(oh, include_pad)) * W(w.extent(ow, include_pad));
  }
};

/// Where the work of a thread stands: `channel`, and numbers of groups of columns and of rows.
struct Place {
  int channel, column, row;
  int64_t image;
};

/// Numbers threads in memory order: groups of channels fastest, then of columns and of rows.
struct Threads {
  simt::Divisor channels, columns, rows;
  uint32_t count;

  BRASA_DEVICE_FN uint32_t mine() const { return blockIdx.x * kPoolThreads + threadIdx.x; }
  /// The place of a thread that takes kLanes channels.
  template <int kLanes> BRASA_DEVICE_FN Place place(uint32_t i) const {
    Place at;
    at.channel = int(channels.take_narrow_remainder(i)) * kLanes;
    at.column = int(columns.take_narrow_remainder(i));
    at.row = int(rows.take_narrow_remainder(i));
    at.image = i;
    return at;
  }
};

/// N neighbours at `at`, to whose accesses it is aligned; `outside` in their place where they are
/// not `inside`. Nothing is read then.
template <int N, class T>
BRASA_DEVICE_FN simt::Lanes<Wide<T>, N> load_inside(bool inside, const T* at, Wide<T> outside) {
  simt::Lanes<Wide<T>, N> lanes;
  if constexpr (sizeof(T) == 2 && N > 1) {
    simt::Pack<uint32_t, N / 2> words;
    const uint32_t filler = simt::narrow_pair<T>(outside, outside);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) words[i] = filler;
    if (inside) words = simt::load_pack<N / 2>(reinterpret_cast<const uint32_t*>(at));
#pragma unroll
    for (int i = 0; i < N; ++i)
      lanes[i] = simt::widen(T{static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16))});
  } else if constexpr (sizeof(T) == 2) {
    T value = simt::narrow<T>(outside);
    if (inside) value = *at;
    lanes[0] = simt::widen(value);
  } else {
    simt::Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack[i] = outside;
    if (inside) pack = simt::load_pack<N>(at);
#pragma unroll
    for (int i = 0; i < N; ++i) lanes[i] = pack[i];
  }
  return lanes;
}

/// N bytes in words, which is how they travel: as packs of bytes the compiler would move them one
/// by one.
template <int N> struct Bytes {
  static_assert(N == 1 || N == 2 || N == 4 || N == 8);
  using Word = std::conditional_t<N == 1, uint8_t, std::conditional_t<N == 2, uint16_t, uint32_t>>;
  static constexpr int kWords = N == 8 ? 2 : 1;
  simt::Pack<Word, kWords> words;

  BRASA_DEVICE_FN int operator[](int i) const { return int(words[i / 4] >> (i % 4 * 8)) & 255; }
};

/// N offsets at `at`, aligned to N; 255, which no window of less than 255 elements has, where they
/// are not `inside`.
template <int N> BRASA_DEVICE_FN Bytes<N> load_offsets(bool inside, const uint8_t* at) {
  Bytes<N> bytes;
#pragma unroll
  for (int i = 0; i < Bytes<N>::kWords; ++i) bytes.words[i] = typename Bytes<N>::Word(~0u);
  if (inside)
    bytes.words =
        simt::load_pack<Bytes<N>::kWords>(reinterpret_cast<const typename Bytes<N>::Word*>(at));
  return bytes;
}

template <int N> BRASA_DEVICE_FN void store_offsets(uint8_t* at, const int (&offsets)[N]) {
  Bytes<N> bytes{};
#pragma unroll
  for (int i = 0; i < N; ++i)
    bytes.words[i / 4] =
        typename Bytes<N>::Word(bytes.words[i / 4] | uint32_t(offsets[i]) << (i % 4 * 8));
  simt::store_pack<Bytes<N>::kWords>(reinterpret_cast<typename Bytes<N>::Word*>(at), bytes.words);
}

/// Takes a value of the scan for the best so far: the larger one, the first of equals, the last
/// NaN.
template <class W, class Offset>
BRASA_DEVICE_FN void take(W& best, Offset& winner, W value, Offset offset) {
  if (value > best || value != value) best = value, winner = offset;
}

}  // namespace brasa::cuda
