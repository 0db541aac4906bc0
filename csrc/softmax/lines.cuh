// Who works on one line of an axis: a thread, 8 or 32 lanes of a warp, or a block. What softmax,
// cross-entropy and layer norm share.
//
// Each thread of a group has the same places of every line, in packs of 16 bytes where lines are
// whole packs. A contiguous line of up to 32 numbers per thread stays in registers from its one
// read to its one write, and all its loads are in flight at once; short lines take a quarter of a
// warp, so that four share the shuffles of a reduction. A longer line is read again by each pass,
// from L2, as only one block of 1024 threads fits a multiprocessor. Where the axis is not
// innermost, neighbouring lines are neighbours in memory, and each line has one thread. The choice
// depends on the shape of a line alone, never on how many there are.
//
// Numbers of an H100 (its copy takes 175, 88 and 175 us) before lines were kept: softmax of 65536 x
// 1000 in 262 us, 262144 x 128 in 124 (79 instructions per element, a division of 64 bits and ten
// shuffles for every 128), 2048 x 32000 in 374.
//
// T is what is computed in. Whether packs are aligned changes the loads alone, so that bits depend
// on shapes.
#pragma once

#include "core/raw.cuh"
#include "core/vmath.cuh"
#include "softmax/softmax.h"

namespace brasa::cuda {

constexpr int kLineThreads = 256;
/// Threads of the blocks that take the longest lines.
template <class T> inline constexpr int kLongThreads = sizeof(T) == 8 ? 512 : 1024;

/// Numbers of a line that a thread keeps: a quarter of its registers. Fewer where each has an
/// access of its own, with its own condition.
template <class T, int kLanes>
inline constexpr int kKept = (kLanes > 1 ? 32 : 16) / (sizeof(T) == 8 ? 4 : 1);

/// Blocks that a multiprocessor shall hold, of kernels that keep kArrays lines; one less where code
/// takes a few registers more.
template <class T, class Group, int kLanes, int kArrays>
inline constexpr int kLineBlocks =
    Group::kBlock > kLineThreads
        ? 1
        : (kArrays > 1 || sizeof(T) == 8 || kLanes == 1 ? 2 : 3) - int(simt::kBlackwell);

template <class T> struct MaximumAndSum {
  T maximum, sum;
};

/// kSize threads work on one line, blocks have kBlock. `near_max` is the maximum over those whose
/// exponentials have one shift; sums over all of these become those of the line by `merge`.
struct ThreadGroup {
  static constexpr int kSize = 1, kBlock = kLineThreads;
  static BRASA_DEVICE_FN int rank() { return 0; }
  template <class T> static BRASA_DEVICE_FN T sum(T v) { return v; }
  template <class T> static BRASA_DEVICE_FN T near_max(T v) { return v; }
  template <class T> static BRASA_DEVICE_FN MaximumAndSum<T> merge(T near, T sum) {
    return {near, sum};
  }
};

template <int kLanesOfWarp> struct WarpGroup {
  static constexpr int kSize = kLanesOfWarp, kBlock = kLineThreads;
  static BRASA_DEVICE_FN int rank() { return int(threadIdx.x % unsigned(kSize)); }
  template <class T, class Operation> static BRASA_DEVICE_FN T reduce(T v, Operation operation) {
#pragma unroll
    for (int offset = kSize / 2; offset > 0; offset /= 2)
      v = operation(v, __shfl_xor_sync(simt::kFullMask, v, offset));
    return v;
  }
  template <class T> static BRASA_DEVICE_FN T sum(T v) { return reduce(v, simt::Sum{}); }
  template <class T> static BRASA_DEVICE_FN T near_max(T v) { return reduce(v, simt::Max{}); }
  template <class T> static BRASA_DEVICE_FN MaximumAndSum<T> merge(T near, T sum_of_thread) {
    return {near, sum(sum_of_thread)};
  }
};

template <int kThreads> struct BlockGroup {
  static constexpr int kSize = kThreads, kBlock = kThreads, kWarps = kThreads / simt::kWarpSize;
  static BRASA_DEVICE_FN int rank() { return int(threadIdx.x); }
  /// Warps are added up in their order, as simt::block_reduce_sum does for any number of them.
  template <class T> static BRASA_DEVICE_FN T sum(T v) {
    BRASA_SHARED(T, of_warp, [kWarps]);
    v = simt::warp_sum(v);
    __syncthreads();  // an earlier call may still be reading of_warp
    if (rank() % simt::kWarpSize == 0) of_warp[rank() / simt::kWarpSize] = v;
    __syncthreads();
    T total = of_warp[0];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) total += of_warp[warp];
    return total;
  }
  template <class T> static BRASA_DEVICE_FN T near_max(T v) { return simt::warp_max(v); }
  /// Warps' maxima and sums meet once: a maximum of the block first would be two barriers more.
  template <class T> static BRASA_DEVICE_FN MaximumAndSum<T> merge(T near, T sum_of_thread) {
    BRASA_SHARED(MaximumAndSum<T>, of_warp, [kWarps]);
    const int lane = rank() % simt::kWarpSize;
    const T total = simt::warp_sum(sum_of_thread);
    __syncthreads();  // an earlier call may still be reading of_warp
    if (lane == 0) of_warp[rank() / simt::kWarpSize] = {near, total};
    __syncthreads();
    const auto part = lane < kWarps ? of_warp[lane] : MaximumAndSum<T>{-infinity<T>(), 0};
    const T maximum = simt::warp_max(part.maximum);
    return {maximum, simt::warp_sum(part.sum * vexp(part.maximum - maximum))};
  }
};

