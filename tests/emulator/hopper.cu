// Test kernel for barriers that count bytes, the copy engine and warpgroup products: 64 x 128 tiles
// of a bfloat16 product, a ring of two stages, one warp that loads and a warpgroup that multiplies.
#include "core/driver.cuh"
#include "core/ptx_wgmma.cuh"
#include "selftest.h"

namespace brasa::selftest {
namespace {

constexpr int kRows = 64, kColumns = 128, kDepth = 64, kLine = 128, kStages = 2;
constexpr int kMultipliers = 128, kThreads = kMultipliers + 32;

struct Ring {
  unsigned char left[kStages][kRows * kLine];
  unsigned char right[kStages][kColumns * kLine];
  simt::Barrier full[kStages], empty[kStages];
};

struct Shape {
  int m, n, k;
};

#if BRASA_HAS_WGMMA

template <RingBug Bug>
BRASA_DEVICE_FN void load(Ring& ring, const simt::TensorMap& a, const simt::TensorMap& b,
                          const Shape& shape) {
  const int row = int(blockIdx.y) * kRows, column = int(blockIdx.x) * kColumns;
  for (int round = 0; round * kDepth < shape.k; ++round) {
    const int stage = round % kStages, parity = round / kStages % 2;
    simt::Barrier* full = &ring.full[stage];
    if (Bug != RingBug::kNoWaitForStage) simt::barrier_wait(&ring.empty[stage], 1 - parity);
    simt::barrier_expect(full, (kRows + kColumns) * kLine + (Bug == RingBug::kWrongBytes ? 16 : 0));
    simt::tma_load(ring.left[stage], a, full, round * kDepth, row, 0);
    simt::tma_load(ring.right[stage], b, full, round * kDepth, column, 0);
  }
}

template <RingBug Bug>
BRASA_DEVICE_FN void multiply(Ring& ring, const Shape& shape, float (&sum)[kColumns / 2]) {
  const auto give_back = [&](int stage) {
    if (threadIdx.x == 0) simt::barrier_arrive(&ring.empty[stage]);
  };
  for (int round = 0; round * kDepth < shape.k; ++round) {
    const int stage = round % kStages, parity = round / kStages % 2;
    simt::barrier_wait(&ring.full[stage], parity);
    if (Bug == RingBug::kGivenBackEarly) give_back(stage);
    simt::wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      simt::wgmma<bfloat16, kColumns, true, true>(
          sum, simt::wgmma_operand(ring.left[stage], 32 * step, 0),
          simt::wgmma_operand(ring.right[stage], 32 * step, 0), round > 0 || step > 0);
    }
    simt::wgmma_commit();
    if (Bug == RingBug::kNoWaitForProduct)
      simt::wgmma_wait<1>();
    else
      simt::wgmma_wait<0>();
    if (Bug != RingBug::kGivenBackEarly) give_back(stage);
  }
  simt::wgmma_done(sum);
}

BRASA_DEVICE_FN void store(const Shape& shape, const float (&sum)[kColumns / 2], float* c) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int first_row = int(blockIdx.y) * kRows + 16 * warp + lane / 4;
  const int first_column = int(blockIdx.x) * kColumns + 2 * (lane % 4);
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    const int row = first_row + i % 4 / 2 * 8, column = first_column + i / 4 * 8 + i % 2;
    if (row < shape.m && column < shape.n) c[int64_t(row) * shape.n + column] = sum[i];
  }
}

#endif

template <RingBug Bug>
__global__ void __launch_bounds__(kThreads)
    ring_gemm_kernel(const __grid_constant__ simt::TensorMap a,
                     const __grid_constant__ simt::TensorMap b, Shape shape, float* c) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(Ring, ring);
  if (threadIdx.x == 0 && Bug != RingBug::kNotInitialised) {
    for (int stage = 0; stage < kStages; ++stage) {
      simt::barrier_init(&ring->full[stage], 1);
      simt::barrier_init(&ring->empty[stage], 1);
    }
    simt::barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= kMultipliers) {
    if (threadIdx.x == kMultipliers) load<Bug>(*ring, a, b, shape);
  } else {
    float sum[kColumns / 2];
    multiply<Bug>(*ring, shape, sum);
    store(shape, sum, c);
    if (Bug == RingBug::kNoWaitForProduct) simt::wgmma_wait<0>();
  }
#endif
}

template <int kKept>
__global__ void __launch_bounds__(3 * kMultipliers, 1) share_registers_kernel() {
#if BRASA_HAS_WGMMA
  if (threadIdx.x < kMultipliers)
    simt::release_registers<kKept>();
  else
    simt::acquire_registers<240>();
#endif
}

constexpr int kPixels = 24;
struct PixelStage {
  unsigned char lines[kPixels * kLine];
  simt::Barrier full;
};

