// How emulated tensor cores add: c + a[0] b[0] + ... + a[count - 1] b[count - 1].
#pragma once

#include <algorithm>
#include <cmath>

#include "emulator/scheduler.h"

namespace brasa::simt::emulator {

/// The worst that has been found of any: every term is cut to the 24 bits that the largest has, and
/// so is the sum. Products are exact in double, and so are sums of what is cut.
inline float cut_sum(const double* terms, int count) {
  constexpr int kBits = 24, kLeastExponent = -149;
  double most = 0.0, sum = 0.0;
  for (int i = 0; i < count; ++i) most = std::max(most, std::abs(terms[i]));
  const auto cut = [&](double x, double like) {
    int exponent = 0;
    std::frexp(like, &exponent);
    const int least = std::max(exponent - kBits, kLeastExponent);
    return std::ldexp(std::trunc(std::ldexp(x, -least)), least);
  };
  for (int i = 0; i < count; ++i) sum += cut(terms[i], most);
  return static_cast<float>(cut(sum, sum));
}

/// In order and rounded, products first, or with the option "sums" cut.
inline float tensor_sum(float c, const float* a, const float* b, int count) {
  constexpr int kMostTerms = 17;
  bool cuts = Scheduler::instance().options.sums_are_cut && std::isfinite(c);
  double terms[kMostTerms] = {c};
  float sum = 0.0f;
  for (int k = 0; k < count; ++k) {
    sum += a[k] * b[k];
    terms[k + 1] = static_cast<double>(a[k]) * static_cast<double>(b[k]);
    cuts = cuts && std::isfinite(terms[k + 1]);
  }
  return cuts ? cut_sum(terms, count + 1) : c + sum;
}

}  // namespace brasa::simt::emulator
