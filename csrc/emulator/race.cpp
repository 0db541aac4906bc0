// The race check, fed by compiler instrumentation (instrumentation.cpp).
//
// Every access of a thread of the kernel to shared or device memory is compared with the last few
// accesses to the same bytes. Two of which one writes, not both atomic, must be ordered: by a
// barrier both threads passed in between (BlockClocks), by a grid barrier, or by being in different
// launches. Threads of two blocks are ordered by nothing else. Shuffles and ballots order no
// memory.
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
  const BlockClocks& clocks = me.block->clocks;
  if (access.block_serial != clocks.serial) return false;
  if (access.thread == me.index || access.clock <= clocks.seen_by_all[access.thread]) return true;
  if (clocks.seen.empty()) return false;
  const size_t row = me.index * me.block->threads.size();
  return access.clock <= clocks.seen[row + access.thread];
}

std::string verb(unsigned kind) {
  return kind & kAtomic ? "atomic" : kind & kWrite ? "write" : "read";
}

[[noreturn]] void report(const void* pointer, const Access& before, const Access& now) {
  const Fiber& me = running_fiber();
  const bool same_block = before.block_serial == me.block->clocks.serial;
  std::string message = "data race at " + describe_address(pointer) + "\n  " + verb(now.kind) +
                        " in " + describe(me) + ", " + verb(before.kind) + " by thread " +
                        std::to_string(before.thread) +
                        (same_block ? " of the same block, no barrier between them"
                                    : " of another block, nothing orders blocks");
  Scheduler::instance().abandon(
      {.message = std::move(message),
       .places = {{"this " + verb(now.kind) + " at", unpack_place(now.place)},
                  {"the " + verb(before.kind) + " at", unpack_place(before.place)}}});
}

/// Compares `now` with what is remembered of its word, then remembers it: in the place of an access
/// that it makes redundant if there is one, else in that of some other. Accesses of blocks before
/// `oldest` count for nothing: in device memory those of an earlier epoch, in shared memory those
/// of any other block.
void check_word(Access* remembered, const Access& now, uint32_t oldest, const void* pointer) {
  const Fiber& me = running_fiber();
  int slot = -1;
  for (int i = 0; i < kAccessesPerWord; ++i) {
    const Access& before = remembered[i];
    if (before.block_serial < oldest) {
      slot = i;
      continue;
    }
    const bool is_ordered = ordered(before, me);
    const bool overlap = (before.bytes & now.bytes) != 0;
    const bool writes = ((before.kind | now.kind) & kWrite) != 0;
    const bool both_atomic = (before.kind & now.kind & kAtomic) != 0;
    if (overlap && writes && !both_atomic && !is_ordered) report(pointer, before, now);
    const bool covered = (before.bytes & ~now.bytes) == 0;
    const bool as_strong = (now.kind & kWrite) != 0 || (before.kind & kWrite) == 0;
    if (slot < 0 && is_ordered && covered && as_strong) slot = i;
  }
  if (slot < 0) slot = static_cast<int>((me.index + now.clock) % kAccessesPerWord);
  remembered[slot] = now;
}

/// Checks `bytes` bytes at `offset` of a piece of memory word by word.
void check_words(Shadow& shadow, uint32_t oldest, const std::byte* base, size_t offset,
                 size_t bytes, unsigned kind, const void* pc) {
  const Fiber& me = running_fiber();
  const BlockClocks& clocks = me.block->clocks;
  const size_t needed = ((offset + bytes - 1) / kWord + 1) * kAccessesPerWord;
  if (shadow.size() < needed) shadow.resize(std::max(needed, shadow.size() * 2));
  for (size_t end = offset + bytes; offset < end;) {
    const size_t first = offset % kWord;
    const size_t count = std::min(kWord - first, end - offset);
    const Access now{.block_serial = clocks.serial,
                     .clock = clocks.clock[me.index],
                     .place = pack_place(pc),
                     .thread = static_cast<uint16_t>(me.index),
                     .bytes = static_cast<uint8_t>(((1u << count) - 1) << first),
                     .kind = static_cast<uint8_t>(kind)};
    check_word(&shadow[offset / kWord * kAccessesPerWord], now, oldest, base + offset);
    offset += count;
  }
}

[[noreturn]] void report_outside(const void* pointer, size_t bytes, unsigned kind, const void* pc) {
  std::string message = verb(kind) + " of " + std::to_string(bytes) +
                        " bytes outside an array: " + describe_address(pointer) + "\n  in " +
                        describe(*current_thread);
  Scheduler::instance().abandon({.message = std::move(message), .places = {{"at", pc}}});
}

