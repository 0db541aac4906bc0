// CUDA's built-in variables, barriers, warp functions and atomics for a C++ compiler.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "emulator/runtime.h"

#define threadIdx (::brasa::simt::emulator::current_thread->thread_idx)
#define blockIdx (::brasa::simt::emulator::current_thread->block_idx)
#define blockDim (::brasa::simt::emulator::current_thread->block_dim)
#define gridDim (::brasa::simt::emulator::current_thread->grid_dim)
inline constexpr int warpSize = 32;

#define BRASA_HERE \
  ::brasa::simt::emulator::Location where = ::brasa::simt::emulator::Location::current()

// ---- barriers

inline void __syncthreads(BRASA_HERE) {
  ::brasa::simt::emulator::block_barrier(where);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu, BRASA_HERE) {
  ::brasa::simt::emulator::warp_barrier(mask, where);
}
inline void __threadfence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence_block() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

// ---- warp functions

namespace brasa::simt::emulator {
template <class T>
inline T shuffle(uint32_t mask, T value, Shuffle kind, int operand, int width, Location where) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_shuffle(mask, bits, kind, operand, width, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
}  // namespace brasa::simt::emulator

template <class T>
inline T __shfl_sync(uint32_t mask, T value, int lane, int width = 32, BRASA_HERE) {
  using namespace ::brasa::simt::emulator;
  return shuffle(mask, value, Shuffle::kIndex, lane, width, where);
}
template <class T>
inline T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, BRASA_HERE) {
  using namespace ::brasa::simt::emulator;
  return shuffle(mask, value, Shuffle::kUp, static_cast<int>(delta), width, where);
}
template <class T>
inline T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, BRASA_HERE) {
  using namespace ::brasa::simt::emulator;
  return shuffle(mask, value, Shuffle::kDown, static_cast<int>(delta), width, where);
}
template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32, BRASA_HERE) {
  using namespace ::brasa::simt::emulator;
  return shuffle(mask, value, Shuffle::kXor, lane_mask, width, where);
}
inline unsigned __ballot_sync(uint32_t mask, int predicate, BRASA_HERE) {
  return ::brasa::simt::emulator::warp_ballot(mask, predicate != 0, where);
}
inline int __any_sync(uint32_t mask, int predicate, BRASA_HERE) {
  return ::brasa::simt::emulator::warp_ballot(mask, predicate != 0, where) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, BRASA_HERE) {
  return ::brasa::simt::emulator::warp_ballot(mask, predicate == 0, where) == 0;
}
#undef BRASA_HERE

// ---- atomics: compiled in the runtime, so that an instrumented kernel shows each as one access

int atomicAdd(int* address, int value);
unsigned atomicAdd(unsigned* address, unsigned value);
unsigned long long atomicAdd(unsigned long long* address, unsigned long long value);
float atomicAdd(float* address, float value);
double atomicAdd(double* address, double value);
int atomicMax(int* address, int value);
unsigned atomicMax(unsigned* address, unsigned value);
int atomicMin(int* address, int value);
unsigned atomicMin(unsigned* address, unsigned value);
int atomicExch(int* address, int value);
unsigned atomicExch(unsigned* address, unsigned value);
float atomicExch(float* address, float value);
int atomicCAS(int* address, int compare, int value);
unsigned atomicCAS(unsigned* address, unsigned compare, unsigned value);
unsigned long long atomicCAS(unsigned long long* address, unsigned long long compare,
                             unsigned long long value);

// ---- loads and stores with a cache hint

template <class T> inline T __ldg(const T* pointer) {
  return *pointer;
}
template <class T> inline T __ldcs(const T* pointer) {
  return *pointer;
}
template <class T> inline void __stcs(T* pointer, T value) {
  *pointer = value;
}
