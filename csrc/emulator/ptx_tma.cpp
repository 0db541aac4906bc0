// Counting barriers and tensor loads.
//
// Threads that wait for a phase sleep in the scheduler's list. A load lands at once, or when no
// thread can run: as early or as late as can be (option "async"). For the race check it writes when
// it is issued, as the engine of its barrier, and who waits for the phase knows it done.
#include "emulator/ptx_tma.h"

#include <algorithm>
#include <cstring>

#include "emulator/proxy.h"
#include "emulator/scheduler.h"

namespace brasa::simt::emulator {
namespace {

constexpr unsigned kMagic = 0x1a5a;
constexpr size_t kLineBytes = 128;

void require_initialised(const CountingBarrier* barrier) {
  require_aligned(barrier, sizeof(CountingBarrier));
  if (barrier->magic != kMagic) fail("a barrier that barrier_init() has not set up");
}

/// Ends the phase of a barrier in `block` where nothing is missing.
void settle(CountingBarrier* barrier, const Block& block) {
  if (barrier->left != 0 || barrier->bytes != 0) return;
  barrier->left = barrier->arrivals;
  barrier->phase ^= 1;
  if (Scheduler::instance().options.race) block.clocks->end_phase(barrier);
  Scheduler::instance().wake_waiters(barrier);
}

void arrive(CountingBarrier* barrier, Block& block, int bytes, Location where, const void* pc) {
  require_initialised(barrier);
  check_shared(block, barrier, sizeof *barrier, kWrite | kAtomic, pc);
  if (barrier->left == 0) fail("too many arrivals at the barrier in " + describe(where));
  barrier->left = barrier->left - 1;
  barrier->bytes = barrier->bytes + bytes;
  if (Scheduler::instance().options.race) block.clocks->arrive(running_fiber(), barrier);
  settle(barrier, block);
}

/// The same from another block: it must see that the barrier is set up.
void require_fenced_barrier(const CountingBarrier* barrier, const char* user) {
  require_initialised(barrier);
  if (!barrier->fenced)
    fail(std::string(user) + ": a barrier without barrier_init_fence() behind barrier_init()");
}

size_t bytes_of(const TensorMap& map) {
  return kLineBytes * static_cast<size_t>(map.box[1] * map.box[2]);
}

/// Copies one line of the box, its pieces swapped by the address.
void land_line(std::byte* arena, size_t offset, const TensorMap& map, const int64_t* at) {
  const auto item = static_cast<size_t>(map.stride[0]);
  const bool has_outer = map.extent[3] > 0;
  bool inside = !has_outer || (at[3] >= 0 && at[3] < map.extent[3]);
  for (int d = 1; d < 3; ++d) inside = inside && at[d] >= 0 && at[d] < map.extent[d];
  const std::byte* const from =
      map.base + at[1] * map.stride[1] + at[2] * map.stride[2] + at[3] * map.stride[3];
  for (int i = 0; i < map.box[0]; ++i) {
    const size_t byte = offset + static_cast<size_t>(i) * item;
    std::byte* to = arena + (byte ^ (byte >> 3 & 0x70));
    const int64_t x = at[0] + i;
    if (inside && x >= 0 && x < map.extent[0]) {
      std::memcpy(to, from + x * map.stride[0], item);
    } else {
      std::memset(to, 0, item);
    }
  }
}

/// One step along w, at the end of a row along h, at the end of an image to the next one.
void advance(const TensorMap& map, int (&at)[3]) {
  at[0] += map.step[0];
  for (int d = 0; d < 2 && at[d] >= map.end[d]; ++d) {
    at[d] = map.lower[d];
    at[d + 1] += d == 0 ? map.step[1] : 1;
  }
}

/// Writes what of some pixels is inside the images.
void carry_out_pixels(const TensorStore& store, const std::byte* arena) {
  const TensorMap& map = store.map;
  const auto item = static_cast<size_t>(map.stride[0]);
  size_t offset = store.offset;
  int at[3] = {store.at[1], store.at[2], store.at[3]};
  for (int pixel = 0; pixel < map.box[1]; ++pixel, offset += kLineBytes, advance(map, at)) {
    std::byte* to = map.base;
    bool inside = true;
    for (int d = 0; d < 3; ++d) {
      inside = inside && at[d] >= 0 && at[d] < map.extent[d + 1];
      to += at[d] * map.stride[d + 1];
    }
    for (int i = 0; inside && i < map.box[0]; ++i) {
      const int64_t channel = store.at[0] + i;
      const size_t byte = offset + static_cast<size_t>(i) * item;
      if (channel >= map.extent[0]) continue;
      check_device(to + channel * map.stride[0], item, kWrite, store.pc);
      std::memcpy(to + channel * map.stride[0], arena + (byte ^ (byte >> 3 & 0x70)), item);
    }
  }
}

/// Writes what of a box is inside the tensor.
void carry_out(const TensorStore& store, const std::byte* arena) {
  const TensorMap& map = store.map;
  if (map.step[0] > 0) return carry_out_pixels(store, arena);
  size_t offset = store.offset;
  for (int64_t z = store.at[2]; z < store.at[2] + map.box[2]; ++z) {
    for (int64_t y = store.at[1]; y < store.at[1] + map.box[1]; ++y, offset += kLineBytes) {
      for (int i = 0; i < map.box[0]; ++i) {
        const int64_t x = store.at[0] + i;
        const size_t byte = offset + static_cast<size_t>(i * map.stride[0]);
        if (x >= map.extent[0] || y >= map.extent[1] || z >= map.extent[2]) continue;
        std::byte* to = map.base + x * map.stride[0] + y * map.stride[1] + z * map.stride[2];
        check_device(to, static_cast<size_t>(map.stride[0]), kWrite, store.pc);
        std::memcpy(to, arena + (byte ^ (byte >> 3 & 0x70)), static_cast<size_t>(map.stride[0]));
      }
    }
  }
}

}  // namespace

namespace {

/// Copies pixels one after another, along w, then along h, then from image to image.
size_t land_pixels(const TensorLoad& load) {
  const TensorMap& map = load.map;
  const auto item = static_cast<size_t>(map.stride[0]);
  size_t offset = load.offset;
  int at[3] = {load.at[1], load.at[2], load.at[3]};
  for (int pixel = 0; pixel < map.box[1]; ++pixel, offset += kLineBytes) {
    const int64_t place[3] = {at[0] + load.beside[0], at[1] + load.beside[1], at[2]};
    bool inside = true;
    for (int d = 0; d < 3; ++d) inside = inside && place[d] >= 0 && place[d] < map.extent[d + 1];
    for (int i = 0; i < map.box[0]; ++i) {
      const size_t byte = offset + static_cast<size_t>(i) * item;
      std::byte* to = load.block->arena + (byte ^ (byte >> 3 & 0x70));
      const int64_t channel = load.at[0] + i;
      if (!inside || channel < 0 || channel >= map.extent[0]) {
        std::memset(to, 0, item);
        continue;
      }
      const std::byte* from = map.base + channel * map.stride[0];
      for (int d = 0; d < 3; ++d) from += place[d] * map.stride[d + 1];
      std::memcpy(to, from, item);
    }
    advance(map, at);
  }
  return offset;
}

}  // namespace

void land(const TensorLoad& load) {
  const TensorMap& map = load.map;
  size_t offset = load.offset;
  if (map.step[0] > 0) offset = land_pixels(load);
  for (int z = 0; map.step[0] == 0 && z < map.box[2]; ++z) {
    for (int y = 0; y < map.box[1]; ++y, offset += kLineBytes) {
      const int64_t at[4] = {load.at[0], load.at[1] + y, load.at[2] + z, load.at[3]};
      land_line(load.block->arena, offset, map, at);
    }
  }
  load.barrier->bytes = load.barrier->bytes - static_cast<int64_t>(offset - load.offset);
  settle(load.barrier, *load.block);
}

void start(const TensorLoad& load, const void* pc) {
  require_fenced_barrier(load.barrier, "tma_load");
  if (Scheduler::instance().options.race) {
    Clocks& clocks = *load.block->clocks;
    const uint32_t engine = clocks.of_barrier(load.barrier).engine;
    check_for(*load.block, load.offset, bytes_of(load.map), kWrite, engine, clocks.clock[engine],
              pc);
  }
  Scheduler::instance().start(load);
}

void barrier_init(CountingBarrier* barrier, int arrivals) {
  if (!in_shared_memory(barrier)) fail("barrier_init: " + describe_address(barrier));
  require_aligned(barrier, sizeof(CountingBarrier));
  Fiber& me = running_fiber();
  check_shared(*me.block, barrier, sizeof *barrier, kWrite, __builtin_return_address(0));
  *barrier = {.bytes = 0,
              .left = static_cast<unsigned>(arrivals),
              .arrivals = static_cast<unsigned>(arrivals),
              .phase = 0,
              .fenced = 0,
              .magic = kMagic};
  me.unfenced_barriers.push_back(barrier);
}

void barrier_init_fence() {
  for (CountingBarrier* barrier : running_fiber().unfenced_barriers) barrier->fenced = 1;
  running_fiber().unfenced_barriers.clear();
}

void barrier_arrive(CountingBarrier* barrier, Location where) {
  arrive(barrier, *running_fiber().block, 0, where, __builtin_return_address(0));
}

void barrier_arrive_in(Block& block, CountingBarrier* barrier, Location where, const void* pc) {
  require_fenced_barrier(barrier, "barrier_arrive_at");
  arrive(barrier, block, 0, where, pc);
}

void barrier_expect(CountingBarrier* barrier, int bytes, Location where) {
  arrive(barrier, *running_fiber().block, bytes, where, __builtin_return_address(0));
}

void barrier_wait(CountingBarrier* barrier, unsigned parity, Location where) {
  require_initialised(barrier);
  Fiber& me = running_fiber();
  check_shared(*me.block, barrier, sizeof *barrier, kWrite | kAtomic, __builtin_return_address(0));
  while (barrier->phase == parity) Scheduler::instance().wait_for(barrier, where);
  if (Scheduler::instance().options.race) me.block->clocks->wait(me, barrier);
}

namespace {

void start_load(void* shared, CountingBarrier* barrier, TensorLoad load, const void* pc) {
  require_aligned(shared, kLineBytes);
  if (!in_shared_memory(shared)) fail("tma_load: " + describe_address(shared));
  load.barrier = barrier;
  load.block = running_fiber().block;
  load.offset = static_cast<size_t>(static_cast<std::byte*>(shared) - load.block->arena);
  start(load, pc);
}

}  // namespace

void tensor_load(void* shared, const TensorMap& map, CountingBarrier* barrier, int x, int y,
                 int z) {
  if (map.step[0] != 0) fail("tma_load: a map of pixels");
  if (map.extent[3] != 0) fail("tma_load: the map has an outer dimension");
  start_load(shared, barrier, TensorLoad{.map = map, .at = {x, y, z}}, __builtin_return_address(0));
}

void tensor_load(void* shared, const TensorMap& map, CountingBarrier* barrier, int x, int y, int z,
                 int outer) {
  if (map.step[0] != 0) fail("tma_load: a map of pixels");
  if (map.extent[3] == 0) fail("tma_load: the map has no outer dimension");
  start_load(shared, barrier, TensorLoad{.map = map, .at = {x, y, z, outer}},
             __builtin_return_address(0));
}

namespace {

void require_on_walk(const TensorMap& map, int w, int h, const char* name) {
  if (map.step[0] == 0) fail(std::string(name) + ": no map of pixels");
  const int first[2] = {w, h};
  for (int d = 0; d < 2; ++d) {
    const bool on_walk = first[d] >= map.lower[d] && first[d] < map.end[d] &&
                         (first[d] - map.lower[d]) % map.step[d] == 0;
    if (!on_walk)
      fail(std::string(name) + ": begins at " + std::to_string(first[d]) + ", off its walk");
  }
}

void start_store(const TensorMap& map, const void* shared, TensorStore store) {
  require_aligned(shared, kLineBytes);
  if (!in_shared_memory(shared)) fail("tma_store: " + describe_address(shared));
  Fiber& me = running_fiber();
  store.map = map;
  store.offset = static_cast<size_t>(static_cast<const std::byte*>(shared) - me.block->arena);
  const size_t bytes = bytes_of(map);
  check_shared(*me.block, shared, bytes, kRead, store.pc);
  require_fenced(*me.block, store.offset, bytes, "tma_store");
  // None overtakes an older one: a wait counts the newest, whether they have landed or not.
  if (me.tensor_stores.empty() && Scheduler::instance().copies_land_at_once())
    carry_out(store, me.block->arena);
  else
    me.tensor_stores.push_back(store);
}

}  // namespace

void pixel_load(void* shared, const TensorMap& map, CountingBarrier* barrier, int channel, int w,
                int h, int image, int right, int down) {
  require_on_walk(map, w, h, "tma_load_pixels");
  for (int beside : {right, down}) {
    if (beside < 0 || beside > 255)
      fail("tma_load_pixels: reads " + std::to_string(beside) + " pixels beside");
  }
  start_load(shared, barrier,
             TensorLoad{.map = map, .at = {channel, w, h, image}, .beside = {right, down}},
             __builtin_return_address(0));
}

void tensor_store(const TensorMap& map, const void* shared, int x, int y, int z) {
  if (map.step[0] != 0) fail("tma_store: a map of pixels");
  start_store(map, shared, {.at = {x, y, z}, .pc = __builtin_return_address(0)});
}

void pixel_store(const TensorMap& map, const void* shared, int channel, int w, int h, int image) {
  require_on_walk(map, w, h, "tma_store_pixels");
  start_store(map, shared, {.at = {channel, w, h, image}, .pc = __builtin_return_address(0)});
}

void tensor_store_wait(int stores_left) {
  Fiber& me = running_fiber();
  while (me.tensor_stores.size() > static_cast<size_t>(stores_left)) {
    const TensorStore& store = me.tensor_stores.front();
    check_shared(*me.block, me.block->arena + store.offset, bytes_of(store.map), kRead, store.pc);
    carry_out(store, me.block->arena);
    me.tensor_stores.erase(me.tensor_stores.begin());
  }
}

/// The last thread sees whether a block, alone on its multiprocessor, can have what all ask for.
void take_registers(int registers) {
  constexpr int64_t kRegisters = 64 * 1024, kMostOfThread = 255, kStep = 8;
  Block& block = *running_fiber().block;
  const auto threads = static_cast<int64_t>(block.threads.size());
  block.registers += registers;
  if (++block.takers < threads) return;
  const int64_t most = std::min(kRegisters / threads, kMostOfThread) / kStep * kStep * threads;
  if (block.registers > most)
    fail("threads wait for ever for " + std::to_string(block.registers) +
         " registers in all: their block begins with " + std::to_string(most));
}

unsigned cluster_rank() {
  return running_fiber().block->rank;
}

}  // namespace brasa::simt::emulator
