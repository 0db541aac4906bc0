// PTX wrappers one by one, on words as they lie in registers and shared memory: what a GPU makes of
// them is recorded (tools/gpu_check.py golden), and the emulator compared with it (test_golden.py).
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/ptx_async.cuh"
#include "core/ptx_convert.cuh"
#include "core/ptx_math.cuh"
#include "core/ptx_mma.cuh"
#include "core/ptx_wgmma.cuh"
#include "selftest.h"

#if BRASA_EMULATED_DEVICE || __CUDA_ARCH__ >= 900
#define BRASA_HAS_CLUSTERS 1
#else
#define BRASA_HAS_CLUSTERS 0
#endif

namespace brasa::selftest {
namespace {

constexpr int kWarp = 32, kGroup = 128;

// ---- one word to one word

template <class T> struct Narrow {
  BRASA_DEVICE_FN uint32_t operator()(uint32_t x) const {
    return simt::narrow<T>(__uint_as_float(x)).bits;
  }
};
/// With its negative behind it.
template <class T> struct NarrowPair {
  BRASA_DEVICE_FN uint32_t operator()(uint32_t x) const {
    return simt::narrow_pair<T>(__uint_as_float(x), __uint_as_float(x ^ 0x80000000u));
  }
};
template <class T> struct Widen {
  BRASA_DEVICE_FN uint32_t operator()(uint32_t x) const {
    return __float_as_uint(simt::widen(T{static_cast<uint16_t>(x)}));
  }
};
/// The low 13 bits are not defined.
struct ToTf32 {
  BRASA_DEVICE_FN uint32_t operator()(uint32_t x) const {
    return simt::to_tf32(__uint_as_float(x)) & ~0x1fffu;
  }
};
struct Exp2Approx {
  BRASA_DEVICE_FN uint32_t operator()(uint32_t x) const {
    return __float_as_uint(simt::exp2_approx(__uint_as_float(x)));
  }
};

template <class F> __global__ void word_kernel(const uint32_t* x, uint32_t* y, int n) {
  const int i = int(blockIdx.x) * kGroup + int(threadIdx.x);
  if (i < n) y[i] = F{}(x[i]);
}

// ---- a warp's matrices: register r of lane l is word 32 r + l

/// x: four registers of A, two of B, four of D; y: D.
template <class T> __global__ void mma_kernel(const uint32_t* x, uint32_t* y) {
  const int lane = int(threadIdx.x);
  uint32_t a[4], b[2];
  float d[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) a[r] = x[kWarp * r + lane];
#pragma unroll
  for (int r = 0; r < 2; ++r) b[r] = x[kWarp * (4 + r) + lane];
#pragma unroll
  for (int r = 0; r < 4; ++r) d[r] = __uint_as_float(x[kWarp * (6 + r) + lane]);
  if constexpr (std::is_same_v<T, float>)
    simt::mma_m16n8k8_tf32(d, a, b);
  else if constexpr (std::is_same_v<T, bfloat16>)
    simt::mma_m16n8k16_bf16(d, a, b);
  else
    simt::mma_m16n8k16_f16(d, a, b);
#pragma unroll
  for (int r = 0; r < 4; ++r) y[kWarp * r + lane] = __float_as_uint(d[r]);
}

/// The row of 16 bytes that a lane names: not its own, so that addresses count.
BRASA_DEVICE_FN int row_of(int lane) {
  return (5 * lane + 3) % kWarp;
}

template <bool kTransposed> __global__ void load_matrices_kernel(const uint32_t* x, uint32_t* y) {
  BRASA_SHARED(uint32_t, rows, [kWarp * 4]);
  const int lane = int(threadIdx.x);
  for (int r = 0; r < 4; ++r) rows[kWarp * r + lane] = x[kWarp * r + lane];
  __syncwarp();
  uint32_t part[4];
  if constexpr (kTransposed)
    simt::ldmatrix_x4_trans(part, rows + 4 * row_of(lane));
  else
    simt::ldmatrix_x4(part, rows + 4 * row_of(lane));
#pragma unroll
  for (int r = 0; r < 4; ++r) y[kWarp * r + lane] = part[r];
}

__global__ void store_matrices_kernel(const uint32_t* x, uint32_t* y) {
#if BRASA_HAS_CLUSTERS
  BRASA_SHARED(uint32_t, rows, [kWarp * 4]);
  const int lane = int(threadIdx.x);
  uint32_t part[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) part[r] = x[kWarp * r + lane];
  simt::stmatrix_x4(rows + 4 * row_of(lane), part);
  __syncwarp();
  for (int r = 0; r < 4; ++r) y[kWarp * r + lane] = rows[kWarp * r + lane];
#endif
}

// ---- copies, barriers

/// Lane l copies l % (Bytes + 1) bytes and zeros behind them.
template <int Bytes> __global__ void copy_kernel(const uint32_t* x, uint32_t* y) {
  BRASA_SHARED(uint32_t, words, [kWarp * 4]);
  const int lane = int(threadIdx.x), place = lane * Bytes / 4;
  for (int r = 0; r < 4; ++r) words[kWarp * r + lane] = 0xa5a5a5a5u;
  __syncwarp();
  simt::cp_async<Bytes>(words + place, x + place, lane % (Bytes + 1));
  simt::cp_async_commit();
  simt::cp_async_wait<0>();
  __syncwarp();
  for (int r = 0; r < 4; ++r) y[kWarp * r + lane] = words[kWarp * r + lane];
}

/// Two of three warps hand words over; the third does not take part.
__global__ void named_barrier_kernel(const uint32_t* x, uint32_t* y) {
  BRASA_SHARED(uint32_t, words, [kWarp]);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  if (warp == 0) words[lane] = x[lane];
  if (warp < 2) simt::bar_sync(3, 2 * kWarp);
  if (warp == 1) y[lane] = words[kWarp - 1 - lane];
}

/// y holds two arrays of 256 words; each round, all blocks read one and write the other.
__global__ void grid_barrier_kernel(const uint32_t* x, uint32_t* y) {
  constexpr int kWords = 256, kTurns = 3;
  const int i = int(blockIdx.x) * kWarp + int(threadIdx.x);
  y[i] = x[i];
  for (int turn = 0; turn < kTurns; ++turn) {
    simt::grid_sync();
    const uint32_t* from = y + turn % 2 * kWords;
    y[(turn + 1) % 2 * kWords + i] = 3 * from[(i + 97) % kWords] + 1;
  }
}

/// What each lane finds in the shared memory of the next block of its cluster, and its rank.
constexpr int kCluster = 4;
__global__ void cluster_kernel(const uint32_t* x, uint32_t* y) {
#if BRASA_HAS_CLUSTERS
  BRASA_SHARED(float, words, [kWarp * 4]);
  const int lane = int(threadIdx.x), first = int(blockIdx.x) * kWarp * 4;
  for (int r = 0; r < 4; ++r)
    words[kWarp * r + lane] = __uint_as_float(x[first + kWarp * r + lane]);
  simt::cluster_sync();
  const unsigned rank = simt::cluster_rank();
  const auto pack = simt::cluster_load(words + 4 * lane, (rank + 1) % kCluster);
  for (int r = 0; r < 4; ++r) y[first + 4 * lane + r] = __float_as_uint(pack[r]) + rank;
  simt::cluster_sync();
#endif
}

// ---- products of a warpgroup: x is what shared memory holds, or registers, then shared memory

constexpr int kLine = 128, kSteps = 2, kDeepLines = 32;  // of 128 bytes; two products deep

/// Bytes of an operand of `across` rows (columns), and from one product to the next.
BRASA_HOST_DEVICE_FN constexpr int operand_bytes(bool along, int across) {
  return along ? across * kLine : (across + 63) / 64 * kDeepLines * kLine;
}
[[maybe_unused]] BRASA_HOST_DEVICE_FN constexpr int step_bytes(bool along) {
  return along ? 32 : kDeepLines / kSteps * kLine;
}

template <class T, int N, bool kLeftAlong, bool kRightAlong, bool kRegisters>
__global__ void __launch_bounds__(kGroup) wgmma_kernel(const uint32_t* x, uint32_t* y) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(unsigned char, shared);
  constexpr int kLeft = kRegisters ? 0 : operand_bytes(kLeftAlong, 64), kPanel = kDeepLines * kLine;
  constexpr int kBytes = kLeft + operand_bytes(kRightAlong, N), kParts = kRegisters ? 4 : 0;
  const int thread = int(threadIdx.x);
  uint32_t left[kSteps][4];
#pragma unroll
  for (int i = 0; i < kSteps * kParts; ++i) left[i / 4][i % 4] = x[kGroup * i + thread];
  x += kSteps * kParts * kGroup;
  for (int i = thread; i < kBytes / 4; i += kGroup) reinterpret_cast<uint32_t*>(shared)[i] = x[i];
  simt::tma_store_fence();
  __syncthreads();
  float sum[N / 2];
  simt::wgmma_fence();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const uint64_t right =
        simt::wgmma_operand(shared + kLeft, step * step_bytes(kRightAlong), kPanel);
    if constexpr (kRegisters)
      simt::wgmma_from_registers<T, N, kRightAlong>(sum, left[step], right, step > 0);
    else
      simt::wgmma<T, N, kLeftAlong, kRightAlong>(
          sum, simt::wgmma_operand(shared, step * step_bytes(kLeftAlong), kPanel), right, step > 0);
  }
  simt::wgmma_commit();
  simt::wgmma_wait<0>();
  simt::wgmma_done(sum);
#pragma unroll
  for (int i = 0; i < N / 2; ++i) y[kGroup * i + thread] = __float_as_uint(sum[i]);
#endif
}

