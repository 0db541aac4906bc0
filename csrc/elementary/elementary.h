// Elementary functions over dense memory: the functions of core/vmath.h as operators. Their
// gradients are products of other operators, so that gradients of gradients are there too. Floor:
// one read and one write of the array.
#pragma once

#include "core/dispatch.h"

namespace brasa {

/// Python's name, the function of core/vmath.h and core/vmath.cuh
#define BRASA_ELEMENTARY(X) \
  X(exp, vexp)              \
  X(expm1, vexpm1)          \
  X(log, vlog)              \
  X(log1p, vlog1p)          \
  X(erf, verf)

enum class ElementaryFunction : int32_t {
#define BRASA_ENUM(name, function) name,
  BRASA_ELEMENTARY(BRASA_ENUM)
#undef BRASA_ENUM
};

}  // namespace brasa

/// y[i] = function(x[i]) for i < n. x and y may be the same buffer.
BRASA_KERNEL(elementary_forward, const T* x, T* y, int64_t n, ElementaryFunction function)

/// sum[i] = x[i] + y[i] for i < n: residual joins, and the gradients of an array that is used
/// twice. sum may be x or y.
BRASA_KERNEL(add, const T* x, const T* y, T* sum, int64_t n)

#if defined(BRASA_FOR_CUDA)
namespace brasa::cuda {
/// y[i] = x[i], rounded once, where one of T and U is float and the other one of 16 bits.
template <class T, class U> void cast(Context ctx, const T* x, U* y, int64_t n);
}  // namespace brasa::cuda
#endif
