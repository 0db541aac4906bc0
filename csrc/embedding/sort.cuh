// Positions grouped by their row, in ascending order within it: a stable radix sort, a byte of the
// keys at a time from the lowest.
//
// A block sorts kSortItems items per pass, each warp a run of its own, 32 items at a time: lanes of
// one digit find each other by ballots, so an item's place follows from those before it alone, and
// the result does not depend on what runs when. Three launches per pass: the digits of each block
// are counted, the counts of a digit added up over the blocks, the items moved.
#pragma once

#include "core/device.cuh"

namespace brasa::cuda {

constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;
constexpr int kSortThreads = kDigits;  // a thread per digit where counts are added up
constexpr int kSortWarps = kSortThreads / simt::kWarpSize;
constexpr int kSortRounds = 8;
constexpr int kWarpItems = kSortRounds * simt::kWarpSize;
constexpr int kSortItems = kSortWarps * kWarpItems;

struct alignas(8) SortItem {
  uint32_t key, position;
};

static inline int64_t sort_blocks(int64_t n) {
  return simt::ceil_div<int64_t>(n, kSortItems);
}

/// The lanes with this digit among those that are `active`; all lanes call.
BRASA_DEVICE_FN unsigned lanes_with(unsigned digit, bool active) {
  unsigned lanes = __ballot_sync(simt::kFullMask, active);
#pragma unroll
  for (int bit = 0; bit < kDigitBits; ++bit) {
    const bool set = digit >> bit & 1;
    const unsigned others = __ballot_sync(simt::kFullMask, set);
    lanes &= set ? others : ~others;
  }
  return lanes;
}

/// Calls f(item, digit, lanes) for this warp's items, 32 at a time and in their order; `lanes` have
/// the digit, or are none where there is no item. All lanes call f.
template <class Items, class F>
BRASA_DEVICE_FN void for_warp_items(const Items& items, int64_t n, int shift, const F& f) {
  const int lane = int(threadIdx.x) % simt::kWarpSize, warp = int(threadIdx.x) / simt::kWarpSize;
  const int64_t first = int64_t(blockIdx.x) * kSortItems + warp * kWarpItems + lane;
#pragma unroll 1
  for (int round = 0; round < kSortRounds; ++round) {
    const int64_t i = first + round * simt::kWarpSize;
    const bool active = i < n;
    const SortItem item = active ? items(i) : SortItem{};
    const unsigned digit = item.key >> shift & (kDigits - 1);
    const unsigned lanes = lanes_with(digit, active);
    f(item, digit, active ? lanes : 0u);
  }
}

/// bins[warp][digit] = how many of the warp's items have the digit; the whole block calls.
template <class Items>
BRASA_DEVICE_FN void count_digits(const Items& items, int64_t n, int shift,
                                  uint32_t (&bins)[kSortWarps][kDigits]) {
  const int lane = int(threadIdx.x) % simt::kWarpSize, warp = int(threadIdx.x) / simt::kWarpSize;
  for (int w = 0; w < kSortWarps; ++w) bins[w][threadIdx.x] = 0;
  __syncthreads();
  for_warp_items(items, n, shift, [&](const SortItem&, unsigned digit, unsigned lanes) {
    if (lanes && __ffs(int(lanes)) - 1 == lane) bins[warp][digit] += unsigned(__popc(lanes));
    __syncwarp();
  });
  __syncthreads();
}

/// The sum of the values of the threads before this one, and in `total` of all; the block calls.
BRASA_DEVICE_FN uint32_t sum_before(uint32_t value, uint32_t& total) {
  BRASA_SHARED(uint32_t, of_warp, [kSortWarps]);
  const int lane = int(threadIdx.x) % simt::kWarpSize, warp = int(threadIdx.x) / simt::kWarpSize;
  uint32_t sum = value;
#pragma unroll
  for (int distance = 1; distance < simt::kWarpSize; distance *= 2) {
    const uint32_t before = __shfl_up_sync(simt::kFullMask, sum, unsigned(distance));
    if (lane >= distance) sum += before;
  }
  __syncthreads();  // an earlier call may still be reading of_warp
  if (lane == simt::kWarpSize - 1) of_warp[warp] = sum;
  __syncthreads();
  total = 0;
  for (int w = 0; w < kSortWarps; ++w) {
    if (w == warp) sum += total;
    total += of_warp[w];
  }
  return sum - value;
}

/// counts[digit gridDim.x + block]
template <class Items>
__global__ void __launch_bounds__(kSortThreads)
    count_digits_kernel(Items items, int64_t n, int shift, uint32_t* counts) {
  BRASA_SHARED(uint32_t, bins, [kSortWarps][kDigits]);
  count_digits(items, n, shift, bins);
  uint32_t count = 0;
  for (int w = 0; w < kSortWarps; ++w) count += bins[w][threadIdx.x];
  counts[threadIdx.x * gridDim.x + blockIdx.x] = count;
}

/// Counts become the sums over the blocks before; a block per digit.
static __global__ void __launch_bounds__(kSortThreads)
    sum_counts_kernel(uint32_t* counts, int64_t blocks, uint32_t* totals) {
  uint32_t* const mine = counts + blockIdx.x * blocks;
  uint32_t before = 0;
  for (int64_t first = 0; first < blocks; first += kSortThreads) {
    const int64_t i = first + threadIdx.x;
    uint32_t total;
    const uint32_t sum = sum_before(i < blocks ? mine[i] : 0u, total);
    if (i < blocks) mine[i] = before + sum;
    before += total;
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = before;
}

template <class Items>
__global__ void __launch_bounds__(kSortThreads)
    move_items_kernel(Items items, int64_t n, int shift, const uint32_t* counts,
                      const uint32_t* totals, SortItem* sorted) {
  BRASA_SHARED(uint32_t, bins, [kSortWarps][kDigits]);
  count_digits(items, n, shift, bins);
  uint32_t total, place = sum_before(totals[threadIdx.x], total);
  place += counts[threadIdx.x * gridDim.x + blockIdx.x];
  for (int w = 0; w < kSortWarps; ++w) {
    const uint32_t count = bins[w][threadIdx.x];
    bins[w][threadIdx.x] = place;
    place += count;
  }
  __syncthreads();
  const int lane = int(threadIdx.x) % simt::kWarpSize, warp = int(threadIdx.x) / simt::kWarpSize;
  for_warp_items(items, n, shift, [&](const SortItem& item, unsigned digit, unsigned lanes) {
    const uint32_t first = lanes ? bins[warp][digit] : 0;
    const auto before = unsigned(__popc(lanes & ((1u << lane) - 1)));
    __syncwarp();  // all have read their digit's place
    if (lanes && before == 0) bins[warp][digit] = first + unsigned(__popc(lanes));
    if (lanes) sorted[first + before] = item;
    __syncwarp();
  });
}

/// Memory of a sort of n items, in words: the items twice, then the counts.
static inline int64_t sort_words(int64_t n) {
  return 4 * n + (sort_blocks(n) + 1) * kDigits;
}

/// What items are read from after the first pass.
struct SortedItems {
  const SortItem* from;
  BRASA_DEVICE_FN SortItem operator()(int64_t i) const { return from[i]; }
};

/// Sorts what `items(i)` gives for i < n, 0 < n, by keys of up to `largest`; `words` is
/// sort_words(n) long and holds the result, which is returned.
template <class Items>
const SortItem* sort_items(simt::stream_t stream, const Items& items, int64_t n, uint32_t largest,
                           uint32_t* words) {
  const int64_t blocks = sort_blocks(n);
  SortItem* copies[2] = {reinterpret_cast<SortItem*>(words),
                         reinterpret_cast<SortItem*>(words) + n};
  uint32_t *const counts = words + 4 * n, *const totals = counts + blocks * kDigits;
  const auto pass = [&](const auto& from, int shift, SortItem* to) {
    using From = std::remove_cvref_t<decltype(from)>;
    const auto over = [&](int64_t grid) {
      return simt::LaunchConfig{
          .grid = dim3(unsigned(grid)), .block = dim3(kSortThreads), .stream = stream};
    };
    simt::launch(over(blocks), count_digits_kernel<From>, from, n, shift, counts);
    simt::launch(over(kDigits), sum_counts_kernel, counts, blocks, totals);
    simt::launch(over(blocks), move_items_kernel<From>, from, n, shift, counts, totals, to);
  };
  pass(items, 0, copies[0]);
  int at = 0;
  for (int shift = kDigitBits; shift < 32 && largest >> shift; shift += kDigitBits, at = 1 - at)
    pass(SortedItems{copies[at]}, shift, copies[1 - at]);
  return copies[at];
}

}  // namespace brasa::cuda
