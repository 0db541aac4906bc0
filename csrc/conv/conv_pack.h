// Weights packed once, for all calls: what conv_forward() would pack for each.
//
// Which algorithm a call takes depends on its images too, so that every form that these weights may
// be read in is there: panels (conv_panels.h) for most, beside the panels of matmul/ for 1x1 layers
// that may be products; the weights as they are for depthwise and one-channel layers.
#pragma once

#include "conv/conv_plan.h"

namespace brasa::cpu::BRASA_ISA {

/// Where each form begins, in elements; less than 0 where it is not there.
struct PackedForms {
  int64_t plain = -1, panels = -1, product = -1, elements = 0;
};

template <class T> PackedForms packed_forms(const ConvParams& params);

}  // namespace brasa::cpu::BRASA_ISA