BRASA_DEVICE_FN void store_lines(const PixelStage& stage, uint16_t* y) {
  for (int i = int(threadIdx.x); i < kPixels * 64; i += 32) {
    const int byte = i / 64 * kLine + (i % 64 / 8 ^ i / 64 % 8) * 16 + i % 8 * 2;
    y[i] = *reinterpret_cast<const uint16_t*>(stage.lines + byte);
  }
}

/// y (kPixels, 64) = what one load of a box of four dimensions brings.
__global__ void __launch_bounds__(32)
    load_box_kernel(const __grid_constant__ simt::TensorMap map, BoxPlace at, uint16_t* y) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(PixelStage, stage);
  if (threadIdx.x == 0) {
    simt::barrier_init(&stage->full, 1);
    simt::barrier_init_fence();
    simt::barrier_expect(&stage->full, kPixels * kLine);
    simt::tma_load(stage->lines, map, &stage->full, at.x, at.y, at.z, at.outer);
  }
  __syncthreads();
  simt::barrier_wait(&stage->full, 0);
  store_lines(*stage, y);
#endif
}

/// y (kPixels, 64) = what one load of pixels brings.
__global__ void __launch_bounds__(32)
    load_pixels_kernel(const __grid_constant__ simt::TensorMap map, PixelLoad at, uint16_t* y) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(PixelStage, stage);
  if (threadIdx.x == 0) {
    simt::barrier_init(&stage->full, 1);
    simt::barrier_init_fence();
    simt::barrier_expect(&stage->full, kPixels * kLine);
    simt::tma_load_pixels(stage->lines, map, &stage->full, at.channel, at.w, at.h, at.image,
                          at.right, at.down);
  }
  __syncthreads();
  simt::barrier_wait(&stage->full, 0);
  store_lines(*stage, y);
#endif
}

/// What one store of pixels writes of x (kPixels, 64).
__global__ void __launch_bounds__(32)
    store_pixels_kernel(const uint16_t* x, const __grid_constant__ simt::TensorMap map,
                        PixelLoad at) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(PixelStage, stage);
  for (int i = int(threadIdx.x); i < kPixels * 64; i += 32) {
    const int byte = i / 64 * kLine + (i % 64 / 8 ^ i / 64 % 8) * 16 + i % 8 * 2;
    *reinterpret_cast<uint16_t*>(stage->lines + byte) = x[i];
  }
  simt::tma_store_fence();
  __syncthreads();
  if (threadIdx.x == 0) {
    simt::tma_store_pixels(map, stage->lines, at.channel, at.w, at.h, at.image);
    simt::tma_store_wait<0>();
  }
#endif
}

// ---- what threads write for the copy engine and the tensor cores: a panel of 64 lines of 64
// numbers

#if BRASA_HAS_WGMMA

/// Where piece `piece`, 16 bytes, of line `line` lies.
BRASA_DEVICE_FN unsigned char* swizzled(unsigned char* panel, int line, int piece) {
  return panel + line * kLine + ((piece ^ (line & 7)) * 16);
}

#endif

/// y = x, for 64 lines of x.
template <PanelBug Bug>
__global__ void __launch_bounds__(kMultipliers)
    copy_panel_kernel(const uint16_t* x, const __grid_constant__ simt::TensorMap y) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(unsigned char, panel);
  for (int i = int(threadIdx.x); i < kRows * 8; i += kMultipliers) {
    const auto words = simt::load_pack<4>(reinterpret_cast<const float*>(x) + 4 * i);
    simt::store_pack<4>(reinterpret_cast<float*>(swizzled(panel, i / 8, i % 8)), words);
  }
  if (Bug != PanelBug::kNoFence) simt::tma_store_fence();
  if (Bug != PanelBug::kNoBarrier) __syncthreads();
  if (threadIdx.x == 0) {
    simt::tma_store(y, panel, 0, 0, 0);
    simt::tma_store_wait<0>();
  }
#endif
}

/// y (64,128) = x x^T twice side by side, x of 64 lines, by wgmma of what threads wrote.
template <PanelBug Bug>
__global__ void __launch_bounds__(kMultipliers) square_panel_kernel(const uint16_t* x, float* y) {
#if BRASA_HAS_WGMMA
  BRASA_DYN_SHARED(unsigned char, panel);
  for (int i = int(threadIdx.x); i < 2 * kRows * 8; i += kMultipliers) {
    const auto words =
        simt::load_pack<4>(reinterpret_cast<const float*>(x) + 4 * (i % (kRows * 8)));
    simt::store_pack<4>(reinterpret_cast<float*>(swizzled(panel, i / 8, i % 8)), words);
  }
  if (Bug != PanelBug::kNoFence) simt::tma_store_fence();
  __syncthreads();
  float sum[kColumns / 2];
  simt::wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const uint64_t operand = simt::wgmma_operand(panel, 32 * step, 0);
    simt::wgmma<bfloat16, kColumns, true, true>(sum, operand, operand, step > 0);
  }
  simt::wgmma_commit();
  simt::wgmma_wait<0>();
  simt::wgmma_done(sum);
  store({kRows, kColumns, kDepth}, sum, y);
