// BRASA_KERNEL: one line declares a kernel for every instruction set, or for CUDA.
//
//   BRASA_KERNEL(relu_forward, const T* x, T* y, int64_t n)
//
// declares `template <class T> void relu_forward(Context ctx, const T* x, T* y, int64_t n)`
//   - in a CPU kernel file (BRASA_ISA is set): in namespace brasa::cpu::BRASA_ISA;
//   - in a .cu file or a CUDA binding (BRASA_FOR_CUDA is set): in namespace brasa::cuda;
//   - elsewhere: in every instruction set's namespace, with brasa::cpu::relu_forward<T>(...) that
//     calls the one in use: one indirect call per operator call, never inside a loop.
// BRASA_FUNCTION is the same with a return type and without the context, for x_workspace().
// BRASA_INSTANTIATE(relu_forward, float, double) ends a kernel file; it repeats no signature.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/context.h"

#if defined(BRASA_ISA)

#define BRASA_FUNCTION(result, name, ...)      \
  namespace brasa::cpu::BRASA_ISA {            \
  template <class T> result name(__VA_ARGS__); \
  }

#elif defined(BRASA_FOR_CUDA)

#define BRASA_FUNCTION(result, name, ...)      \
  namespace brasa::cuda {                      \
  template <class T> result name(__VA_ARGS__); \
  }

#else

#include "core/isa.h"

#define BRASA_DECLARE_IN_ISAS(result, name, ...)      \
  BRASA_DECLARE_(scalar, result, name, __VA_ARGS__)   \
  BRASA_DECLARE_(baseline, result, name, __VA_ARGS__) \
  BRASA_DECLARE_X86(result, name, __VA_ARGS__)
#define BRASA_DECLARE_(isa, result, name, ...) \
  namespace isa {                              \
  template <class T> result name(__VA_ARGS__); \
  }
#if defined(__x86_64__) || defined(_M_X64)
#define BRASA_DECLARE_X86(result, name, ...)      \
  BRASA_DECLARE_(avx2, result, name, __VA_ARGS__) \
  BRASA_DECLARE_(avx512, result, name, __VA_ARGS__)
#define BRASA_TABLE_(name) {&scalar::name<T>, &baseline::name<T>, &avx2::name<T>, &avx512::name<T>}
#else
#define BRASA_DECLARE_X86(result, name, ...)
#define BRASA_TABLE_(name) {&scalar::name<T>, &baseline::name<T>}
#endif

#define BRASA_FUNCTION(result, name, ...)                                      \
  namespace brasa::cpu {                                                       \
  BRASA_DECLARE_IN_ISAS(result, name, __VA_ARGS__)                             \
  template <class T, class... Arguments> result name(Arguments... arguments) { \
    using Function = result (*)(__VA_ARGS__);                                  \
    static constexpr Function kTable[] = BRASA_TABLE_(name);                   \
    return kTable[isa_index()](arguments...);                                  \
  }                                                                            \
  }

#endif

#define BRASA_KERNEL(name, ...) BRASA_FUNCTION(void, name, ::brasa::Context ctx, __VA_ARGS__)

#define BRASA_INSTANTIATE_1(name, T) template decltype(name<T>) name<T>;
#define BRASA_INSTANTIATE_2(name, T, U) BRASA_INSTANTIATE_1(name, T) BRASA_INSTANTIATE_1(name, U)
#define BRASA_INSTANTIATE_4(name, T, U, V, W) \
  BRASA_INSTANTIATE_2(name, T, U) BRASA_INSTANTIATE_2(name, V, W)
#define BRASA_PICK_(a, b, c, d, macro, ...) macro
#define BRASA_INSTANTIATE(name, ...)                                                              \
  BRASA_PICK_(__VA_ARGS__, BRASA_INSTANTIATE_4, unused, BRASA_INSTANTIATE_2, BRASA_INSTANTIATE_1) \
  (name, __VA_ARGS__)
