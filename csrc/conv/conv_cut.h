// What it costs to cut pixels at the borders of an image (conv_axis.h): taps that lie in padding
// are skipped, but tiles become low, and the weights of a tap are read for every part.
#pragma once

#include "conv/conv_axis.h"
#include "core/tiles.h"

namespace brasa::cpu::BRASA_ISA {

/// The taps and pixels of an axis's parts.
struct AxisCut {
  static constexpr int64_t kMost = 32;
  int64_t count = 0, taps[kMost], pixels[kMost];

  void add(const Axis& axis) {
    if (count < kMost) taps[count] = axis.taps, pixels[count] = axis.count;
    ++count;
  }
};

/// What a tap of a part costs, in multiplications of its weights by one pixel: a tile of few pixels
/// takes as long as one of kLowTile, and weights that come from L3 as long as kFarPixels.
constexpr int64_t kLowTile = 5, kFarPixels = 9, kFarPanelBytes = 768 * 1024;

static inline int64_t cost_of_parts(const AxisCut (&cut)[3], int64_t batch, int64_t panel_bytes) {
  const int64_t reading = panel_bytes > kFarPanelBytes ? kFarPixels : 0;
  int64_t cost = 0;
  for (int64_t i = 0; i < cut[0].count; ++i)
    for (int64_t j = 0; j < cut[1].count; ++j)
      for (int64_t k = 0; k < cut[2].count; ++k) {
        const int64_t pixels = batch * cut[0].pixels[i] * cut[1].pixels[j] * cut[2].pixels[k];
        cost += cut[0].taps[i] * cut[1].taps[j] * cut[2].taps[k] *
                (larger(kLowTile, pixels) + reading * ceil_div(pixels, kConvBlock));
      }
  return cost;
}

}  // namespace brasa::cpu::BRASA_ISA
