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

/// Vectors of channels that are summed together.
constexpr int kBiasVectors = 8;

/// sums[chain][channel] (+)= pixels of one block, pixel i in chain i % chains.
template <class T>
static void sum_bias_block(const T* dy, int64_t pixels, int64_t channels, int64_t chains, T* sums,
                           bool add) {
  constexpr int kVectors = kBiasVectors;
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

/// Shares of the channels: many channels are summed by kBiasVectors vectors, each on its own.
template <class T> static int64_t bias_shares(const ConvParams& p) {
  return bias_chains(p) > 1 ? 1 : ceil_div(p.out_channels, kBiasVectors * kLanes<T>);
}

/// One share of one part.
template <class T>
static void sum_bias_part(const ConvParams& p, const RowCut& rows, const T* dy, int64_t part,
                          int64_t share, T* sums) {
  const int64_t chains = bias_chains(p), channels = p.out_channels, first = rows.first(part);
  const EvenCut cut(rows.first(part + 1) - first, int(rows.per_block));
  sums += part * chains * channels;
  if (chains == 1) {
    const int64_t o = share * kBiasVectors * kLanes<T>;
    for (int64_t b = 0; b < cut.count; ++b)
      sum_channels<T, kBiasVectors>(dy + (first + cut.first(b)) * p.out[2] * channels + o,
                                    cut.rows(b) * p.out[2], channels, channels - o, sums + o,
                                    b > 0);
    return;
  }
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

/// The bias alone, or beside a weight gradient that does not take it along.
template <class T>
static void backward_bias(Context ctx, const ConvParams& p, const RowCut& rows, const T* dy,
                          T* sums, T* db) {
  constexpr double kWorkPerElement = 4;  // in multiply-adds: the additions wait for memory
  const double work =
      kWorkPerElement * double(rows.rows) * double(p.out[2]) * double(p.out_channels);
  const int64_t shares = bias_shares<T>(p);
  run_items(
      ctx, work, rows.parts * shares, 0,
      [&](int, int64_t i) { sum_bias_part(p, rows, dy, i / shares, i % shares, sums); },
      [](int64_t) {});
  add_bias_parts(p, rows, sums, db);
}

}  // namespace brasa::cpu::BRASA_ISA
