// Tensor cores at warpgroup level (sm_90a): D (64,N) = A (64,K) B (K,N) + D, both operands in
// shared memory, sums in float32. K is 32 bytes: 16 elements of 16 bits, 8 of tf32.
//
// The four warps of a group call together. Lane l of warp w has of D, with g = l / 4 and q = l % 4:
// d[4 j + e]: row 16 w + g + 8 (e / 2), column 8 j + 2 q + e % 2.
//
// Operands lie in lines of 128 bytes as tma_load() writes them: eight lines make 1024 bytes at a
// multiple of 1024. Along the depth, a line is a row (column) of the tile. Across it, which 16-bit
// types may be, a line is one step of the depth and holds 64 rows (columns); more of them follow at
// a distance of `panel` bytes.
//
// The left operand may be in registers: those of mma_m16n8k16_* and mma_m16n8k8_tf32, for the 16
// rows of each warp.
//
// The product runs on while the threads do: operands, registers too, may be overwritten and D be
// read after wgmma_wait().
#pragma once

#include "core/half.h"
#include "core/ptx_tma.cuh"

#if BRASA_EMULATED_DEVICE
#include "emulator/ptx_wgmma.h"
#endif

#if BRASA_EMULATED_DEVICE || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define BRASA_HAS_WGMMA 1
#else
#define BRASA_HAS_WGMMA 0
#endif

namespace brasa::simt {

#if BRASA_EMULATED_DEVICE
BRASA_DEVICE_FN uint32_t shared_address(const void* pointer) {
  return emulator::shared_offset(pointer);
}
#endif

/// What wgmma is told of an operand, whose depth begins `skip` bytes into the tile.
BRASA_DEVICE_FN uint64_t wgmma_operand(const void* tile, int skip, int panel) {
  constexpr uint64_t kSwizzle128 = uint64_t(1) << 62;
  constexpr uint64_t kEightLines = uint64_t(1024 >> 4) << 32;
  const uint64_t start = ((shared_address(tile) + uint32_t(skip)) & 0x3ffffu) >> 4;
  return start | uint64_t(panel >> 4) << 16 | kEightLines | kSwizzle128;
}

#if BRASA_EMULATED_DEVICE

template <class T>
inline constexpr emulator::WgmmaType kWgmmaType =
    std::is_same_v<T, float>     ? emulator::WgmmaType::tf32
    : std::is_same_v<T, float16> ? emulator::WgmmaType::f16
                                 : emulator::WgmmaType::bf16;

/// Starts D = A B, + D where `accumulate`.
template <class T, int N, bool kAAlong, bool kBAlong>
BRASA_DEVICE_FN void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate,
                           emulator::Location where = emulator::Location::current()) {
  static_assert(sizeof(T) == 2 || (kAAlong && kBAlong), "tf32 is read along the depth only");
  emulator::wgmma(kWgmmaType<T>, N, kAAlong, kBAlong, d, a, b, accumulate, where);
}

/// The same with A in registers.
template <class T, int N, bool kBAlong>
BRASA_DEVICE_FN void wgmma_from_registers(
    float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate,
    emulator::Location where = emulator::Location::current()) {
  static_assert(sizeof(T) == 2 || kBAlong, "tf32 is read along the depth only");
  emulator::wgmma_from_registers(kWgmmaType<T>, N, kBAlong, d, a, b, accumulate, where);
}

/// Before the first product, and before the next where D or a left operand in registers was touched
/// since: they are as written. The emulator asks for it after every wait.
BRASA_DEVICE_FN void wgmma_fence(emulator::Location where = emulator::Location::current()) {
  emulator::wgmma_fence(where);
}

/// Closes the products started since the last call into a group.
BRASA_DEVICE_FN void wgmma_commit(emulator::Location where = emulator::Location::current()) {
  emulator::wgmma_commit(where);
}

/// Waits until at most N groups of the warpgroup are under way.
template <int N>
BRASA_DEVICE_FN void wgmma_wait(emulator::Location where = emulator::Location::current()) {
  emulator::wgmma_wait(N, where);
}

/// After the last wait: the compiler may read D only from here on.
template <int R> BRASA_DEVICE_FN void wgmma_done(float (&)[R]) {}

#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define BRASA_REGISTERS_16 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define BRASA_REGISTERS_32                                  \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"
#define BRASA_REGISTERS_64                                           \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"          \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
#define BRASA_REGISTERS_96                                           \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"          \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95}"
#define BRASA_REGISTERS_128                                                      \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                      \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"             \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"             \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"             \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"             \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"             \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}"
#define BRASA_INOUT_8(d, i)                                                                   \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define BRASA_INOUT_16(d, i) BRASA_INOUT_8(d, i), BRASA_INOUT_8(d, i + 8)
#define BRASA_INOUT_32(d, i) BRASA_INOUT_16(d, i), BRASA_INOUT_16(d, i + 16)
#define BRASA_INOUT_64(d, i) BRASA_INOUT_32(d, i), BRASA_INOUT_32(d, i + 32)
#define BRASA_INOUT_96(d, i) BRASA_INOUT_64(d, i), BRASA_INOUT_32(d, i + 64)
#define BRASA_INOUT_128(d, i) BRASA_INOUT_64(d, i), BRASA_INOUT_64(d, i + 64)

