// How convolutions on tensor cores are planned.
#pragma once

#include "conv/conv_tensor.cuh"
#include "core/driver.cuh"

namespace brasa::cuda {

constexpr int64_t kMultiprocessors = 132;  // an H100's; fixed, so that rounding is

// ---------------------------------------------------------------------------------------- plans

template <class T> static ImagePlan plan_x(const ConvParams& p) {
  return plan_image<T>(p, p.groups, p.group_in(), p.in_pixels(), p.x_channels_last);
}
template <class T> static ImagePlan plan_y(const ConvParams& p) {
  return plan_image<T>(p, p.groups, p.group_out(), p.out_pixels(), true);
}

/// The largest tiles that are enough for a GPU.
static ConvTile plan_tile(int64_t rows, int64_t columns, int64_t groups) {
  const auto tiles = [&](int64_t r, int64_t c) {
    return simt::ceil_div(rows, r) * simt::ceil_div(columns, c) * groups;
  };
  if (columns > 64 && tiles(128, 128) >= kMultiprocessors) return ConvTile::large;
  if (tiles(128, 64) >= kMultiprocessors) return ConvTile::tall;
  return ConvTile::small;
}

static int64_t tiles_of(ConvTile tile, int64_t rows, int64_t columns) {
  const int64_t width = tile == ConvTile::wgmma_wide                         ? 256
                        : tile == ConvTile::wgmma || tile == ConvTile::large ? 128
                                                                             : 64;
  return simt::ceil_div<int64_t>(rows, tile == ConvTile::small ? 64 : 128) *
         simt::ceil_div<int64_t>(columns, width);
}

/// Splits a depth, where there are too few tiles for a GPU, into parts of at least `least` lines.
template <class T> static ConvCut cut_depth(int64_t depth, int64_t tiles, int64_t least) {
  const int64_t wanted = 2 * kMultiprocessors;
  const int64_t most = simt::ceil_div<int64_t>(depth, least * kLine<T>);
  int64_t splits = tiles < 1 || 2 * tiles > wanted ? 1 : simt::ceil_div(wanted, tiles);
  splits = splits < most ? splits : most > 1 ? most : 1;
  const int64_t split_depth = whole(simt::ceil_div<int64_t>(depth, splits), kLine<T>);
  return {depth, depth < 1 ? 1 : simt::ceil_div(depth, split_depth), split_depth};
}

static int64_t pixels_of(const ConvParams& p, const Axis* axes) {
  return p.batch * axes[0].count * axes[1].count * axes[2].count;
}
static int64_t taps_of(const Axis* axes) {
  return axes[0].taps * axes[1].taps * axes[2].taps;
}

/// Whether Hopper's copy engine can walk a grid over an image, and full lines of channels are most
/// of what it would bring.
template <class T>
static bool can_walk(const ConvParams& p, const Axis* axes, const int64_t* size, int64_t channels) {
  constexpr int64_t kFarthest = 255;
  const bool full = 3 * channels >= 2 * whole(channels, kLine<T>);
  const bool flat = size[0] == 1 && axes[0].taps == 1 && axes[0].in_first == 0;
  if (!full || !flat || p.groups > 1 || simt::device_properties().capability != 90) return false;
  simt::PixelBox box{};
  for (int d = 0; d < 2; ++d) {
    const Axis& axis = axes[2 - d];
    if (axis.taps == 0 || (axis.taps - 1) * axis.tap_step > kFarthest || axis.in_step > 8 ||
        axis.in_first < -kFarthest)
      return false;
    box.size[d] = size[2 - d], box.count[d] = int(axis.count);
    box.first[d] = int(axis.in_first), box.step[d] = int(axis.in_step);
  }
  return box.is_possible();
}

/// Hopper's tile that needs less time: two narrow ones take a tenth longer than a wide one.
static ConvTile walked_tile(int64_t rows, int64_t columns) {
  if (columns <= 64) return ConvTile::wgmma_narrow;
  const int64_t across = simt::ceil_div<int64_t>(rows, 128);
  const int64_t waves =
      simt::ceil_div(across * simt::ceil_div<int64_t>(columns, 128), kMultiprocessors);
  const int64_t wide =
      simt::ceil_div(across * simt::ceil_div<int64_t>(columns, 256), kMultiprocessors);
  return 11 * waves > 20 * wide ? ConvTile::wgmma_wide : ConvTile::wgmma;
}

/// Forward, or a class of data, over an image of `size` with `channels` in a group.
template <class T>
static ConvPlan plan_pixels(const ConvParams& p, const Axis* axes, const int64_t* size,
                            int64_t channels, int64_t columns) {
  constexpr int64_t kFewestTiles = 32, kLeastColumns = 32;
  const int64_t pixels = pixels_of(p, axes), taps = taps_of(axes);
  if (columns > kLeastColumns && can_walk<T>(p, axes, size, channels)) {
    const ConvTile tile = walked_tile(pixels, columns);
    const int64_t tiles = tiles_of(tile, pixels, columns), depth = whole(channels, kLine<T>) * taps;
    if (tiles >= smaller(kFewestTiles, simt::device_properties().multiprocessors))
      return {tile, depth / taps, {depth, 1, depth}};
  }
  const ConvTile tile = plan_tile(pixels, columns, p.groups);
  const int64_t tiles = p.groups > 1 ? kMultiprocessors * 2 : tiles_of(tile, pixels, columns);
  return {tile, channels, cut_depth<T>(taps * channels, tiles, 4)};
}

/// The tile and the number of parts that take the least time, in cycles of an H100: a line of the
/// depth, 3.3 for each of the lines of 128 bytes that are loaded for it; a tile's own; and what it
/// takes to add up the parts.
template <class T>
static ConvPlan plan_walked_weight(int64_t channels, int64_t rows, int64_t columns,
                                   int64_t pixels) {
  constexpr int64_t kMostParts = 64, kLeastLines = 8, kAddedPerCycle = 375;
  constexpr struct {
    ConvTile tile;
    int64_t width, line, own;
  } kTiles[] = {{ConvTile::wgmma_narrow, 64, 640, 3000},
                {ConvTile::wgmma, 128, 850, 4000},
                {ConvTile::wgmma_wide, 256, 1270, 6000}};
  const int64_t lines = simt::ceil_div<int64_t>(pixels, kLine<T>);
  int64_t best = 0;
  ConvPlan plan{};
  for (const auto& t : kTiles) {
    if (best > 0 && columns <= t.width / 2) break;
    const int64_t tiles = tiles_of(t.tile, rows, columns);
    for (int64_t splits = 1; splits <= kMostParts && (splits == 1 || splits * kLeastLines <= lines);
         ++splits) {
      const int64_t depth = simt::ceil_div(lines, splits);
      const int64_t time =
          simt::ceil_div(tiles * splits, kMultiprocessors) * (depth * t.line + t.own) +
          splits * rows * columns / kAddedPerCycle;
      if (best > 0 && time >= best) continue;
      best = time;
      const int64_t split_depth = depth * kLine<T>;
      plan = {t.tile, channels, {pixels, simt::ceil_div(pixels, split_depth), split_depth}};
    }
  }
  return plan;
}

/// As many parts as fill a GPU.
template <class T> static ConvPlan plan_weight(const ConvParams& p) {
  constexpr int64_t kLeastColumns = 32, kLeastRows = 64;
  const int64_t channels = plan_x<T>(p).channels, columns = p.group_out();
  const int64_t pixels = p.batch * p.out_pixels(), rows = p.taps() * channels;
  Axis axes[3];
  for (int d = 0; d < 3; ++d) axes[d] = forward_axis(p, d);
  if (sizeof(T) == 2 && columns > kLeastColumns && rows > kLeastRows && pixels > 0 &&
      can_walk<T>(p, axes, p.in, channels)) {
    const int64_t filled = whole(channels, kLine<T>);
    return plan_walked_weight<T>(filled, p.taps() * filled, columns, pixels);
  }
  const ConvTile tile = rows >= 128 && columns > 64 ? ConvTile::large
                        : rows >= 128               ? ConvTile::tall
                                                    : ConvTile::small;
  return {tile, channels, cut_depth<T>(pixels, tiles_of(tile, rows, columns) * p.groups, 8)};
}

/// The classes of backward data, where one launch makes them all; else none.
template <class T> static ConvClasses join_classes(const ConvParams& p) {
  constexpr int64_t kLeastColumns = 32;
  const int64_t classes = residues(p, 0) * residues(p, 1) * residues(p, 2);
  const bool fits = p.x_channels_last && p.aligned && p.groups == 1 && p.in[0] == 1 &&
                    p.in_channels > kLeastColumns && p.in_channels % kPiece<T> == 0;
  if (sizeof(T) != 2 || !fits || classes < 2 || classes > kMostClasses || p.batch == 0) return {};
  ConvClasses joined{};
  bool walked = true;
  for_classes(p, [&](const Axis* axes) {
    const ConvClass c{{axes[0], axes[1], axes[2]}, 0};
    walked = walked && (c.taps() == 0 || can_walk<T>(p, axes, p.out, plan_y<T>(p).channels));
    int at = joined.count++;
    for (; at > 0 && joined.of[at - 1].taps() < c.taps(); --at) joined.of[at] = joined.of[at - 1];
    joined.of[at] = c;
  });
  if (!walked || joined.of[0].taps() == 0) return {};
  for (int i = 1; i < joined.count; ++i)
    joined.of[i].first_tap = joined.of[i - 1].first_tap + joined.of[i - 1].taps();
  return joined;
}

static int64_t parts_of_weight(const ConvParams& p, const ConvPlan& plan) {
  return plan.cut.splits * p.groups * p.taps() * plan.channels * p.group_out();
}

template <class T>
static int64_t parts_of_pixels(const ConvParams& p, const Axis* axes, const int64_t* size,
                               int64_t channels, int64_t columns) {
  const ConvPlan plan = plan_pixels<T>(p, axes, size, channels, columns);
  return plan.cut.splits > 1 ? plan.cut.splits * pixels_of(p, axes) * columns : 0;
}

}  // namespace brasa::cuda
