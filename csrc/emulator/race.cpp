// The race check, fed by compiler instrumentation (instrumentation.cpp).
//
// Every access of a thread of the kernel to shared or device memory is compared with the last few
// accesses to the same bytes. Two of which one writes, not both atomic, must be ordered: by a
// barrier both threads passed in between, an arrival at a counting barrier and a wait for its phase
// (Clocks), by a grid barrier, or by being in different launches. Threads of blocks that are no
// cluster are ordered by nothing else. Shuffles, ballots and warpgroup products order no memory.
//
// What the copy engine writes into shared memory counts from the start of the load to a wait for
// its barrier, and what wgmma reads from its start to a wait for it.
//
// Found on the way: accesses outside a buffer or a shared array, and launchers that touch device
// memory.
//
// Only kAccessesPerWord accesses are remembered, so a race can hide behind others to the same word;
// a barrier that is missing shows at some word of its array. What is reported is a race.
#include "emulator/race.h"

#include <algorithm>
#include <cstdint>

#include "emulator/memory.h"
#include "emulator/proxy.h"
#include "emulator/scheduler.h"

namespace brasa::simt::emulator {
namespace {

constexpr size_t kWord = 4;

uint32_t next_serial = 1;
uint32_t first_serial_of_epoch = 1;  // older accesses are ordered before everything now

const char place_anchor = 0;  // places are kept as distances from this address

int32_t pack_place(const void* pc) {
  return static_cast<int32_t>(static_cast<const char*>(pc) - &place_anchor);
}
const void* unpack_place(int32_t place) {
  return &place_anchor + place;
}

/// Whether a remembered access of this epoch is ordered before what `me` does now.
bool ordered(const Access& access, const Fiber& me) {
  const Clocks& clocks = *me.block->clocks;
  return access.serial == clocks.serial && clocks.ordered(access.actor, access.clock, actor_of(me));
}

std::string verb(unsigned kind) {
  return kind & kAtomic ? "atomic" : kind & kWrite ? "write" : "read";
}

/// Who made an access, as seen from a thread.
std::string describe_actor(const Access& access, const Fiber& me) {
  const Clocks& clocks = *me.block->clocks;
  if (access.serial != clocks.serial)
    return "thread " + std::to_string(access.actor) + " of another block, nothing orders blocks";
  if (access.actor >= clocks.threads)
    return std::string(access.kind & kWrite ? "the copy engine" : "wgmma") +
           ", which nobody waited for";
  const size_t block = access.actor / clocks.of_block;
  const std::string thread = "thread " + std::to_string(access.actor % clocks.of_block);
  if (block == me.block->first_actor / clocks.of_block)
    return thread + " of the same block, no barrier between them";
  return thread + " of block " + std::to_string(block) + " of the cluster, no barrier between them";
}

[[noreturn]] void report(const void* pointer, const Access& before, const Access& now) {
  const Fiber& me = running_fiber();
  const Clocks& clocks = *me.block->clocks;
  const char* by = now.actor < clocks.threads ? ""
                   : now.kind & kWrite        ? " by the copy engine"
                                              : " by wgmma";
  std::string message = "data race at " + describe_address(pointer) + "\n  " + verb(now.kind) + by +
                        " in " + describe(me) + ", " + verb(before.kind) + " by " +
                        describe_actor(before, me);
  Scheduler::instance().abandon(
      {.message = std::move(message),
       .places = {{"this " + verb(now.kind) + " at", unpack_place(now.place)},
                  {"the " + verb(before.kind) + " at", unpack_place(before.place)}}});
}

/// Compares `now` with what is remembered of its word, then remembers it: in the place of accesses
/// that it makes redundant if there are such, else in that of some other. Accesses of clocks before
/// `oldest` count for nothing: in device memory those of an earlier epoch, in shared memory those
/// of any other cluster.
void check_word(Access* remembered, const Access& now, uint32_t oldest, const void* pointer) {
  const Fiber& me = running_fiber();
  int slot = -1;
  for (int i = 0; i < kAccessesPerWord; ++i) {
    Access& before = remembered[i];
    if (before.serial >= oldest) {
      const bool is_ordered = ordered(before, me);
      const bool overlap = (before.bytes & now.bytes) != 0;
      const bool writes = ((before.kind | now.kind) & kWrite) != 0;
      const bool both_atomic = (before.kind & now.kind & kAtomic) != 0;
      if (overlap && writes && !both_atomic && !is_ordered) report(pointer, before, now);
      const bool covered = (before.bytes & ~now.bytes) == 0;
      const bool as_strong = ((now.kind & kWrite) != 0 || (before.kind & kWrite) == 0) &&
                             ((now.kind & kAtomic) == 0 || (before.kind & kAtomic) != 0);
      if (!(is_ordered && covered && as_strong)) continue;
    }
    before = {};
    if (slot < 0) slot = i;
  }
  if (slot < 0) slot = static_cast<int>((me.index + now.clock) % kAccessesPerWord);
  remembered[slot] = now;
}

/// Checks `bytes` bytes at `offset` of a piece of memory word by word.
void check_words(Shadow& shadow, uint32_t oldest, const std::byte* base, size_t offset,
                 size_t bytes, Access now) {
  now.serial = running_fiber().block->clocks->serial;
  const size_t needed = ((offset + bytes - 1) / kWord + 1) * kAccessesPerWord;
  if (shadow.size() < needed) shadow.resize(std::max(needed, shadow.size() * 2));
  for (size_t end = offset + bytes; offset < end;) {
    const size_t first = offset % kWord;
    const size_t count = std::min(kWord - first, end - offset);
    now.bytes = static_cast<uint8_t>(((1u << count) - 1) << first);
    check_word(&shadow[offset / kWord * kAccessesPerWord], now, oldest, base + offset);
    offset += count;
  }
}

/// An access that the running thread makes itself.
Access mine(unsigned kind, const void* pc) {
  const Fiber& me = running_fiber();
  const uint32_t actor = actor_of(me);
  return {.serial = 0,
          .clock = me.block->clocks->clock[actor],
          .place = pack_place(pc),
          .actor = static_cast<uint16_t>(actor),
          .bytes = 0,
          .kind = static_cast<uint8_t>(kind)};
}

[[noreturn]] void report_outside(const void* pointer, size_t bytes, unsigned kind, const void* pc) {
  std::string message = verb(kind) + " of " + std::to_string(bytes) +
                        " bytes outside an array: " + describe_address(pointer) + "\n  in " +
                        describe(*current_thread);
  Scheduler::instance().abandon({.message = std::move(message), .places = {{"at", pc}}});
}

void require_inside(const Block& block, size_t offset, size_t bytes, unsigned kind,
                    const void* pc) {
  const auto inside = [&](const SharedArray& array) {
    return offset >= array.begin && offset + bytes <= array.end;
  };
  if (std::none_of(block.arrays.begin(), block.arrays.end(), inside))
    report_outside(block.arena + offset, bytes, kind, pc);
}

/// Launchers are instrumented as well: on a GPU they cannot touch device memory. The instrumented
/// code does not expect an exception here, so the launch that follows throws.
void check_host_access(const void* pointer, size_t bytes, unsigned kind, const void* pc) {
  const RuntimeLock lock;
  if (find_buffer(pointer) == nullptr) return;
  Scheduler::instance().remember({.message = "host code touches device memory: " + verb(kind) +
                                             " of " + std::to_string(bytes) + " bytes at " +
                                             describe_address(pointer),
                                  .places = {{"at", pc}}});
}

}  // namespace

void start_epoch() {
  first_serial_of_epoch = next_serial;
}

void start_clocks(Clocks& clocks, size_t threads, size_t blocks) {
  clocks.start(next_serial++, threads, blocks);
}

void check_shared(Block& block, const void* pointer, size_t bytes, unsigned kind, const void* pc) {
  if (!Scheduler::instance().options.race) return;
  const auto offset = static_cast<size_t>(static_cast<const std::byte*>(pointer) - block.arena);
  require_inside(block, offset, bytes, kind, pc);
  check_words(block.shadow, block.clocks->serial, block.arena, offset, bytes, mine(kind, pc));
}

void check_for(Block& block, size_t offset, size_t bytes, unsigned kind, uint32_t actor,
               uint32_t at, const void* pc) {
  Access access = mine(kind, pc);
  access.actor = static_cast<uint16_t>(actor);
  access.clock = at;
  require_inside(block, offset, bytes, kind, pc);
  check_words(block.shadow, block.clocks->serial, block.arena, offset, bytes, access);
}

void check_device(const void* pointer, size_t bytes, unsigned kind, const void* pc) {
  if (!Scheduler::instance().options.race) return;
  Buffer* buffer = find_buffer(pointer);
  if (buffer == nullptr) return;  // constants and arguments of the kernel
  const auto* address = static_cast<const std::byte*>(pointer);
  if (address < buffer->data || address + bytes > buffer->data + buffer->bytes)
    report_outside(pointer, bytes, kind, pc);
  check_words(buffer->shadow, first_serial_of_epoch, buffer->data,
              static_cast<size_t>(address - buffer->data), bytes, mine(kind, pc));
}

void proxy_fence() {
  if (!Scheduler::instance().options.race) return;
  const Fiber& me = running_fiber();
  Clocks& clocks = *me.block->clocks;
  clocks.fenced[actor_of(me)] = clocks.clock[actor_of(me)]++;
}

void require_fenced(Block& block, size_t offset, size_t bytes, const char* reader) {
  if (!Scheduler::instance().options.race) return;
  const Clocks& clocks = *block.clocks;
  const size_t end =
      std::min((offset + bytes + kWord - 1) / kWord * kAccessesPerWord, block.shadow.size());
  for (size_t i = offset / kWord * kAccessesPerWord; i < end; ++i) {
    const Access& access = block.shadow[i];
    if (access.serial != clocks.serial || (access.kind & kWrite) == 0) continue;
    if (access.actor >= clocks.threads || access.clock <= clocks.fenced[access.actor]) continue;
    const size_t byte = i / kAccessesPerWord * kWord;
    Scheduler::instance().abandon({.message = std::string(reader) + " reads byte " +
                                              std::to_string(byte) +
                                              " of shared memory, which thread " +
                                              std::to_string(access.actor % clocks.of_block) +
                                              " wrote without tma_store_fence() behind it",
                                   .places = {{"the write at", unpack_place(access.place)}}});
  }
}

void note_access(const void* pointer, size_t bytes, unsigned kind, const void* pc) {
  const Options& options = Scheduler::instance().options;
  if (!(options.race || options.lint) || bytes == 0) return;
  if (current_thread == nullptr) {
    if (options.race) check_host_access(pointer, bytes, kind, pc);
    return;
  }
  Fiber& me = running_fiber();
  const auto* address = static_cast<const std::byte*>(pointer);
  if (address >= me.stack.base && address < me.stack.top) return;
  const std::vector<Fiber>& threads = me.block->threads;  // read as threadIdx and its like
  if (pointer >= threads.data() && pointer < threads.data() + threads.size()) return;
  if (static_cast<size_t>(address - me.block->arena) < kArenaBytes) {
    if (options.lint) count_access(me, pointer, bytes, true, kind, pc);
    check_shared(*me.block, pointer, bytes, kind, pc);
    return;
  }
  check_device(pointer, bytes, kind, pc);
  if (options.lint && find_buffer(pointer) != nullptr)
    count_access(me, pointer, bytes, false, kind, pc);
}

}  // namespace brasa::simt::emulator
