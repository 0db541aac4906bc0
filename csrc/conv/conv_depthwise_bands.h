// Depthwise layers of images in C order, and of many channels: a thread brings some blocks of
// channels of a band of rows to [block][pixel][lane] in its workspace, transposed in registers, and
// gathers from there while that is in L2: x is read and y written once. Converting the whole image
// before took twice as long.
#pragma once

#include "conv/conv_depthwise_gather.h"
#include "conv/conv_finish.h"

namespace brasa::cpu::BRASA_ISA {

/// How an image is cut. A band is some rows of pixels, or all where images have depth.
template <class T> struct BandPlan {
  bool deep;
  int64_t rows, blocks;  ///< most of a band
  int64_t block;         ///< elements of x of one block
  T* staged;             ///< per thread

  BandPlan(Arena& arena, const ConvParams& p, int threads)
      : deep(p.in[0] > 1 || p.out[0] > 1), rows(p.out[0] * p.out[1]) {
    const int64_t row_bytes = p.in[2] * kLanes<T> * int64_t(sizeof(T));
    const int64_t reach = (p.kernel[1] - 1) * p.dilation[1] + 1;
    const int64_t fitting = (kDepthwiseBandBytes / row_bytes - reach) / p.stride[1] + 1;
    if (!deep) rows = larger(1, smaller(rows, fitting));
    const int64_t x_rows =
        deep ? p.in[0] * p.in[1] : smaller(p.in[1], (rows - 1) * p.stride[1] + reach);
    block = x_rows * p.in[2] * kLanes<T>;
    const int64_t fitting_blocks = kDepthwiseGroupBytes / (block * int64_t(sizeof(T)));
    blocks = larger(1, smaller(ceil_div(p.in_channels, kLanes<T>), fitting_blocks));
    staged = arena.take<T>(threads * blocks * block);
  }
};

/// Rows of x.
struct RowRange {
  int64_t begin, end;
};

/// The rows of x that rows [begin, end) of pixels may ask for.
static inline RowRange rows_met(const ConvParams& p, bool deep, int64_t begin, int64_t end) {
  if (deep) return {0, p.in[0] * p.in[1]};
  const int64_t first = begin * p.stride[1] - p.pad_begin[1];
  const int64_t last = (end - 1) * p.stride[1] - p.pad_begin[1] + (p.kernel[1] - 1) * p.dilation[1];
  const int64_t low = smaller(larger(0, first), p.in[1]);
  return {low, larger(low, smaller(p.in[1], last + 1))};
}

/// to[block][pixel][lane] from `pixels` pixels of planes; lanes without a channel are 0.
template <class T>
static void stage_planes(const BandPlan<T>& plan, const ChannelBlocks<T>& blocks, const T* x,
                         int64_t plane, int64_t pixels, int64_t begin, int64_t end, T* to) {
  // What is left over begins early, in whole vectors.
  const int64_t whole = pixels < kLanes<T> ? pixels : pixels / kLanes<T> * kLanes<T>;
  for (int64_t block = begin; block < end; ++block, to += plan.block) {
    const auto convert = [&](int64_t first, int64_t count) {
      transpose_rows(x + blocks.first(block) * plane + first, plane, blocks.live(block), count,
                     [&](int64_t i, Vec<T> pixel) { store(to + (first + i) * kLanes<T>, pixel); });
    };
    convert(0, whole);
    if (whole < pixels) convert(pixels - kLanes<T>, kLanes<T>);
  }
}

/// The same of channels-last pixels, from their first channel on.
template <class T>
static void stage_pixels(const BandPlan<T>& plan, const ChannelBlocks<T>& blocks, const T* x,
                         int64_t pixels, int64_t begin, int64_t end, T* to) {
  for (int64_t i = 0; i < pixels; ++i, x += blocks.channels, to += kLanes<T>)
    for (int64_t block = begin; block < end; ++block)
      store(to + (block - begin) * plan.block,
            load_live(x + blocks.first(block), blocks.live(block)));
}

/// Pixels of so many bytes share sets of L1: channels-last ones are copied too (15 to 45 % faster
/// with 1024 channels, slower with 512).
constexpr int64_t kBandedPixelBytes = 4096;

template <class T> static bool is_banded(const ConvParams& p) {
  return !p.x_channels_last || p.in_channels * int64_t(sizeof(T)) >= kBandedPixelBytes;
}

template <class T>
static void forward_by_bands(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                             const Epilogue<T>& epilogue) {
  Arena arena(ctx.workspace);
  const PackedBlocks<T> packed(arena, p, disjoint_blocks<T>(p.in_channels));
  const BandPlan<T> plan(arena, p, ctx.threads);
  pack_blocks(ctx, packed, w, epilogue.bias);
  DepthwiseGather<T> whole =
      make_gather(p, packed, plain_source<T>(nullptr, kLanes<T>, p.in), y, p.out);
  whole.row.x_blocks = {p.in_channels, plan.block, INT64_MAX};
  set_axes(whole, forward_axis(p, 0), forward_axis(p, 1), forward_axis(p, 2), true);
  Epilogue<T> rest = epilogue;
  rest.bias = nullptr;
  const RowEpilogue<T> finish(rest);
  const EvenCut bands(whole.rows(), int(plan.rows)), groups(packed.count, int(plan.blocks));
  const int64_t row = p.in[2] * kLanes<T>, channels = p.in_channels;
  parallel_chunks(ctx, p.batch * bands.count * groups.count, [&](int member, int64_t i) {
    const int64_t group = i % groups.count, band = i / groups.count % bands.count;
    const int64_t n = i / groups.count / bands.count;
    const int64_t begin = bands.first(band), end = bands.first(band + 1);
    const RowRange met = rows_met(p, plan.deep, begin, end);
    T* staged = plan.staged + member * plan.blocks * plan.block;
    DepthwiseGather<T> g = whole;
    g.row.x_begin = g.row.begin = groups.first(group);
    g.row.end = groups.first(group + 1);
    const T* image = x + n * channels * p.in_pixels();
    const int64_t first = met.begin * p.in[2], pixels = met.end * p.in[2] - first;
    if (p.x_channels_last)
      stage_pixels(plan, packed.blocks, image + first * channels, pixels, g.row.begin, g.row.end,
                   staged);
    else
      stage_planes(plan, packed.blocks, image + first, p.in_pixels(), pixels, g.row.begin,
                   g.row.end, staged);
    g.source.data = staged - met.begin * row;
    g.out += n * g.out_image;
    gather_band(g, 0, begin, end);
    if (!rest.is_trivial())
      finish_channels(finish, y, g.out + begin * p.out[2] * channels, channels,
                      (end - begin) * p.out[2], packed.blocks.first(g.row.begin),
                      smaller(channels, packed.blocks.first(g.row.end)));
  });
}

}  // namespace brasa::cpu::BRASA_ISA
