// The gradient of the bias: db[o] = sum over pixels of dy[., o], in the parts and blocks of
// core/order.h. With few channels a block's pixels are dealt to 16 chains, so that dy is read as
// one array of 16 times the channels; with many, channels alone fill enough vectors.
#pragma once

#include "conv/conv_weight.h"

namespace brasa::cpu::BRASA_ISA {

static inline int64_t bias_chains(const ConvParams& p) {
  return p.out_channels < order::kConvBiasChannels ? order::kConvBiasChains : 1;
}

/// Elements of the sums of all parts.
static inline int64_t bias_elements(const ConvParams& p, const RowCut& rows) {
  return rows.parts * bias_chains(p) * p.out_channels;
}

/// sums[0, n) (+)= sum over rows of dy[0, n), n at most kVectors vectors.
template <class T, int kVectors>
static void sum_channels(const T* dy, int64_t rows, int64_t step, int64_t live, T* sums, bool add) {
  Vec<T> sum[kVectors];
#pragma GCC unroll 8
  for (int j = 0; j < kVectors; ++j)
    sum[j] = add ? load_live(sums + j * kLanes<T>, live - j * kLanes<T>) : Vec<T>{};
  if (live >= kVectors * kLanes<T>) {
    for (int64_t n = 0; n < rows; ++n, dy += step)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[j] += load(dy + j * kLanes<T>);
  } else {
    for (int64_t n = 0; n < rows; ++n, dy += step)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j)
        sum[j] += load_live(dy + j * kLanes<T>, live - j * kLanes<T>);
  }
#pragma GCC unroll 8
  for (int j = 0; j < kVectors; ++j) store_live(sums + j * kLanes<T>, sum[j], live - j * kLanes<T>);
}

/// sums[chain][channel] (+)= pixels of one block, pixel i in chain i % chains.
template <class T>
static void sum_bias_block(const T* dy, int64_t pixels, int64_t channels, int64_t chains, T* sums,
                           bool add) {
  constexpr int kVectors = 8;
  const int64_t step = chains * channels, rows = pixels / chains;
  for (int64_t o = 0; o < step; o += kVectors * kLanes<T>)
    sum_channels<T, kVectors>(dy + o, rows, step, step - o, sums + o, add);
  const int64_t rest = pixels % chains * channels;
  for (int64_t o = 0; o < rest; o += kVectors * kLanes<T>)
    sum_channels<T, kVectors>(dy + rows * step + o, 1, step, rest - o, sums + o, true);
}

/// sums[0][channel] += the other chains, in order.
template <class T> static void add_chains(int64_t channels, int64_t chains, T* sums) {
  for (int64_t o = 0; o < channels; o += kLanes<T>) {
    Vec<T> sum = load_live(sums + o, channels - o);
    for (int64_t i = 1; i < chains; ++i) sum += load_live(sums + i * channels + o, channels - o);
    store_live(sums + o, sum, channels - o);
  }
}

/// One part on its own.
template <class T>
static void sum_bias_part(const ConvParams& p, const RowCut& rows, const T* dy, int64_t part,
                          T* sums) {
  const int64_t chains = bias_chains(p), channels = p.out_channels, first = rows.first(part);
  const EvenCut cut(rows.first(part + 1) - first, int(rows.per_block));
  sums += part * chains * channels;
  for (int64_t b = 0; b < cut.count; ++b)
    sum_bias_block(dy + (first + cut.first(b)) * p.out[2] * channels, cut.rows(b) * p.out[2],
                   channels, chains, sums, b > 0);
  add_chains(channels, chains, sums);
}

/// db = the parts, in order.
template <class T>
static void add_bias_parts(const ConvParams& p, const RowCut& rows, const T* sums, T* db) {
  const int64_t part = bias_chains(p) * p.out_channels;
  for (int64_t o = 0; o < p.out_channels; ++o) {
    T sum = sums[o];
    for (int64_t i = 1; i < rows.parts; ++i) sum += sums[i * part + o];
    db[o] = sum;
  }
}

}  // namespace brasa::cpu::BRASA_ISA