/// Threads on a line, lines that a block has at once, and which of these this thread's is; where
/// kSize is 0 it is the first dimension of the block.
template <class Group> BRASA_DEVICE_FN int group_size() {
  return Group::kSize > 0 ? Group::kSize : int(blockDim.x);
}
template <class Group> BRASA_DEVICE_FN int groups_of_block() {
  if constexpr (Group::kSize > 0)
    return Group::kBlock / Group::kSize;
  else
    return int(blockDim.y);
}
template <class Group> BRASA_DEVICE_FN unsigned group_place() {
  if constexpr (Group::kSize > 0)
    return threadIdx.x / unsigned(Group::kSize);
  else
    return threadIdx.y;
}

/// One line: element j stands `stride` elements after element j - 1. A thread takes kLanes
/// neighbours at a time; where that is more than 1 the stride is 1, n is whole packs, and `packs`
/// says that arrays are aligned. A line that does not exist (some lanes of a warp have none left)
/// has n = 0 and the index of the last one.
template <class T, class Group, int kLanes, bool kKeeps> struct Line {
  static constexpr int kWide = kLanes, kPacks = kKeeps ? kKept<T, kLanes> / kLanes : 1;
  using Place = std::conditional_t<kKeeps, int, int64_t>;
  using Values = simt::Lanes<T, kLanes>;

  int64_t index, offset;
  Place n;
  int64_t stride;
  bool packs;

  BRASA_DEVICE_FN int64_t at(int64_t j) const { return offset + j * stride; }
  BRASA_DEVICE_FN Place first() const { return Group::rank() * kLanes; }
  static BRASA_DEVICE_FN int step() { return group_size<Group>() * kLanes; }
  /// Whether this thread writes what there is one of in a line.
  BRASA_DEVICE_FN bool leads() const { return Group::rank() == 0 && n > 0; }

  /// The address of element j of the line that starts at `line`. Those of a kept line are constants
  /// after the thread's first one, and one address does; the compiler would make each of them anew,
  /// with the multiplication that the line's start is, 10 instructions for every access.
  template <class E> BRASA_DEVICE_FN E* address(E* line, Place j) const {
    if constexpr (kKeeps)
      return line + first() + (j - first());
    else
      return line + j * stride;
  }
  /// Elements j, j + 1 ... of the line that starts at `line`.
  template <class E> BRASA_DEVICE_FN Values load(const E* line, Place j) const {
    if constexpr (kLanes > 1) {
      if (packs) return simt::load_wide<kLanes>(address(line, j));
    }
    const E* const at = address(line, j);
    Values values;
#pragma unroll
    for (int k = 0; k < kLanes; ++k) values[k] = simt::widen(at[k * stride]);
    return values;
  }
  template <class E> BRASA_DEVICE_FN void store(E* line, Place j, const Values& values) const {
    if constexpr (kLanes > 1) {
      if (packs) return simt::store_wide(address(line, j), values);
    }
    E* const at = address(line, j);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) at[k * stride] = simt::narrow<E>(values[k]);
  }
  static BRASA_DEVICE_FN Values all(T value) {
    Values values;
#pragma unroll
    for (int k = 0; k < kLanes; ++k) values[k] = value;
    return values;
  }

  /// The elements of a line that are this thread's, in the order of each().
  template <class E> struct Held {
    const E* from;
    Values values[kPacks];
  };
  /// Reads the line that starts at `from`, if it is kept; with `beyond` for places after its end.
  template <class E> BRASA_DEVICE_FN Held<E> hold(const E* from, T beyond = 0) const {
    Held<E> held;
    held.from = from;
    // Blocks of 1024 threads have no registers for both forms.
    if constexpr (kKeeps && simt::kInWords<E, kLanes> && Group::kBlock <= kLineThreads) {
      simt::Raw<E, kLanes> raw[kPacks];  // all loads leave before the first is waited for
#pragma unroll
      for (int turn = 0; turn < kPacks; ++turn) {
        const Place j = first() + turn * step();
        if (j < n)
          raw[turn] = packs ? simt::load_raw<kLanes>(address(from, j))
                            : simt::gather_raw<kLanes>(address(from, j), stride);
      }
#pragma unroll
      for (int turn = 0; turn < kPacks; ++turn)
        held.values[turn] =
            first() + turn * step() < n ? simt::widen_raw<E, kLanes>(raw[turn]) : all(beyond);
    } else if constexpr (kKeeps) {
#pragma unroll
      for (int turn = 0; turn < kPacks; ++turn) {
        const Place j = first() + turn * step();
        held.values[turn] = j < n ? load(from, j) : all(beyond);
      }
    }
    return held;
  }
  template <class E> BRASA_DEVICE_FN Values get(const Held<E>& held, Place j, int turn) const {
    if constexpr (kKeeps)
      return held.values[turn];
    else
      return load(held.from, j);
  }

  /// f(j, turn) for every kLanes elements from j on that this thread has.
  template <class F> BRASA_DEVICE_FN void each(const F& f) const {
    if constexpr (kKeeps) {
#pragma unroll
      for (int turn = 0; turn < kPacks; ++turn) {
        const Place j = first() + turn * step();
        if (j < n) f(j, turn);
      }
    } else {
#pragma unroll(sizeof(T) == 8 ? 1 : 2)
      for (Place j = first(); j < n; j += step()) f(j, 0);
    }
  }
  /// The sum of a pack comes before it joins that of the line: shorter chains.
  static BRASA_DEVICE_FN T add(const Values& values) {
    T sum = values[0];
#pragma unroll
    for (int k = 1; k < kLanes; ++k) sum += values[k];
    return sum;
  }
  /// The sum of f(j, turn), the values from j on.
  template <class F> BRASA_DEVICE_FN T sum(const F& f) const {
    T total = 0;
    each([&](Place j, int turn) { total += add(f(j, turn)); });
    return Group::sum(total);
  }

  /// each() and sum() where lines are not kept, of f(j): for what is rare and takes many registers.
  template <class F> BRASA_DEVICE_FN void walk(const F& f) const {
#pragma unroll 1
    for (Place j = first(); j < n; j += step()) f(j);
  }
  /// The sum of a line that is not kept, several loads on their way.
  template <class E> BRASA_DEVICE_FN T read_sum(const E* line) const {
    constexpr int kBatch = kLanes < 4 ? 4 / kLanes : 1;
    T total = 0;
#pragma unroll 1
    for (Place j = first(); j < n; j += kBatch * step()) {
      Values v[kBatch];
#pragma unroll
      for (int turn = 0; turn < kBatch; ++turn)
        v[turn] = j + turn * step() < n ? load(line, j + turn * step()) : all(0);
#pragma unroll
      for (int turn = 0; turn < kBatch; ++turn) total += add(v[turn]);
    }
    return Group::sum(total);
  }
  template <class F> BRASA_DEVICE_FN T walk_sum(const F& f) const {
    T total = 0;
    walk([&](Place j) { total += add(f(j)); });
    return Group::sum(total);
  }

  /// What this thread's exponentials are taken from: the largest of its neighbourhood. 0 where that
  /// is all -inf.
  template <class E> BRASA_DEVICE_FN T shift_of(const Held<E>& held, T& near) const {
    T largest = -infinity<T>();
#pragma unroll
    for (int k = 0; k < kPacks * kLanes; ++k)
      largest = cuda::max(held.values[k / kLanes][k % kLanes], largest);
    near = Group::near_max(largest);
    return near == -infinity<T>() ? T(0) : near;
  }
  /// The largest element of a line held with -inf beyond its end, and the sum of exp(element -
  /// largest). NaN where the line is all -inf or holds a NaN or +inf, in what is made of the two if
  /// not in themselves.
  template <class E> BRASA_DEVICE_FN MaximumAndSum<T> max_and_sum(const Held<E>& held) const {
    if constexpr (!kKeeps) return max_and_sum_in_one_pass(held.from);
    T near, total = 0;
    const T shift = shift_of(held, near);
    each([&](Place, int turn) {
      T part = 0;
#pragma unroll
      for (int k = 0; k < kLanes; ++k) part += vexp(held.values[turn][k] - shift);
      total += part;
    });
    return Group::merge(near, total);
  }
  /// Puts exp(element - m) in place of a kept line's elements, and returns what makes these the
  /// line's softmax. m is the maximum of a warp, no more, so that its exponentials wait for its own
  /// loads alone.
  template <class E> BRASA_DEVICE_FN T exponentials(Held<E>& held) const {
    T near, total = 0;
    const T shift = shift_of(held, near);
    each([&](Place, int turn) {
      Values& values = held.values[turn];
#pragma unroll
      for (int k = 0; k < kLanes; ++k) values[k] = vexp(values[k] - shift);
      total += add(values);
    });
    const auto found = Group::merge(near, total);
    return Group::kSize > simt::kWarpSize ? vexp(near - found.maximum) / found.sum
                                          : T(1) / found.sum;
  }
  /// A sum is scaled where a larger element comes (Milakov and Gimelshein 2018).
  template <class E> BRASA_DEVICE_FN MaximumAndSum<T> max_and_sum_in_one_pass(const E* line) const {
    constexpr int kBatch = (kLanes == 1 ? 8 : 16 / kLanes) / (sizeof(T) == 8 ? 4 : 1);
    T largest = -infinity<T>(), total = 0;
    for (Place j = first(); j < n; j += kBatch * step()) {
      Values v[kBatch];
      T m = largest, part = 0;
#pragma unroll
      for (int turn = 0; turn < kBatch; ++turn) {
        const Place i = j + turn * step();
        v[turn] = i < n ? load(line, i) : all(-infinity<T>());
      }
#pragma unroll
      for (int k = 0; k < kBatch * kLanes; ++k) m = cuda::max(v[k / kLanes][k % kLanes], m);
      if (m == -infinity<T>()) continue;  // nothing yet that is more
#pragma unroll
      for (int k = 0; k < kBatch * kLanes; ++k) part += vexp(v[k / kLanes][k % kLanes] - m);
      total = total * vexp(largest - m) + part;
      largest = m;
    }
    const T near = Group::near_max(largest);
    const T scale = near == -infinity<T>() ? T(1) : vexp(largest - near);
    return Group::merge(near, total * scale);
  }
};

