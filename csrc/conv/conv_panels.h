// Weights as the tiles read them: panels of up to kConvVectors vectors of output channels, a row
// for every tap and input channel.
//
// Each thread packs what it is about to use into memory of its own, a split of the panels at a
// time, and keeps it for its next blocks of pixels. Packing by the whole team before was slower, as
// lines that another core has just written come at a tenth of the speed of packing them: dx of 512
// channels of 3x3 takes 8 % less time on 7x7, batch 8, and 20 % on 14x14, batch 1; forward, 512
// channels on 14x14, 1 and 4 %. Low blocks of pixels cost 9 % where threads pack different splits:
// whoever takes a block of another thread's packs for it.
#pragma once

#include "conv/conv_tile.h"
#include "conv/conv_transpose.h"

namespace brasa::cpu::BRASA_ISA {

/// Panels [begin, end) of all groups' panels.
struct PanelRange {
  int64_t begin, end;
};

/// Bytes of a split, which stays in L2 beside the pixels; fewer are not worth splitting for the
/// sake of packing each panel on one thread alone.
constexpr int64_t kSplitBytes = 384 * 1024, kUnsplitBytes = 64 * 1024;

template <class T> struct PanelWeights {
  const T* w;     ///< (out_channels, in_channels / groups, taps) of the convolution
  const T* kept;  ///< all panels, packed before (conv_pack.h), or null
  bool backward;
  int64_t taps, groups, group_in, group_out;  ///< as the gather sees them
  int64_t splits = 1;                         ///< that the panels are cut into at least
  int64_t slot = 0;                           ///< elements of a split
  int64_t* first_row = nullptr;  ///< of the kernel's elements in C order: where their channels
                                 ///< begin in a panel, or less than 0 where no pixel asks for them;
                                 ///< in order where that is null
  int64_t* held = nullptr;  ///< by threads, kHeldStep apart: the first panel that is packed, or -1
  T* packed = nullptr;      ///< by threads

  int64_t depth() const { return taps * group_in; }
  int64_t count() const { return groups * Panels<T>(group_out).count; }
  int64_t columns() const { return groups * Panels<T>(group_out).padded(); }
  /// Of all groups' padded columns, where panel i begins.
  int64_t column(int64_t i) const {
    const Panels<T> panels(group_out);
    return i / panels.count * panels.padded() + panels.column(i % panels.count);
  }
  /// The panels of a range, one after another, packed by and for one thread.
  const T* of(int member, PanelRange range) const {
    if (kept) return kept + column(range.begin) * depth();
    T* to = packed + member * slot;
    int64_t& holds = held[member * kHeldStep];
    if (holds != range.begin) pack(range, to);
    holds = range.begin;
    return to;
  }

  static constexpr int64_t kHeldStep = 8;  ///< a line each

  void pack(PanelRange range, T* to) const {
    const Panels<T> panels(group_out);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const int64_t group = i / panels.count, panel = i % panels.count;
      const T* from =
          w +
          (group * group_out * group_in + panels.column(panel) * (backward ? 1 : group_in)) * taps;
      const int64_t pitch = panels.width(panel) * kLanes<T>, step = backward ? 1 : kChannels;
      for (int64_t begin = 0; begin < group_in; begin += step)
        for (int64_t v = 0; v < panels.width(panel); ++v) {
          const Lane lane{to + v * kLanes<T>,
                          smaller(kLanes<T>, panels.live(panel) - v * kLanes<T>), pitch};
          const int64_t end = smaller(begin + step, group_in);
          if (backward)
            pack_backward(lane, from + v * kLanes<T> * taps, begin);
          else
            pack_forward(lane, from + v * kLanes<T> * depth(), begin, end);
        }
      to += pitch * depth();
    }
  }

 private:
  static constexpr int64_t kChannels = 32;  ///< whose weights are packed forward at a time

  /// One vector of columns, `live` of which exist: where its weights go.
  struct Lane {
    T* panel;
    int64_t live, pitch;
  };

  __attribute__((always_inline)) void put(const Lane& lane, int64_t k, int64_t channel,
                                          Vec<T> weights) const {
    const int64_t first = first_row ? first_row[k] : k * group_in;
    if (first >= 0) store(lane.panel + (first + channel) * lane.pitch, weights);
  }

  /// Channels [begin, end) of w[column][channel][k]: a column's weights follow one another.
  void pack_forward(const Lane& lane, const T* from, int64_t begin, int64_t end) const {
    int64_t c = begin, k = 0;
    transpose_rows(from + begin * taps, depth(), lane.live, (end - begin) * taps,
                   [&](int64_t, Vec<T> weights) {
                     put(lane, k, c, weights);
                     if (++k == taps) k = 0, ++c;
                   });
  }

  /// One channel of w[channel][column][k].
  void pack_backward(const Lane& lane, const T* from, int64_t c) const {
    from += c * group_out * taps;
    if (taps == 1)
      put(lane, 0, c, load_live(from, lane.live));
    else
      transpose_rows(from, taps, lane.live, taps,
                     [&](int64_t k, Vec<T> weights) { put(lane, k, c, weights); });
  }
};

/// Takes the memory of packed weights, where they are not `kept`; they are none of `w`'s yet.
template <class T>
static PanelWeights<T> plan_panels(Arena& arena, int64_t taps, int64_t groups, int64_t group_in,
                                   int64_t group_out, bool kept, int threads) {
  PanelWeights<T> weights{nullptr, nullptr, false, taps, groups, group_in, group_out};
  const int64_t count = weights.count(), depth = weights.depth(),
                bytes = depth * weights.columns() * int64_t(sizeof(T));
  weights.splits = larger(ceil_div(bytes, kSplitBytes), bytes > kUnsplitBytes ? threads : 1);
  weights.splits = larger(1, smaller(weights.splits, count));
  weights.slot =
      ceil_div(count, weights.splits) * Panels<T>(group_out).width(0) * kLanes<T> * depth;
  if (kept) return weights;
  weights.held = arena.take<int64_t>(threads * weights.kHeldStep);
  weights.packed = arena.take<T>(threads * weights.slot);
  for (int i = 0; weights.held && i < threads; ++i) weights.held[i * weights.kHeldStep] = -1;
  return weights;
}

/// Items of work per thread: the last one of them is waited for.
constexpr int64_t kItemsPerThread = 24;

/// Pixels of a block: fewer where these would be too few items and every thread packs all panels,
/// so that any block may go to any of them. They are in L2: low blocks cost their set-up alone.
static inline int64_t block_pixels(int64_t pixels, int64_t splits, int threads) {
  int64_t block = kConvBlock;
  while (splits < threads && block > kLeastConvBlock &&
         ceil_div(pixels, block) * splits < kItemsPerThread * threads)
    block /= 2;
  return block;
}

/// Into how many splits the panels are cut: more only where there are too few blocks of pixels for
/// the threads.
template <class T>
static int64_t splits_of(Context ctx, const PanelWeights<T>& weights, int64_t blocks) {
  const int64_t wanted = ctx.threads == 1 ? 1 : kItemsPerThread * ctx.threads;
  return larger(weights.splits, smaller(weights.count(), ceil_div(wanted, larger(blocks, 1))));
}

}  // namespace brasa::cpu::BRASA_ISA
