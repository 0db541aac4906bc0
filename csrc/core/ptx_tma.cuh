// Barriers in shared memory that count bytes, and the copy engine that feeds them (sm_90).
//
// A Barrier has phases. A phase ends when as many threads arrived as barrier_init() said and all
// bytes that they told to expect have come; barrier_wait(b, p) waits for the end of the phases of
// parity p, the first being 0. tma_load() copies a box of a tensor into shared memory and completes
// its bytes on a barrier; one thread issues it. Lines of 128 bytes have their pieces of 16 bytes
// swapped by bits 7 to 9 of the address, as wgmma reads them.
//
// Blocks of a cluster have their shared memory at the same addresses; a load may go to several of
// them, at the same place, and completes on the barrier of each.
#pragma once

#include "core/device.cuh"

#if BRASA_EMULATED_DEVICE
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
BRASA_DEVICE_FN void barrier_init_fence() {}

/// Arrives at the barrier of block `rank` of the cluster.
BRASA_DEVICE_FN void barrier_arrive(Barrier* barrier, unsigned rank,
                                    emulator::Location where = emulator::Location::current()) {
  emulator::barrier_arrive(barrier, rank, where);
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

BRASA_DEVICE_FN unsigned cluster_rank() {
  return emulator::cluster_rank();
}

/// Starts copying the box at (x, y, z), x innermost.
BRASA_DEVICE_FN void tma_load(void* shared, const TensorMap& map, Barrier* barrier, int x, int y,
                              int z) {
  emulator::tensor_load(shared, map, barrier, x, y, z, 1u << cluster_rank());
}

/// The same, to all blocks of the cluster in `mask`.
BRASA_DEVICE_FN void tma_load(void* shared, const TensorMap& map, Barrier* barrier, int x, int y,
                              int z, unsigned mask) {
  emulator::tensor_load(shared, map, barrier, x, y, z, mask);
}

/// Barrier over all threads of the cluster; orders memory.
BRASA_DEVICE_FN void cluster_sync(emulator::Location where = emulator::Location::current()) {
  emulator::grid_barrier(where);
}

/// Registers that each thread of the calling warpgroup gives back or gets.
template <int N> BRASA_DEVICE_FN void release_registers() {}
template <int N> BRASA_DEVICE_FN void acquire_registers() {}

#else

using TensorMap = CUtensorMap;
struct Barrier {
  uint64_t bits;
};

BRASA_DEVICE_FN uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

BRASA_DEVICE_FN void barrier_init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

BRASA_DEVICE_FN void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async;" ::: "memory");
}

BRASA_DEVICE_FN void barrier_arrive(Barrier* barrier, unsigned rank) {
  asm volatile(
      "{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1;"
      " mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote]; }" ::"r"(
          shared_address(barrier)),
      "r"(rank)
      : "memory");
}

BRASA_DEVICE_FN void barrier_expect(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
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
                              int z, unsigned mask) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "h"(uint16_t(mask))
      : "memory");
}

BRASA_DEVICE_FN unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

BRASA_DEVICE_FN void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
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
