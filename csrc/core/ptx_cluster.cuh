// Clusters of blocks (sm_90 and later): who is who, their barrier, and each other's shared memory.
// On older GPUs every block is a cluster of one.
#pragma once

#include "core/device.cuh"

#if BRASA_EMULATED_DEVICE
#include "emulator/ptx_tma.h"
#endif

namespace brasa::simt {

#if BRASA_EMULATED_DEVICE

BRASA_DEVICE_FN unsigned cluster_rank() {
  return emulator::cluster_rank();
}

/// Barrier over all threads of the cluster; orders memory.
BRASA_DEVICE_FN void cluster_sync(emulator::Location where = emulator::Location::current()) {
  emulator::grid_barrier(where);
}

/// Four floats of the shared memory of block `rank`, at the place that `shared` has in this one.
BRASA_DEVICE_FN Pack<float, 4> cluster_load(const float* shared, unsigned rank) {
  return *static_cast<const Pack<float, 4>*>(emulator::in_cluster(shared, rank));
}

#else

BRASA_DEVICE_FN uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

BRASA_DEVICE_FN unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
BRASA_DEVICE_FN void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}
BRASA_DEVICE_FN Pack<float, 4> cluster_load(const float* shared, unsigned rank) {
  Pack<float, 4> pack;
  asm volatile(
      "{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %4, %5;"
      " ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote]; }"
      : "=f"(pack[0]), "=f"(pack[1]), "=f"(pack[2]), "=f"(pack[3])
      : "r"(shared_address(shared)), "r"(rank)
      : "memory");
  return pack;
}

#else

BRASA_DEVICE_FN unsigned cluster_rank() {
  return 0;
}
BRASA_DEVICE_FN void cluster_sync() {
  __syncthreads();
}
BRASA_DEVICE_FN Pack<float, 4> cluster_load(const float* shared, unsigned) {
  return load_pack<4>(shared);
}

#endif

#endif

}  // namespace brasa::simt
