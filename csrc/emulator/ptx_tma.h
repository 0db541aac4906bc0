// Emulation of core/ptx_cluster.cuh and core/ptx_tma.cuh.
#pragma once

#include "emulator/runtime.h"

namespace brasa::simt::emulator {

/// Eight bytes, as on a GPU. `left` counts the arrivals that this phase still waits for; `fenced`
/// ones are for other blocks and the copy engine to see.
struct CountingBarrier {
  int64_t bytes : 24;
  uint64_t left : 12, arrivals : 12, phase : 1, fenced : 1, magic : 14;
};

struct alignas(64) TensorMap {
  std::byte* base;
  int64_t extent[4], stride[4];   // strides in bytes, the innermost is an element's
  int box[3];                     // of pixels: channels, pixels
  int lower[2], end[2], step[2];  // of pixels alone: where the walk along w and h begins and ends
};

void barrier_init(CountingBarrier* barrier, int arrivals);
void barrier_init_fence();
void barrier_arrive(CountingBarrier* barrier, Location where);
void barrier_expect(CountingBarrier* barrier, int bytes, Location where);
void barrier_wait(CountingBarrier* barrier, unsigned parity, Location where);
void tensor_load(void* shared, const TensorMap& map, CountingBarrier* barrier, int x, int y, int z);
void tensor_load(void* shared, const TensorMap& map, CountingBarrier* barrier, int x, int y, int z,
                 int outer);
void pixel_load(void* shared, const TensorMap& map, CountingBarrier* barrier, int channel, int w,
                int h, int image, int right, int down);
void tensor_store(const TensorMap& map, const void* shared, int x, int y, int z);
void pixel_store(const TensorMap& map, const void* shared, int channel, int w, int h, int image);
void tensor_store_wait(int stores_left);
void tensor_load_multicast(void* shared, const TensorMap& map, CountingBarrier* barrier, int x,
                           int y, int z, unsigned blocks);
void barrier_arrive_at(CountingBarrier* barrier, unsigned rank, Location where);
void take_registers(int registers);
unsigned cluster_rank();
const void* in_cluster(const void* shared, unsigned rank);

}  // namespace brasa::simt::emulator