/// Calls f(line) for the lines that this thread takes part in; all threads of a warp call it as
/// often.
template <class T, class Group, int kLanes, bool kKeeps, class F>
BRASA_DEVICE_FN void for_lines(AxisShape shape, bool packs, const F& f) {
  const int per_block = groups_of_block<Group>(), size = group_size<Group>();
  const unsigned per_warp = size < simt::kWarpSize ? unsigned(simt::kWarpSize / size) : 1;
  const int64_t lines = shape.outer * shape.inner, step = int64_t(gridDim.x) * per_block;
  const unsigned place = group_place<Group>();
  for (int64_t i = int64_t(blockIdx.x) * per_block + place; i - place % per_warp < lines;
       i += step) {
    using Mine = Line<T, Group, kLanes, kKeeps>;
    Mine line{.index = i < lines ? i : lines - 1,
              .n = typename Mine::Place(i < lines ? shape.n : 0),
              .stride = 1,
              .packs = packs};
    line.offset = line.index * shape.n;
    if constexpr (Group::kSize == 1) {
      const int64_t slab = line.index / shape.inner;
      line.offset = slab * shape.n * shape.inner + line.index % shape.inner;
      line.stride = shape.inner;
    }
    BRASA_FORGET(line.offset);  // as address() says
    f(line);
  }
}

