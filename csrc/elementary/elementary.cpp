#include "elementary/elementary.h"

#include "core/elementwise.h"
#include "core/vmath.h"

namespace brasa::cpu::BRASA_ISA {

template <class T>
void elementary_forward(Context ctx, const T* x, T* y, int64_t n, ElementaryFunction function) {
  switch (function) {
#define BRASA_CASE(name, vector_function)                           \
  case ElementaryFunction::name:                                    \
    map(ctx, n, [](Vec<T> v) { return vector_function(v); }, y, x); \
    break;
    BRASA_ELEMENTARY(BRASA_CASE)
#undef BRASA_CASE
  }
}

template <class T> void add(Context ctx, const T* x, const T* y, T* sum, int64_t n) {
  map_large(ctx, n, [](Vec<T> a, Vec<T> b) { return a + b; }, sum, x, y);
}

BRASA_INSTANTIATE(elementary_forward, float, double)
BRASA_INSTANTIATE(add, float, double)

}  // namespace brasa::cpu::BRASA_ISA
