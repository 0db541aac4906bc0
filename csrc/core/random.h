// Random words that are a function of a seed and a position: Philox4x32-10 (Salmon, Moraes, Dror
// and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"). The key is the seed, the counter a
// 64-bit number with 64 zero bits above it; each counter gives four words of 32 bits. Element i of
// an array uses word i % 4 of counter offset + i / 4, so any device and any thread draws the same
// without state.
//
// One round maps (c0, c1, c2, c3) to (high(M1 c2) ^ c1 ^ k0, low(M1 c2), high(M0 c0) ^ c3 ^ k1,
// low(M0 c0)).
//
// On the CPU a word lives in the low half of a 64-bit lane and the high half is left to whatever it
// is: the 32 x 32 -> 64 bit multiply ignores it, so a round of a vector is two multiplies, two
// shifts and two three-way xors. Counters are dealt to lanes so that pairing the halves leaves the
// words in memory order. A round waits for the one before it, some 6 cycles: several blocks go
// through the rounds side by side (one alone took five times as long).
#pragma once

#include <cstdint>

namespace brasa::philox {

constexpr int kRounds = 10;
constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u,
                   kWeyl1 = 0xBB67AE85u;  ///< what the key grows by each round

/// Words below it are an event of probability p: round(p 2^32), for 0 <= p <= 1.
constexpr uint64_t threshold(double p) {
  return uint64_t(p * 4294967296.0 + 0.5);
}

}  // namespace brasa::philox

#if defined(BRASA_ISA)

#include "core/simd.h"

namespace brasa::cpu::BRASA_ISA {

constexpr int kCounterLanes = kVectorBytes<double> / 8;
typedef uint64_t Lanes64 __attribute__((vector_size(kVectorBytes<double>)));
typedef uint64_t Unaligned64
    __attribute__((vector_size(kVectorBytes<double>), aligned(4), may_alias));

/// The product of the low halves of every lane and m.
BRASA_INLINE Lanes64 multiply_low_halves(Lanes64 a, uint32_t m) {
#if defined(BRASA_SCALAR)
  return Lanes64{uint64_t(uint32_t(a[0])) * m};
#elif defined(__AVX512F__)
  // The unmasked form's undefined operand is a false warning of GCC 12; a full mask costs nothing.
  return (Lanes64)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
  return (Lanes64)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
#elif defined(__x86_64__)
  return (Lanes64)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(m));
#elif defined(__aarch64__)
  return (Lanes64)vmull_n_u32(vmovn_u64((uint64x2_t)a), m);
#else
  return (a & 0xffffffffu) * m;
#endif
}

/// The keys of all rounds.
struct PhiloxKeys {
  Lanes64 k0[philox::kRounds], k1[philox::kRounds];
  explicit PhiloxKeys(uint64_t seed) {
    for (uint32_t round = 0; round < philox::kRounds; ++round) {
      k0[round] = Lanes64{} + uint32_t(uint32_t(seed) + round * philox::kWeyl0);
      k1[round] = Lanes64{} + uint32_t(uint32_t(seed >> 32) + round * philox::kWeyl1);
    }
  }
};

/// A vector of counters on their way through the rounds.
struct PhiloxBlock {
  Lanes64 c0, c1, c2, c3;

