// 1x1 convolutions of images in C order, computed from the planes as they lie: each pixel's channel
// c is a plane further. Nothing is converted: the tile broadcasts single elements anyway, and
// neighbouring pixels are neighbours in memory. Each element's chain is that of the general
// algorithm.
//
// Planes lie too far apart for hardware to see what comes, so that each tile fetches the pixels of
// the block after this one, a line per channel, to L2. Against converting the image before: 256 ->
// 64 at 56x56 in 60 % of the time. Converting a block of pixels into L2 costs 1 ns per vector, 13 %
// of a layer of 64 outputs.
#pragma once

#include "conv/conv_gather.h"
#include "core/epilogue.h"

namespace brasa::cpu::BRASA_ISA {

/// Whether this is the algorithm for these shapes.
bool is_planar(const ConvParams& params);

template <class T>
void planar_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& params,
                    const Epilogue<T>& epilogue);

template <class T> size_t planar_workspace(const ConvParams& params, int threads);

}  // namespace brasa::cpu::BRASA_ISA
