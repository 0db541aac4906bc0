// Asynchronous copies. Each thread keeps its groups of copies that have not landed; the last group
// is open.
//
// For the race check a copy writes twice: when it is issued, because from then on it may land, and
// when it is waited for, which is what a barrier behind the wait orders.
#include "emulator/ptx_async.h"

#include <cstring>

#include "emulator/scheduler.h"

namespace brasa::simt::emulator {
namespace {

void land(const AsyncCopy& copy, const void* pc) {
  note_access(copy.shared, copy.bytes, kWrite, pc);
  if (copy.source_bytes != 0) {
    note_access(copy.global, copy.source_bytes, kRead, pc);
    std::memcpy(copy.shared, copy.global, copy.source_bytes);
  }
  std::memset(static_cast<std::byte*>(copy.shared) + copy.source_bytes, 0,
              copy.bytes - copy.source_bytes);
}

std::vector<AsyncGroup>& my_groups() {
  std::vector<AsyncGroup>& groups = running_fiber().async_groups;
  if (groups.empty()) groups.emplace_back();
  return groups;
}

}  // namespace

void async_copy(void* shared, const void* global, int bytes, int source_bytes) {
  const void* pc = __builtin_return_address(0);
  const auto size = static_cast<size_t>(bytes);
  require_aligned(shared, size);
  if (source_bytes < 0 || source_bytes > bytes) {
    fail("cp_async: " + std::to_string(source_bytes) + " of " + std::to_string(bytes) + " bytes");
  }
  if (source_bytes != 0) require_aligned(global, size);
  if (!in_shared_memory(shared))
    fail("cp_async: " + describe_address(shared) + ", not shared memory");
  const AsyncCopy copy{shared, global, size, static_cast<size_t>(source_bytes)};
  if (Scheduler::instance().copies_land_at_once()) {
    land(copy, pc);
  } else {
    note_access(shared, size, kWrite, pc);
    my_groups().back().push_back(copy);
  }
}

void async_commit() {
  my_groups().emplace_back();
}

void async_wait(int groups_left) {
  std::vector<AsyncGroup>& groups = my_groups();
  const auto kept = static_cast<size_t>(groups_left) + 1;  // and the open one
  if (groups.size() <= kept) return;
  const auto end = groups.end() - static_cast<std::ptrdiff_t>(kept);
  for (auto group = groups.begin(); group != end; ++group) {
    for (const AsyncCopy& copy : *group) land(copy, __builtin_return_address(0));
  }
  groups.erase(groups.begin(), end);
}

}  // namespace brasa::simt::emulator
