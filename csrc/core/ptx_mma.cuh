// Tensor cores at warp level (sm_80 and later): D (16,8) += A (16,K) B (K,8), sums in float32.
//
// All 32 lanes call together. Registers of a lane, with g = lane / 4 and q = lane % 4:
//   d[r]: row g + 8 (r / 2), column 2q + r % 2
//   tf32, K = 8:  a[r]: row g + 8 (r % 2), column q + 4 (r / 2);  b[r]: row q + 4r, column g
//   16 bits, K = 16: two neighbours along K in a register, the first in its low half:
//                 a[r]: row g + 8 (r % 2), columns from 2q + 8 (r / 2);  b[r]: rows from 2q + 8r,
//                 column g
// ldmatrix_x4 loads an A of 16 bits or tf32 from shared memory in that order, where its rows are
// contiguous; ldmatrix_x4_trans two neighbouring B of 16 bits whose rows are. stmatrix_x4 (sm_90)
// stores what ldmatrix_x4 loads.
#pragma once

#include "core/device.cuh"

#if BRASA_EMULATED_DEVICE
#include "emulator/ptx_mma.h"
#endif

namespace brasa::simt {

#if BRASA_EMULATED_DEVICE

/// x rounded to tf32, 10 bits after the point, nearest, ties away from zero.
BRASA_DEVICE_FN uint32_t to_tf32(float x) {
  return emulator::round_to_tf32(x);
}

BRASA_DEVICE_FN void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                      emulator::Location where = emulator::Location::current()) {
  emulator::mma_tf32(d, a, b, where);
}

BRASA_DEVICE_FN void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2],
                                       emulator::Location where = emulator::Location::current()) {
  emulator::mma_bf16(d, a, b, where);
}

BRASA_DEVICE_FN void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                      emulator::Location where = emulator::Location::current()) {
  emulator::mma_f16(d, a, b, where);
}

/// Four 8x8 matrices of 16-bit elements: lane 8i + r has the address of row r of matrix i, a
/// multiple of 16; r[i] gets two neighbours of matrix i, from row lane / 4 on.
BRASA_DEVICE_FN void ldmatrix_x4(uint32_t (&r)[4], const void* row,
                                 emulator::Location where = emulator::Location::current()) {
  emulator::load_matrices(r, row, false, where);
}

/// The way back: row addresses and registers are those of ldmatrix_x4.
BRASA_DEVICE_FN void stmatrix_x4(void* row, const uint32_t (&r)[4],
                                 emulator::Location where = emulator::Location::current()) {
  emulator::store_matrices(row, r, where);
}

/// ldmatrix_x4, each matrix transposed on the way.
BRASA_DEVICE_FN void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row,
                                       emulator::Location where = emulator::Location::current()) {
  emulator::load_matrices(r, row, true, where);
}

#else

BRASA_DEVICE_FN uint32_t to_tf32(float x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
}

BRASA_DEVICE_FN void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4],
                                      const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

BRASA_DEVICE_FN void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

BRASA_DEVICE_FN void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4],
                                      const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

BRASA_DEVICE_FN void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
BRASA_DEVICE_FN void stmatrix_x4(void* row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(row))),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
#endif

BRASA_DEVICE_FN void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

#endif

}  // namespace brasa::simt
