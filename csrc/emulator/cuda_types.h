// CUDA's qualifiers and vector types for a C++ compiler.
#pragma once

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define BRASA_VECTOR_TYPES(T, name)                   \
  struct alignas(2 * sizeof(T)) name##2 {             \
    T x, y;                                           \
  };                                                  \
  struct alignas(16) name##4 {                        \
    T x, y, z, w;                                     \
  };                                                  \
  inline name##2 make_##name##2(T x, T y) {           \
    return {x, y};                                    \
  }                                                   \
  inline name##4 make_##name##4(T x, T y, T z, T w) { \
    return {x, y, z, w};                              \
  }
BRASA_VECTOR_TYPES(float, float)
BRASA_VECTOR_TYPES(double, double)
BRASA_VECTOR_TYPES(int, int)
BRASA_VECTOR_TYPES(unsigned, uint)
#undef BRASA_VECTOR_TYPES