  BRASA_INLINE_MEMBER void begin(uint64_t counter) {
    constexpr int kHalf = kCounterLanes > 1 ? kCounterLanes / 2 : 1;
    Lanes64 dealt{};
    for (int i = 0; i < kCounterLanes; ++i) dealt[i] = uint64_t(i % 2 * kHalf + i / 2);
    c0 = dealt + counter;
    c1 = c0 >> 32;
    c2 = c3 = Lanes64{};
  }
  BRASA_INLINE_MEMBER void round(Lanes64 k0, Lanes64 k1) {
    const Lanes64 p0 = multiply_low_halves(c0, philox::kMultiplier0);
    const Lanes64 p1 = multiply_low_halves(c2, philox::kMultiplier1);
    c0 = (p1 >> 32) ^ c1 ^ k0;
    c2 = (p0 >> 32) ^ c3 ^ k1;
    c1 = p1;
    c3 = p0;
  }
  BRASA_INLINE_MEMBER void write(uint32_t* words) const {
    const Lanes64 low = (c0 & 0xffffffffu) | (c1 << 32), high = (c2 & 0xffffffffu) | (c3 << 32);
#if defined(BRASA_SCALAR)
    const uint64_t pairs[2] = {low[0], high[0]};
    for (int i = 0; i < 4; ++i) words[i] = uint32_t(pairs[i / 2] >> (i % 2 * 32));
#else
    // The pairs of even lanes side by side are the first half of the counters.
#if defined(__AVX512F__)
    const Lanes64 even = __builtin_shufflevector(low, high, 0, 8, 2, 10, 4, 12, 6, 14);
    const Lanes64 odd = __builtin_shufflevector(low, high, 1, 9, 3, 11, 5, 13, 7, 15);
#elif defined(__AVX2__)
    const Lanes64 even = __builtin_shufflevector(low, high, 0, 4, 2, 6);
    const Lanes64 odd = __builtin_shufflevector(low, high, 1, 5, 3, 7);
#else
    const Lanes64 even = __builtin_shufflevector(low, high, 0, 2);
    const Lanes64 odd = __builtin_shufflevector(low, high, 1, 3);
#endif
    *reinterpret_cast<Unaligned64*>(words) = even;
    *reinterpret_cast<Unaligned64*>(words + 2 * kCounterLanes) = odd;
#endif
  }
};

/// words[0 .. 4 kCounterLanes kBlocks): the words of counters counter, counter + 1, ...
template <int kBlocks>
BRASA_INLINE void philox_blocks(const PhiloxKeys& keys, uint64_t counter, uint32_t* words) {
  PhiloxBlock block[kBlocks];
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b) block[b].begin(counter + uint64_t(b * kCounterLanes));
#pragma GCC unroll 10
  for (int round = 0; round < philox::kRounds; ++round) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) block[b].round(keys.k0[round], keys.k1[round]);
  }
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b) block[b].write(words + b * 4 * kCounterLanes);
}

/// words[0 .. n): those of the elements from 4 * counter on; n is a multiple of 32.
static inline void philox_words(const PhiloxKeys& keys, uint64_t counter, int64_t n,
                                uint32_t* words) {
  constexpr int kBlocks = kCounterLanes == 8 ? 4 : 2, kWords = 4 * kCounterLanes;
  int64_t i = 0;
  for (; i + kBlocks * kWords <= n; i += kBlocks * kWords)
    philox_blocks<kBlocks>(keys, counter + uint64_t(i / 4), words + i);
  for (; i < n; i += kWords) philox_blocks<1>(keys, counter + uint64_t(i / 4), words + i);
}

}  // namespace brasa::cpu::BRASA_ISA

#elif defined(BRASA_FOR_CUDA)

#include "core/device.cuh"

namespace brasa::cuda {

/// The four words of one counter.
BRASA_DEVICE_FN void philox_words(uint64_t seed, uint64_t counter, uint32_t (&word)[4]) {
  uint32_t c0 = uint32_t(counter), c1 = uint32_t(counter >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma unroll
  for (int round = 0; round < philox::kRounds; ++round) {
    const uint32_t high0 = __umulhi(philox::kMultiplier0, c0), low0 = philox::kMultiplier0 * c0;
    const uint32_t high1 = __umulhi(philox::kMultiplier1, c2), low1 = philox::kMultiplier1 * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += philox::kWeyl0;
    k1 += philox::kWeyl1;
  }
  word[0] = c0;
  word[1] = c1;
  word[2] = c2;
  word[3] = c3;
}

}  // namespace brasa::cuda

#endif