/// Warps that gave registers away and warps that took them count on.
__global__ void __launch_bounds__(3 * kGroup, 1) registers_kernel(const uint32_t* x, uint32_t* y) {
#if BRASA_HAS_WGMMA
  if (threadIdx.x < kGroup)
    simt::release_registers<24>();
  else
    simt::acquire_registers<240>();
  y[threadIdx.x] = x[threadIdx.x] + 1;
#endif
}

// ---- by name

using Run = void (*)(const uint32_t* x, uint32_t* y, int n);

template <class F> void words(const uint32_t* x, uint32_t* y, int n) {
  simt::launch({.grid = dim3(simt::ceil_div(n, kGroup)), .block = dim3(kGroup)}, word_kernel<F>, x,
               y, n);
}

using Kernel = void (*)(const uint32_t*, uint32_t*);
template <Kernel kKernel, int kThreads, int kBlocks = 1, bool kCooperative = false, int kOf = 1>
void blocks(const uint32_t* x, uint32_t* y, int) {
  simt::launch(
      {.grid = dim3(kBlocks), .block = dim3(kThreads), .cooperative = kCooperative, .cluster = kOf},
      kKernel, x, y);
}

template <class T, int N, bool kLeftAlong, bool kRightAlong, bool kRegisters = false>
void product(const uint32_t* x, uint32_t* y, int) {
  const int left = kRegisters ? 0 : operand_bytes(kLeftAlong, 64);
  simt::launch({.block = dim3(kGroup), .smem = size_t(left + operand_bytes(kRightAlong, N))},
               wgmma_kernel<T, N, kLeftAlong, kRightAlong, kRegisters>, x, y);
}

