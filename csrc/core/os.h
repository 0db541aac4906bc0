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

}  // namespace brasa::os
