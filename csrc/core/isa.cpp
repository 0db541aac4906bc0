// Which instruction sets this CPU and its operating system offer: cpuid for the instructions,
// xgetbv for the register state the system saves. Read by hand, since not every compiler links
// __builtin_cpu_supports.
#include "core/isa.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace brasa::cpu {
namespace {

constexpr const char* kNames[] = {
#define BRASA_NAME(isa) #isa,
    BRASA_FOR_EACH_ISA(BRASA_NAME)
#undef BRASA_NAME
};
constexpr int kCount = sizeof(kNames) / sizeof(kNames[0]);

#if defined(__x86_64__)

struct Registers {
  uint32_t eax, ebx, ecx, edx;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  Registers r{};
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

uint64_t saved_state() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

constexpr bool has(uint32_t bits, uint32_t wanted) {
  return (bits & wanted) == wanted;
}

/// Highest of scalar 0, baseline 1, avx2 2, avx512 3.
int detect_level() {
  const Registers one = cpuid(1), seven = cpuid(7), extended = cpuid(0x80000001u);
  constexpr uint32_t kV2 =
      1u | 1u << 9 | 1u << 13 | 1u << 19 | 1u << 20 | 1u << 23;  // sse3 .. popcnt
  if (!has(one.ecx, kV2)) return 0;
  constexpr uint32_t kOsxsave = 1u << 27;
  constexpr uint32_t kV3 =
      1u << 12 | 1u << 22 | kOsxsave | 1u << 28 | 1u << 29;   // fma movbe avx f16c
  constexpr uint32_t kV3Seven = 1u << 3 | 1u << 5 | 1u << 8;  // bmi1 avx2 bmi2
  constexpr uint32_t kLzcnt = 1u << 5;
  if (!has(one.ecx, kV3) || !has(seven.ebx, kV3Seven) || !has(extended.ecx, kLzcnt)) return 1;
  const uint64_t state = saved_state();
  if ((state & 0x6) != 0x6) return 1;                                             // xmm and ymm
  constexpr uint32_t kV4 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;  // f dq cd bw vl
  return has(seven.ebx, kV4) && (state & 0xe6) == 0xe6 ? 3 : 2;
}

#else

int detect_level() {
  return 1;
}  // NEON is part of every aarch64

#endif

int find(const char* name) {
  for (int i = 0; i < kCount; ++i)
    if (std::strcmp(kNames[i], name) == 0) return i;
  return -1;
}

int initial_level() {
  const char* wanted = std::getenv("BRASA_ISA");
  const int index = wanted ? find(wanted) : -1;
  return index >= 0 && isa_supported(index) ? index : detect_level();
}

std::atomic<int>& level() {
  static std::atomic<int> value{initial_level()};
  return value;
}

}  // namespace

int isa_index() {
  return level().load(std::memory_order_relaxed);
}
int isa_count() {
  return kCount;
}
const char* isa_name(int index) {
  return kNames[index];
}

const char* isa_unavailable() {
  const char* wanted = std::getenv("BRASA_ISA");
  return wanted && !isa_supported(find(wanted)) ? wanted : nullptr;
}

bool isa_supported(int index) {
  static const int highest = detect_level();
  return index >= 0 && index <= highest;
}

bool set_isa(const char* name) {
  const int index = find(name);
  if (!isa_supported(index)) return false;
  level().store(index);
  return true;
}

}  // namespace brasa::cpu