#endif
}

simt::TensorMap map_of(const uint16_t* data, int64_t rows, int64_t k, int lines) {
  return simt::make_tensor_map({.base = data,
                                .item_bytes = 2,
                                .extent = {k, rows, 1},
                                .stride = {2 * k, 2 * k * rows},
                                .lines = lines,
                                .items = 1});
}

}  // namespace

// ---------------------------------------------------------------------------------- launchers

void share_registers(bool keep_32) {
  simt::launch({.block = dim3(3 * kMultipliers)},
               keep_32 ? share_registers_kernel<32> : share_registers_kernel<24>);
}

void load_box(const uint16_t* x, uint16_t* y, const int64_t (&extent)[4],
              const int64_t (&stride)[3], const BoxPlace& at) {
  const simt::TensorMap map =
      simt::make_tensor_map({.base = x,
                             .item_bytes = 2,
                             .extent = {extent[0], extent[1], extent[2], extent[3]},
                             .stride = {2 * stride[0], 2 * stride[1], 2 * stride[2]},
                             .lines = kPixels,
                             .items = 1});
  simt::launch({.block = dim3(32), .smem = sizeof(PixelStage)}, load_box_kernel, map, at, y);
}

static simt::TensorMap map_of(const uint16_t* pixels, const PixelImage& image) {
  const int64_t pixel = 2 * image.channels, row = pixel * image.width;
  return simt::make_pixel_map({.base = pixels,
                               .item_bytes = 2,
                               .channels = image.channels,
                               .size = {image.width, image.height},
                               .images = image.images,
                               .stride = {pixel, row, row * image.height},
                               .first = {image.first[0], image.first[1]},
                               .count = {image.count[0], image.count[1]},
                               .step = {image.step[0], image.step[1]},
                               .pixels = kPixels});
}

void load_pixels(const uint16_t* x, uint16_t* y, const PixelImage& image, const PixelLoad& at) {
  simt::launch({.block = dim3(32), .smem = sizeof(PixelStage)}, load_pixels_kernel,
               map_of(x, image), at, y);
}

void store_pixels(const uint16_t* x, uint16_t* y, const PixelImage& image, const PixelLoad& at) {
  simt::launch({.block = dim3(32), .smem = sizeof(PixelStage)}, store_pixels_kernel, x,
               map_of(y, image), at);
}

void ring_gemm(const uint16_t* a, const uint16_t* b, float* c, int m, int n, int k, RingBug bug) {
  const Shape shape{m, n, k};
  const simt::TensorMap a_map = map_of(a, m, k, kRows), b_map = map_of(b, n, k, kColumns);
  const unsigned across = simt::ceil_div(n, kColumns);
  const simt::LaunchConfig config{.grid = dim3(across, simt::ceil_div(m, kRows)),
                                  .block = dim3(kThreads),
                                  .smem = sizeof(Ring)};
  switch (bug) {
#define BRASA_CASE(name) \
  case RingBug::name:    \
    return simt::launch(config, ring_gemm_kernel<RingBug::name>, a_map, b_map, shape, c);
    BRASA_CASE(kNone)
    BRASA_CASE(kNoWaitForStage)
    BRASA_CASE(kGivenBackEarly)
    BRASA_CASE(kNoWaitForProduct)
    BRASA_CASE(kWrongBytes)
    BRASA_CASE(kNotInitialised)
#undef BRASA_CASE
  }
}

void panel(const char* kind, const uint16_t* x, void* y, PanelBug bug) {
  const bool copies = kind[0] == 'c';
  const simt::LaunchConfig config{.block = dim3(kMultipliers), .smem = size_t(2 * kRows * kLine)};
  const auto run = [&]<PanelBug Bug>() {
    if (copies)
      simt::launch(config, copy_panel_kernel<Bug>, x,
                   map_of(static_cast<uint16_t*>(y), kRows, kDepth, kRows));
    else
      simt::launch(config, square_panel_kernel<Bug>, x, static_cast<float*>(y));
  };
  if (bug == PanelBug::kNone) run.operator()<PanelBug::kNone>();
  if (bug == PanelBug::kNoFence) run.operator()<PanelBug::kNoFence>();
  if (bug == PanelBug::kNoBarrier) run.operator()<PanelBug::kNoBarrier>();
}

}  // namespace brasa::selftest
