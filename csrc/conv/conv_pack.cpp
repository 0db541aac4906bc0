#include "conv/conv_pack.h"

#include "conv/conv.h"
#include "conv/conv_panels.h"
#include "conv/conv_product.h"
#include "core/parallel.h"

namespace brasa::cpu::BRASA_ISA {

static inline int64_t whole_lines(int64_t elements) {
  return ceil_div(elements, 16) * 16;
}

template <class T> PackedForms packed_forms(const ConvParams& p) {
  PackedForms forms;
  const auto take = [&](int64_t elements) {
    const int64_t begin = forms.elements;
    forms.elements += whole_lines(elements);
    return begin;
  };
  const int64_t depth = p.group_in() * p.taps();
  if (p.is_depthwise() || p.in_channels == 1) forms.plain = take(p.out_channels * depth);
  if (!p.is_depthwise()) forms.panels = take(p.groups * Panels<T>(p.group_out()).padded() * depth);
  if (may_be_product(p)) forms.product = take(packed_product_elements<T>(p));
  return forms;
}

template <class T> int64_t conv_packed_elements(const ConvParams& params) {
  return packed_forms<T>(params).elements;
}

template <class T> void conv_pack(Context ctx, const T* w, T* packed, const ConvParams& p) {
  const PackedForms forms = packed_forms<T>(p);
  const int64_t elements = p.out_channels * p.group_in() * p.taps();
  if (forms.plain >= 0) __builtin_memcpy(packed + forms.plain, w, size_t(elements) * sizeof(T));
  if (forms.product >= 0) pack_product(ctx, w, packed + forms.product, p);
  if (forms.panels < 0) return;
  const PanelWeights<T> panels{w, nullptr, false, p.taps(), p.groups, p.group_in(), p.group_out()};
  parallel_chunks(ctx, panels.count(), [&](int, int64_t i) {
    panels.pack({i, i + 1}, packed + forms.panels + panels.column(i) * panels.depth());
  });
}

BRASA_INSTANTIATE(packed_forms, float, double)
BRASA_INSTANTIATE(conv_packed_elements, float, double)
BRASA_INSTANTIATE(conv_pack, float, double)

}  // namespace brasa::cpu::BRASA_ISA
