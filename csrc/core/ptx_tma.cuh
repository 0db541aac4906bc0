// Barriers in shared memory that count bytes, and the copy engine that feeds them (sm_90).
//
// A Barrier has phases. A phase ends when as many threads arrived as barrier_init() said and all
// bytes that they told to expect have come; barrier_wait(b, p) waits for the end of the phases of
// parity p, the first being 0. tma_load() copies a box of a tensor into shared memory and completes
// its bytes on a barrier, tma_load_pixels() pixels of images as a convolution
// meets them; one thread issues it. tma_store() and tma_store_pixels() go the other way. Lines of
// 128 bytes have their pieces of 16 bytes swapped by bits 7 to 9 of the address, as wgmma reads
// them.
#pragma once

#include "core/ptx_cluster.cuh"

#if BRASA_EMULATED_DEVICE
#include "emulator/proxy.h"
#include "emulator/ptx_tma.h"
#else
#include <cuda.h>
#endif

namespace brasa::simt {

#if BRASA_EMULATED_DEVICE

using Barrier = emulator::CountingBarrier;
using TensorMap = emulator::TensorMap;

BRASA_DEVICE_FN void barrier_init(Barrier* barrier, int arrivals) {
  emulator::barrier_init(barrier, arrivals);
}

/// After barrier_init() and before others, the copy engine among them, see the barriers.
BRASA_DEVICE_FN void barrier_init_fence() {
  emulator::barrier_init_fence();
}

BRASA_DEVICE_FN void barrier_arrive(Barrier* barrier,
                                    emulator::Location where = emulator::Location::current()) {
  emulator::barrier_arrive(barrier, where);
}

/// Arrives, and adds to the bytes of this phase.
BRASA_DEVICE_FN void barrier_expect(Barrier* barrier, int bytes,
                                    emulator::Location where = emulator::Location::current()) {
  emulator::barrier_expect(barrier, bytes, where);
}

BRASA_DEVICE_FN void barrier_wait(Barrier* barrier, unsigned parity,
                                  emulator::Location where = emulator::Location::current()) {
  emulator::barrier_wait(barrier, parity, where);
}

/// Starts copying the box at (x, y, z), x innermost.
BRASA_DEVICE_FN void tma_load(void* shared, const TensorMap& map, Barrier* barrier, int x, int y,
                              int z) {
  emulator::tensor_load(shared, map, barrier, x, y, z);
}

/// The same of a map with an outer dimension.
BRASA_DEVICE_FN void tma_load(void* shared, const TensorMap& map, Barrier* barrier, int x, int y,
                              int z, int outer) {
  emulator::tensor_load(shared, map, barrier, x, y, z, outer);
}

/// Starts copying channels from `channel` on of the pixels from (w, h, image) on, as
/// make_pixel_map() walks them, each read (right, down) beside its place.
BRASA_DEVICE_FN void tma_load_pixels(void* shared, const TensorMap& map, Barrier* barrier,
                                     int channel, int w, int h, int image, int right, int down) {
  emulator::pixel_load(shared, map, barrier, channel, w, h, image, right, down);
}

/// tma_load() into every block of the cluster whose bit is set in `blocks`: to the same place, and
/// its bytes are completed on the barrier of each at the same place.
BRASA_DEVICE_FN void tma_load_multicast(void* shared, const TensorMap& map, Barrier* barrier, int x,
                                        int y, int z, unsigned blocks) {
  emulator::tensor_load_multicast(shared, map, barrier, x, y, z, blocks);
}

/// Arrives at the barrier at the same place in block `rank` of the cluster.
BRASA_DEVICE_FN void barrier_arrive_at(Barrier* barrier, unsigned rank,
                                       emulator::Location where = emulator::Location::current()) {
  emulator::barrier_arrive_at(barrier, rank, where);
}

/// Starts writing the box at (x, y, z) from shared memory, which tma_store_fence() and a barrier
/// came before; what lies outside the tensor is not written.
BRASA_DEVICE_FN void tma_store(const TensorMap& map, const void* shared, int x, int y, int z) {
  emulator::tensor_store(map, shared, x, y, z);
}

/// Starts writing channels from `channel` on of the pixels from (w, h, image) on, as
/// make_pixel_map() walks them; what lies behind the last image is not written.
BRASA_DEVICE_FN void tma_store_pixels(const TensorMap& map, const void* shared, int channel, int w,
                                      int h, int image) {
  emulator::pixel_store(map, shared, channel, w, h, image);
}

/// Each thread that wrote shared memory calls this before the barrier: the copy engine and wgmma()
/// then see it.
BRASA_DEVICE_FN void tma_store_fence() {
  emulator::proxy_fence();
}

/// Waits until at most N of the calling thread's stores have not read their shared memory.
template <int N> BRASA_DEVICE_FN void tma_store_wait() {
  emulator::tensor_store_wait(N);
}

/// Each thread of the calling warpgroup keeps N registers of those it began with, or waits until it
/// has N: for ever where others do not give back so many.
template <int N> BRASA_DEVICE_FN void release_registers() {
  emulator::take_registers(N);
}
template <int N> BRASA_DEVICE_FN void acquire_registers() {
  emulator::take_registers(N);
}

#else

using TensorMap = CUtensorMap;
struct Barrier {
  uint64_t bits;
};

BRASA_DEVICE_FN void barrier_init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

BRASA_DEVICE_FN void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async;" ::: "memory");
}