void check_shared(Block& block, size_t offset, size_t bytes, unsigned kind, const void* pc) {
  const auto inside = [&](const SharedArray& array) {
    return offset >= array.begin && offset + bytes <= array.end;
  };
  if (std::none_of(block.arrays.begin(), block.arrays.end(), inside)) {
    report_outside(block.arena + offset, bytes, kind, pc);
  }
  check_words(block.clocks.shared, block.clocks.serial, block.arena, offset, bytes, kind, pc);
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

void start_clocks(Block& block) {
  const size_t threads = block.threads.size();
  BlockClocks& clocks = block.clocks;
  clocks.serial = next_serial++;
  clocks.clock.assign(threads, 1);
  clocks.seen_by_all.assign(threads, 0);
  clocks.fenced.assign(threads, 0);
  clocks.seen.clear();
}

void order_block(Block& block) {
  BlockClocks& clocks = block.clocks;
  clocks.seen_by_all = clocks.clock;
  for (uint32_t& clock : clocks.clock) ++clock;
}

void order_threads(Block& block, const std::vector<Fiber*>& threads) {
  BlockClocks& clocks = block.clocks;
  const size_t size = block.threads.size();
  if (clocks.seen.empty()) clocks.seen.assign(size * size, 0);
  std::vector<uint32_t> joined(size, 0);
  for (const Fiber* thread : threads) {
    const uint32_t* row = &clocks.seen[thread->index * size];
    for (size_t i = 0; i < size; ++i) joined[i] = std::max(joined[i], row[i]);
  }
  for (const Fiber* thread : threads) joined[thread->index] = clocks.clock[thread->index];
  for (const Fiber* thread : threads) {
    std::copy(joined.begin(), joined.end(), &clocks.seen[thread->index * size]);
    ++clocks.clock[thread->index];
  }
}

void proxy_fence() {
  if (!Scheduler::instance().options.race) return;
  const Fiber& me = running_fiber();
  BlockClocks& clocks = me.block->clocks;
  clocks.fenced[me.index] = clocks.clock[me.index]++;
}

void require_fenced(Block& block, size_t offset, size_t bytes, const char* reader) {
  if (!Scheduler::instance().options.race) return;
  const BlockClocks& clocks = block.clocks;
  const size_t end =
      std::min((offset + bytes + kWord - 1) / kWord * kAccessesPerWord, clocks.shared.size());
  for (size_t i = offset / kWord * kAccessesPerWord; i < end; ++i) {
    const Access& access = clocks.shared[i];
    if (access.block_serial != clocks.serial || (access.kind & kWrite) == 0) continue;
    if (access.clock <= clocks.fenced[access.thread]) continue;
    const size_t byte = i / kAccessesPerWord * kWord;
    Scheduler::instance().abandon(
        {.message = std::string(reader) + " reads byte " + std::to_string(byte) +
                    " of shared memory, which thread " + std::to_string(access.thread) +
                    " wrote without tma_store_fence() behind it",
         .places = {{"the write at", unpack_place(access.place)}}});
  }
}

void forget_accesses(Block& block, size_t offset, size_t bytes) {
  if (!Scheduler::instance().options.race) return;
  Shadow& shadow = block.clocks.shared;
  const size_t end = std::min((offset + bytes) / kWord * kAccessesPerWord, shadow.size());
  for (size_t i = offset / kWord * kAccessesPerWord; i < end; ++i) shadow[i] = {};
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
  const auto offset = static_cast<size_t>(address - me.block->arena);
  if (offset < kArenaBytes) {
    if (options.lint) count_access(me, pointer, bytes, true, kind, pc);
    if (options.race) check_shared(*me.block, offset, bytes, kind, pc);
    return;
  }
  Buffer* buffer = find_buffer(pointer);
  if (buffer == nullptr) return;  // constants and arguments of the kernel
  if (address < buffer->data || address + bytes > buffer->data + buffer->bytes) {
    report_outside(pointer, bytes, kind, pc);
  }
  if (options.lint) count_access(me, pointer, bytes, false, kind, pc);
  if (!options.race) return;
  check_words(buffer->shadow, first_serial_of_epoch, buffer->data,
              static_cast<size_t>(address - buffer->data), bytes, kind, pc);
}

}  // namespace brasa::simt::emulator