// The operands behind D: its registers are %0 to %15, %31, %63, %95 or %127.
#define BRASA_WGMMA_16(shape, type, registers, inout, a_, b_, p_, ta_, tb_)                    \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " p_ ", 0; wgmma.mma_async.sync.aligned." shape \
               ".f32." type "." type " " registers ", " a_ ", " b_ ", p, 1, 1, " ta_ ", " tb_  \
               "; }"                                                                           \
               : inout                                                                         \
               : "l"(a), "l"(b), "r"(int(accumulate)), "n"(kAAlong ? 0 : 1), "n"(kBAlong ? 0 : 1))
#define BRASA_WGMMA_TF32(shape, registers, inout, a_, b_, p_)                                  \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " p_ ", 0; wgmma.mma_async.sync.aligned." shape \
               ".f32.tf32.tf32 " registers ", " a_ ", " b_ ", p, 1, 1; }"                      \
               : inout                                                                         \
               : "l"(a), "l"(b), "r"(int(accumulate)))
#define BRASA_WGMMA_N(n, count, a_, b_, p_, ta_, tb_)                                              \
  if constexpr (std::is_same_v<T, float>)                                                          \
    BRASA_WGMMA_TF32("m64n" n "k8", BRASA_REGISTERS_##count, BRASA_INOUT_##count(d, 0), a_, b_,    \
                     p_);                                                                          \
  else if constexpr (std::is_same_v<T, float16>)                                                   \
    BRASA_WGMMA_16("m64n" n "k16", "f16", BRASA_REGISTERS_##count, BRASA_INOUT_##count(d, 0), a_,  \
                   b_, p_, ta_, tb_);                                                              \
  else                                                                                             \
    BRASA_WGMMA_16("m64n" n "k16", "bf16", BRASA_REGISTERS_##count, BRASA_INOUT_##count(d, 0), a_, \
                   b_, p_, ta_, tb_)

template <class T, int N, bool kAAlong, bool kBAlong>
BRASA_DEVICE_FN void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(N == 32 || N == 64 || N == 128 || N == 192 || N == 256);
  if constexpr (N == 256) {
    BRASA_WGMMA_N("256", 128, "%128", "%129", "%130", "%131", "%132");
  } else if constexpr (N == 192) {
    BRASA_WGMMA_N("192", 96, "%96", "%97", "%98", "%99", "%100");
  } else if constexpr (N == 128) {
    BRASA_WGMMA_N("128", 64, "%64", "%65", "%66", "%67", "%68");
  } else if constexpr (N == 64) {
    BRASA_WGMMA_N("64", 32, "%32", "%33", "%34", "%35", "%36");
  } else {
    BRASA_WGMMA_N("32", 16, "%16", "%17", "%18", "%19", "%20");
  }
}

#define BRASA_WGMMA_FROM_16(shape, type, registers, inout, a0, a1, a2, a3, b_, p_, tb_)        \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " p_ ", 0; wgmma.mma_async.sync.aligned." shape \
               ".f32." type "." type " " registers ", {" a0 "," a1 "," a2 "," a3 "}, " b_      \
               ", p, 1, 1, " tb_ "; }"                                                         \
               : inout                                                                         \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)),     \
                 "n"(kBAlong ? 0 : 1))
#define BRASA_WGMMA_FROM_TF32(shape, registers, inout, a0, a1, a2, a3, b_, p_)                   \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " p_ ", 0; wgmma.mma_async.sync.aligned." shape   \
               ".f32.tf32.tf32 " registers ", {" a0 "," a1 "," a2 "," a3 "}, " b_ ", p, 1, 1; }" \
               : inout                                                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)))
#define BRASA_WGMMA_FROM_N(n, count, a0, a1, a2, a3, b_, p_, tb_)                                  \
  if constexpr (std::is_same_v<T, float>)                                                          \
    BRASA_WGMMA_FROM_TF32("m64n" n "k8", BRASA_REGISTERS_##count, BRASA_INOUT_##count(d, 0), a0,   \
                          a1, a2, a3, b_, p_);                                                     \
  else if constexpr (std::is_same_v<T, float16>)                                                   \
    BRASA_WGMMA_FROM_16("m64n" n "k16", "f16", BRASA_REGISTERS_##count, BRASA_INOUT_##count(d, 0), \
                        a0, a1, a2, a3, b_, p_, tb_);                                              \
  else                                                                                             \
    BRASA_WGMMA_FROM_16("m64n" n "k16", "bf16", BRASA_REGISTERS_##count,                           \
                        BRASA_INOUT_##count(d, 0), a0, a1, a2, a3, b_, p_, tb_)

template <class T, int N, bool kBAlong>
BRASA_DEVICE_FN void wgmma_from_registers(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,
                                          bool accumulate) {
  static_assert(N == 64 || N == 128);
  if constexpr (N == 128) {
    BRASA_WGMMA_FROM_N("128", 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70");
  } else {
    BRASA_WGMMA_FROM_N("64", 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38");
  }
}

#undef BRASA_WGMMA_FROM_N
#undef BRASA_WGMMA_FROM_TF32
#undef BRASA_WGMMA_FROM_16
#undef BRASA_WGMMA_N
#undef BRASA_WGMMA_TF32
#undef BRASA_WGMMA_16

BRASA_DEVICE_FN void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
BRASA_DEVICE_FN void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> BRASA_DEVICE_FN void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int R> BRASA_DEVICE_FN void wgmma_done(float (&d)[R]) {
#pragma unroll
  for (int i = 0; i < R; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#endif

}  // namespace brasa::simt