BRASA_DEVICE_FN void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

BRASA_DEVICE_FN void barrier_expect(Barrier* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

BRASA_DEVICE_FN void barrier_wait(Barrier* barrier, unsigned parity) {
  uint32_t done;
  do {  // the instruction itself waits for a while
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"
        " selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!done);
}

BRASA_DEVICE_FN void tma_load(void* shared, const TensorMap& map, Barrier* barrier, int x, int y,
                              int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

BRASA_DEVICE_FN void tma_load(void* shared, const TensorMap& map, Barrier* barrier, int x, int y,
                              int z, int outer) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(outer)
      : "memory");
}

BRASA_DEVICE_FN void tma_load_pixels(void* shared, const TensorMap& map, Barrier* barrier,
                                     int channel, int w, int h, int image, int right, int down) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(barrier)), "r"(channel), "r"(w), "r"(h), "r"(image),
      "h"(uint16_t(right)), "h"(uint16_t(down))
      : "memory");
}

BRASA_DEVICE_FN void tma_load_multicast(void* shared, const TensorMap& map, Barrier* barrier, int x,
                                        int y, int z, unsigned blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z),
      "h"(static_cast<uint16_t>(blocks))
      : "memory");
}

BRASA_DEVICE_FN void barrier_arrive_at(Barrier* barrier, unsigned rank) {
  asm volatile(
      "{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1;"
      " mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote]; }" ::"r"(
          shared_address(barrier)),
      "r"(rank)
      : "memory");
}

BRASA_DEVICE_FN void tma_store(const TensorMap& map, const void* shared, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];"
      " cp.async.bulk.commit_group;" ::"l"(&map),
      "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z)
      : "memory");
}
BRASA_DEVICE_FN void tma_store_pixels(const TensorMap& map, const void* shared, int channel, int w,
                                      int h, int image) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.im2col_no_offs.bulk_group "
      "[%0, {%2, %3, %4, %5}], [%1]; cp.async.bulk.commit_group;" ::"l"(&map),
      "r"(shared_address(shared)), "r"(channel), "r"(w), "r"(h), "r"(image)
      : "memory");
}
BRASA_DEVICE_FN void tma_store_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
template <int N> BRASA_DEVICE_FN void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
template <int N> BRASA_DEVICE_FN void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> BRASA_DEVICE_FN void acquire_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
#endif

#endif

}  // namespace brasa::simt
