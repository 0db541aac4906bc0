// What is the operating system's: processors, fork, pages. The only file besides os.cpp to change
// for another system.
#pragma once

#include <cstddef>

namespace brasa::os {

/// CPUs this process may run on: the affinity mask, capped by the cgroup quota, at least 1.
int usable_cpus();

/// Has fork() been called since the library was loaded, and is this the child?
bool in_forked_child();

/// Asks for huge pages for [p, p + bytes).
void advise_huge_pages(void* p, size_t bytes);

/// The CPU that the calling thread runs on, -1 where there is no telling.
int current_cpu();

/// The calling thread's number for keep_off(), -1 where there is none.
int thread_number();

/// From now on a thread runs on the CPUs that the caller may run on, but `cpu`; if there are
/// others.
void keep_off(int thread, int cpu);

}  // namespace brasa::os
