// The one epilogue of matmul, convolutions and norms: activation(result + bias + residual).
//
// On the CPU it runs over rows of a finished tile while they are in L1, with the activation behind
// a function pointer chosen once per call: as a template argument of the micro-kernels it would
// cost a hundred times the code (496 KB against 5 KB for one tile set).
#pragma once

#include "core/activations.h"

#if defined(__CUDACC__)
#define BRASA_EPILOGUE_FN __host__ __device__ __forceinline__
#else
#define BRASA_EPILOGUE_FN __attribute__((always_inline))
#endif

namespace brasa {

template <class T> struct Epilogue {
  const T* bias;      ///< one per column (output channel), or null
  const T* residual;  ///< laid out as the result, or null
  T* pre_activation;  ///< where the activation's input is kept, laid out as the result, or null
  Activation activation;
  const float* wide_bias =
      nullptr;  ///< a bias in float32 beside 16-bit results, in place of `bias`

  BRASA_EPILOGUE_FN bool is_trivial() const {
    return !bias && !wide_bias && !residual && !pre_activation &&
           activation.kind == ActivationKind::none;
  }
};

}  // namespace brasa

#if defined(BRASA_ISA)

#include "core/simd.h"

namespace brasa::cpu::BRASA_ISA {

template <class T> using RowActivation = void (*)(const T* x, T* y, int64_t n, T alpha, T beta);

/// The function that applies an activation to n elements; defined in activation.cpp.
template <class T> RowActivation<T> row_activation(ActivationKind kind);

/// An epilogue with its activation looked up: make one per call, before going parallel.
template <class T> struct RowEpilogue {
  Epilogue<T> epilogue;
  RowActivation<T> activate;

  explicit RowEpilogue(const Epilogue<T>& e)
      : epilogue(e),
        activate(e.activation.kind == ActivationKind::none ? nullptr
                                                           : row_activation<T>(e.activation.kind)) {
  }

  /// row[0, n) is finished: columns [column, column + n) of the result, `offset` elements into it.
  void apply(T* row, int64_t n, int64_t column, int64_t offset) const {
    const Epilogue<T>& e = epilogue;
    constexpr int kWidth = kLanes<T>;
    if (e.bias || e.residual || e.pre_activation) {
      for (int64_t i = 0; i < n; i += kWidth) {
        const int64_t live = n - i < kWidth ? n - i : kWidth;
        const auto read = [=](const T* p) {
          return live == kWidth ? load(p) : load_partial(p, live);
        };
        Vec<T> v = read(row + i);
        if (e.bias) v += read(e.bias + column + i);
        if (e.residual) v += read(e.residual + offset + i);
        store_partial_or_whole(row + i, v, live);
        if (e.pre_activation) store_partial_or_whole(e.pre_activation + offset + i, v, live);
      }
    }
    if (activate) activate(row, row, n, T(e.activation.alpha), T(e.activation.beta));
  }

 private:
  static void store_partial_or_whole(T* p, Vec<T> v, int64_t live) {
    if (live == kLanes<T>)
      store(p, v);
    else
      store_partial(p, v, live);
  }
};

}  // namespace brasa::cpu::BRASA_ISA

#endif
