// Who knows of whose accesses: the vector clocks of the race check.
//
// Actors are the threads of a block, or of a cluster of blocks, and what works beside them: a
// warpgroup's tensor cores, which read operands, and the copy engine, which writes for a counting
// barrier. Each has a clock. An access of actor a at clock c is ordered before what thread t does
// now if c <= seen_by_all[a], raised where all meet, or c <= seen[t][a], raised where some do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace brasa::simt::emulator {

struct Fiber;

/// What a counting barrier hands on: the knowledge of those that arrived.
struct BarrierClock {
  uint32_t engine;                  // the actor that writes what the barrier's bytes count
  std::vector<uint32_t> arriving;   // of this phase
  std::vector<uint32_t> completed;  // of the phase before, for those that waited for its end
};

struct Clocks {
  uint32_t serial = 0;  // numbers the runs of clusters; a grid barrier starts a new one
  size_t threads = 0, of_block = 0;   // of the cluster, of a block of it
  std::vector<uint32_t> clock;        // by actor; threads first, then warpgroups, then barriers
  std::vector<uint32_t> seen_by_all;  // by actor
  std::vector<uint32_t> fenced;       // by thread: its clock at its last proxy_fence()
  std::vector<uint32_t> seen;         // (threads, actors); empty until a part synchronises
  std::unordered_map<const void*, BarrierClock> barriers;

  void start(uint32_t number, size_t threads_of_block, size_t blocks);

  size_t actors() const { return clock.size(); }
  uint32_t warpgroup(const Fiber& thread) const;
  BarrierClock& of_barrier(const void* barrier);
  bool ordered(uint32_t actor, uint32_t at, uint32_t thread) const;

  /// All threads, or those given, have met.
  void join_all();
  void join(const std::vector<Fiber*>& met);

  void arrive(const Fiber& thread, const void* barrier);
  void end_phase(const void* barrier);
  void wait(const Fiber& thread, const void* barrier);

  /// `thread` knows the actor's accesses up to clock `at` to be done.
  void learn(const Fiber& thread, uint32_t actor, uint32_t at);

 private:
  uint32_t* row(uint32_t thread);
};

/// The number of a thread among the actors.
uint32_t actor_of(const Fiber& thread);

}  // namespace brasa::simt::emulator