struct Named {
  const char* name;
  Run run;
};

// Products are named by their type, N, and the operands that lie along the depth: k, or m and n; r
// is the left one in registers.
#define BRASA_PRODUCTS_ALONG(T, type)                               \
  {"wgmma " type " 32 kk", product<T, 32, true, true>},             \
      {"wgmma " type " 64 kk", product<T, 64, true, true>},         \
      {"wgmma " type " 128 kk", product<T, 128, true, true>},       \
      {"wgmma " type " 192 kk", product<T, 192, true, true>},       \
      {"wgmma " type " 256 kk", product<T, 256, true, true>},       \
      {"wgmma " type " 64 rk", product<T, 64, true, true, true>}, { \
    "wgmma " type " 128 rk", product<T, 128, true, true, true>      \
  }
#define BRASA_PRODUCTS_ACROSS(T, type)                               \
  {"wgmma " type " 64 mk", product<T, 64, false, true>},             \
      {"wgmma " type " 64 kn", product<T, 64, true, false>},         \
      {"wgmma " type " 64 mn", product<T, 64, false, false>},        \
      {"wgmma " type " 128 mk", product<T, 128, false, true>},       \
      {"wgmma " type " 128 kn", product<T, 128, true, false>},       \
      {"wgmma " type " 128 mn", product<T, 128, false, false>},      \
      {"wgmma " type " 64 rn", product<T, 64, true, false, true>}, { \
    "wgmma " type " 128 rn", product<T, 128, true, false, true>      \
  }

const Named kWrappers[] = {
    {"narrow f16", words<Narrow<float16>>},
    {"narrow bf16", words<Narrow<bfloat16>>},
    {"narrow pair f16", words<NarrowPair<float16>>},
    {"narrow pair bf16", words<NarrowPair<bfloat16>>},
    {"widen f16", words<Widen<float16>>},
    {"widen bf16", words<Widen<bfloat16>>},
    {"to tf32", words<ToTf32>},
    {"exp2", words<Exp2Approx>},
    {"mma tf32", blocks<mma_kernel<float>, kWarp>},
    {"mma bf16", blocks<mma_kernel<bfloat16>, kWarp>},
    {"mma f16", blocks<mma_kernel<float16>, kWarp>},
    {"ldmatrix", blocks<load_matrices_kernel<false>, kWarp>},
    {"ldmatrix trans", blocks<load_matrices_kernel<true>, kWarp>},
    {"stmatrix", blocks<store_matrices_kernel, kWarp>},
    {"cp.async 4", blocks<copy_kernel<4>, kWarp>},
    {"cp.async 8", blocks<copy_kernel<8>, kWarp>},
    {"cp.async 16", blocks<copy_kernel<16>, kWarp>},
    {"named barrier", blocks<named_barrier_kernel, 3 * kWarp>},
    {"grid barrier", blocks<grid_barrier_kernel, kWarp, 8, true>},
    {"cluster", blocks<cluster_kernel, kWarp, 2 * kCluster, false, kCluster>},
    {"setmaxnreg", blocks<registers_kernel, 3 * kGroup>},
    BRASA_PRODUCTS_ALONG(float, "tf32"),
    BRASA_PRODUCTS_ALONG(bfloat16, "bf16"),
    BRASA_PRODUCTS_ALONG(float16, "f16"),
    BRASA_PRODUCTS_ACROSS(bfloat16, "bf16"),
    BRASA_PRODUCTS_ACROSS(float16, "f16"),
};

}  // namespace

void wrapper(const char* name, const uint32_t* x, uint32_t* y, int n) {
  for (const Named& named : kWrappers) {
    if (std::strcmp(named.name, name) == 0) return named.run(x, y, n);
  }
  throw std::invalid_argument(std::string("no wrapper called ") + name);
}

}  // namespace brasa::selftest
