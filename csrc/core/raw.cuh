// Packs that are widened later than they are loaded.
#pragma once

#include "core/ptx_convert.cuh"

namespace brasa::simt {

/// N neighbours as they lie in memory, of 16 bits two to a word: what a load may leave to be
/// widened later, so that no other load waits for it.
template <class T, int N> inline constexpr bool kInWords = sizeof(T) == 2 && N > 1;
template <class T, int N>
using Raw = Pack<std::conditional_t<kInWords<T, N>, uint32_t, T>, kInWords<T, N> ? N / 2 : N>;

/// Reads N neighbours at `pointer`, which is aligned to all of them.
template <int N, class T> BRASA_DEVICE_FN Raw<T, N> load_raw(const T* pointer) {
  if constexpr (kInWords<T, N>)
    return load_pack<N / 2>(reinterpret_cast<const uint32_t*>(pointer));
  else
    return load_pack<N>(pointer);
}
/// The same, one by one.
template <int N, class T> BRASA_DEVICE_FN Raw<T, N> gather_raw(const T* pointer, int64_t stride) {
  Raw<T, N> raw;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (!kInWords<T, N>)
      raw[i] = pointer[i * stride];
    else if (i % 2 == 0)
      raw[i / 2] = pointer[i * stride].bits;
    else
      raw[i / 2] |= uint32_t(pointer[i * stride].bits) << 16;
  }
  return raw;
}
template <class T, int N> BRASA_DEVICE_FN Lanes<Wide<T>, N> widen_raw(const Raw<T, N>& raw) {
  Lanes<Wide<T>, N> lanes;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (kInWords<T, N>)
      lanes[i] = widen(T{static_cast<uint16_t>(raw[i / 2] >> (i % 2 * 16))});
    else
      lanes[i] = widen(raw[i]);
  }
  return lanes;
}

}  // namespace brasa::simt
