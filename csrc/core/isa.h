// The instruction sets a CPU kernel is compiled for, and the one in use.
//
// A kernel file is compiled once per entry of BRASA_FOR_EACH_ISA, each time with BRASA_ISA set to
// the entry's name: all it defines lives in namespace brasa::cpu::<name>. Code outside kernel files
// is plain baseline code and asks isa_index() which copy to call.
//
//   scalar    one lane, no vectoriser, fma() from libm: any CPU; equals avx2 and avx512 bit for bit
//   baseline  x86-64-v2 (no FMA, equals itself only) or NEON
//   avx2      x86-64-v3
//   avx512    x86-64-v4
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#define BRASA_FOR_EACH_ISA(X) X(scalar) X(baseline) X(avx2) X(avx512)
#else
#define BRASA_FOR_EACH_ISA(X) X(scalar) X(baseline)
#endif

namespace brasa::cpu {

/// Position of the instruction set in use in BRASA_FOR_EACH_ISA.
int isa_index();

/// Number of instruction sets this build contains, and whether this CPU can run the i-th.
int isa_count();
const char* isa_name(int index);
bool isa_supported(int index);

/// What BRASA_ISA asks for and cannot be had, or null. The module refuses to load then.
const char* isa_unavailable();

/// Force one by name. Returns false when it is unknown or this CPU lacks it.
bool set_isa(const char* name);

}  // namespace brasa::cpu
