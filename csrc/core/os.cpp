#include "core/os.h"

#include <atomic>
#include <cmath>
#include <cstdio>
#include <thread>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace brasa::os {
namespace {

std::atomic<bool> forked{false};

#if defined(__linux__)

/// Registered when the library is loaded: threads do not survive a fork.
const bool kForkHandler = [] {
  pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
  return true;
}();

int affinity_count() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 0;
}

/// CPUs granted by cgroup v2 (cpu.max) or v1 (cpu.cfs_quota_us), 0 when unlimited.
int quota_cpus() {
  double quota = 0, period = 0;
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (std::fscanf(file, "%lf %lf", &quota, &period) != 2) quota = 0;
    std::fclose(file);
  } else {
    const auto read = [](const char* path, double& value) {
      if (std::FILE* f = std::fopen(path, "r")) {
        if (std::fscanf(f, "%lf", &value) != 1) value = 0;
        std::fclose(f);
      }
    };
    read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota);
    read("/sys/fs/cgroup/cpu/cpu.cfs_period_us", period);
  }
  return quota > 0 && period > 0 ? int(std::ceil(quota / period)) : 0;
}

#else

int affinity_count() {
  return 0;
}
int quota_cpus() {
  return 0;
}

#endif

}  // namespace

int usable_cpus() {
  int count = affinity_count();
  if (count < 1) count = int(std::thread::hardware_concurrency());
  const int quota = quota_cpus();
  if (quota > 0 && quota < count) count = quota;
  return count < 1 ? 1 : count;
}

bool in_forked_child() {
  return forked.load(std::memory_order_relaxed);
}

void advise_huge_pages(void* p, size_t bytes) {
#if defined(__linux__)
  madvise(p, bytes, MADV_HUGEPAGE);
#else
  (void)p, (void)bytes;
#endif
}

#if defined(__linux__)

int current_cpu() {
  return sched_getcpu();
}
int thread_number() {
  return int(syscall(SYS_gettid));
}
void keep_off(int thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0 || CPU_COUNT(&set) < 2) return;
  CPU_CLR(cpu, &set);
  sched_setaffinity(thread, sizeof(set), &set);
}

#else

int current_cpu() {
  return -1;
}
int thread_number() {
  return -1;
}
void keep_off(int, int) {}

#endif

}  // namespace brasa::os