/// Whether these arrays are aligned for packs.
template <class... Arrays> bool in_packs(const Arrays*... arrays) {
  return (simt::pack_aligned(arrays) && ...);
}

template <class T> constexpr bool in_whole_packs(int64_t n) {
  return n % simt::kPackLanes<T> == 0;
}
/// Whether `threads` threads keep a contiguous line of n elements.
template <class T> bool keeps_row(int64_t n, int64_t threads) {
  return n <=
         threads * (in_whole_packs<T>(n) ? kKept<Wide<T>, simt::kPackLanes<T>> : kKept<Wide<T>, 1>);
}

template <class Group> simt::LaunchConfig over_lines(Context ctx, int64_t lines) {
  return {.grid = simt::blocks_for(lines, Group::kBlock / Group::kSize),
          .block = dim3(Group::kBlock),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}

/// Calls f.operator()<group, lanes, keeps>(config) with what suits contiguous lines of n elements
/// of T, of kArrays arrays at once: blocks of 1024 threads have registers for one.
template <class T, int kArrays, class F>
void choose_row_group(Context ctx, int64_t lines, int64_t n, const F& f) {
  const auto with = [&]<class Group, bool kKeeps>() {
    const auto config = over_lines<Group>(ctx, lines);
    in_whole_packs<T>(n) ? f.template operator()<Group, simt::kPackLanes<T>, kKeeps>(config)
                         : f.template operator()<Group, 1, kKeeps>(config);
  };
  if (keeps_row<T>(n, 8)) return with.template operator()<WarpGroup<8>, true>();
  if (keeps_row<T>(n, 32)) return with.template operator()<WarpGroup<32>, true>();
  if (keeps_row<T>(n, kLineThreads))
    return with.template operator()<BlockGroup<kLineThreads>, true>();
  using Long = BlockGroup<kLongThreads<T>>;
  if constexpr (kArrays == 1) {
    if (in_whole_packs<T>(n) && keeps_row<T>(n, kLongThreads<T>))
      return f.template operator()<Long, simt::kPackLanes<T>, true>(over_lines<Long>(ctx, lines));
  }
  with.template operator()<Long, false>();
}

/// The same for lines of any stride. Those of float64, which few have, are read again element by
/// element: three kernels in place of eleven.
template <class T, int kArrays, class F>
void choose_group(Context ctx, AxisShape shape, const F& f) {
  const auto singly = [&]<class Group>() {
    f.template operator()<Group, 1, false>(over_lines<Group>(ctx, shape.lines()));
  };
  if (shape.inner != 1) return singly.template operator()<ThreadGroup>();
  if constexpr (sizeof(T) == 8) {
    constexpr int64_t kOfWarp = 1024;
    shape.n <= kOfWarp ? singly.template operator()<WarpGroup<simt::kWarpSize>>()
                       : singly.template operator()<BlockGroup<kLongThreads<T>>>();
  } else {
    choose_row_group<T, kArrays>(ctx, shape.lines(), shape.n, f);
  }
}

}  // namespace brasa::cuda
