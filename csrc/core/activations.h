// The list of activations: adding one is one struct and one line of BRASA_ACTIVATIONS.
//
// Each has a forward and a derivative, written once for every value type V: Vec<float> and
// Vec<double> in CPU kernels, float and double in CUDA kernels. `derivative` takes what the list
// says: the result 'y' where that is enough (nothing else has to be kept for the backward pass),
// else the input 'x'. alpha and beta are the activation's own parameters (slope, scale, limits),
// with their defaults.
//
// A NaN comes out as a NaN: comparisons are written so that a NaN takes the branch that returns it.
#pragma once

#include <cstdint>

namespace brasa {

/// name, struct, what the derivative needs, default alpha, default beta
#define BRASA_ACTIVATIONS(X)             \
  X(relu, Relu, 'y', 0, 0)               \
  X(leaky_relu, LeakyRelu, 'y', 0.01, 0) \
  X(elu, Elu, 'y', 1, 0)                 \
  X(selu, Selu, 'y', 0, 0)               \
  X(celu, Celu, 'y', 1, 0)               \
  X(sigmoid, Sigmoid, 'y', 0, 0)         \
  X(tanh, Tanh, 'y', 0, 0)               \
  X(gelu, Gelu, 'x', 0, 0)               \
  X(gelu_tanh, GeluTanh, 'x', 0, 0)      \
  X(silu, Silu, 'x', 0, 0)               \
  X(mish, Mish, 'x', 0, 0)               \
  X(softplus, Softplus, 'x', 1, 20)      \
  X(hardtanh, Hardtanh, 'y', -1, 1)      \
  X(hardsigmoid, Hardsigmoid, 'y', 0, 0) \
  X(hardswish, Hardswish, 'x', 0, 0)     \
  X(step, Step, 'y', 0, 0)               \
  X(sign, Sign, 'y', 0, 0)

enum class ActivationKind : int32_t {
  none,
#define BRASA_ENUM(name, type, needs, alpha, beta) name,
  BRASA_ACTIVATIONS(BRASA_ENUM)
#undef BRASA_ENUM
      count
};

/// One activation with its parameters, as kernels receive it.
struct Activation {
  ActivationKind kind;
  double alpha, beta;
};

}  // namespace brasa

#if defined(BRASA_ISA) || defined(BRASA_FOR_CUDA)

#if defined(BRASA_ISA)
#include "core/vsmooth.h"
#define BRASA_ACTIVATION_FN static inline __attribute__((always_inline))
namespace brasa::cpu::BRASA_ISA {
#else
#include "core/vmath.cuh"
#define BRASA_ACTIVATION_FN static BRASA_DEVICE_FN
namespace brasa::cuda {
#endif

// Inside: V is the value type; `value<V>(c)` makes a constant of it.

struct Relu {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V, V) { return select(x <= V{}, V{}, x); }
  template <class V> BRASA_ACTIVATION_FN V derivative(V y, V, V) {
    return select(y <= V{}, V{}, value<V>(1));
  }
};

/// x > 0 ? x : alpha x. The derivative tells the sides apart by v: y where alpha >= 0, else x.
struct LeakyRelu {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V alpha, V) {
    return select(x <= V{}, alpha * x, x);
  }
  template <class V> BRASA_ACTIVATION_FN V derivative(V v, V alpha, V) {
    return select(v <= V{}, alpha, value<V>(1));
  }
};

/// x > 0 ? x : alpha (exp(x) - 1), alpha >= 0
struct Elu {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V alpha, V) {
    return select(x <= V{}, alpha * vexpm1(x), x);
  }
  template <class V> BRASA_ACTIVATION_FN V derivative(V y, V alpha, V) {
    return select(y <= V{}, y + alpha, value<V>(1));
  }
};

/// Klambauer et al. 2017: scale (x > 0 ? x : alpha (exp(x) - 1)) with the self-normalising
/// constants.
struct Selu {
  static constexpr double kScale = 1.0507009873554804934193349852946;
  static constexpr double kAlpha = 1.6732632423543772848170429916717;
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V, V) {
    return select(x <= V{}, value<V>(kScale * kAlpha) * vexpm1(x), value<V>(kScale) * x);
  }
  template <class V> BRASA_ACTIVATION_FN V derivative(V y, V, V) {
    return select(y <= V{}, y + value<V>(kScale * kAlpha), value<V>(kScale));
  }
};

/// x > 0 ? x : alpha (exp(x / alpha) - 1), alpha > 0
struct Celu {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V alpha, V) {
    return select(x <= V{}, alpha * vexpm1(x * (value<V>(1) / alpha)), x);
  }
  template <class V> BRASA_ACTIVATION_FN V derivative(V y, V alpha, V) {
    return select(y <= V{}, y * (value<V>(1) / alpha) + value<V>(1), value<V>(1));
  }
};

struct Sigmoid {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V, V) { return vsigmoid(x); }
  template <class V> BRASA_ACTIVATION_FN V derivative(V y, V, V) { return y * (value<V>(1) - y); }
};

struct Tanh {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V, V) { return vtanh(x); }
  template <class V> BRASA_ACTIVATION_FN V derivative(V y, V, V) { return value<V>(1) - y * y; }
};

/// x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016).
struct Gelu {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V, V) { return vgelu(x); }
  template <class V> BRASA_ACTIVATION_FN V derivative(V x, V, V) { return vgelu_slope(x); }
};

/// Its approximation x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTanh {
  static constexpr double kTwoSqrt2OverPi = 1.59576912160573071175;
  static constexpr double kCubic = 0.044715;
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V, V) {
    const V u = value<V>(kTwoSqrt2OverPi) * (x + value<V>(kCubic) * x * x * x);
    return select(x == -infinity<V>(), V{}, vx_sigmoid(x, u));
  }
  template <class V> BRASA_ACTIVATION_FN V derivative(V x, V, V) {
    const V u = value<V>(kTwoSqrt2OverPi) * (x + value<V>(kCubic) * x * x * x);
    const V s = vlogistic(u), slope = s * (value<V>(1) - s);
    const V du = value<V>(kTwoSqrt2OverPi) * (value<V>(1) + value<V>(3 * kCubic) * x * x);
    return s + select(slope == V{}, V{}, x * slope * du);
  }
};

/// x sigmoid(x), also called swish.
struct Silu {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V, V) { return vsilu(x); }
  template <class V> BRASA_ACTIVATION_FN V derivative(V x, V, V) { return vsilu_slope(x); }
};

/// x tanh(softplus(x)) (Misra 2019).
struct Mish {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V, V) { return vmish(x); }
  template <class V> BRASA_ACTIVATION_FN V derivative(V x, V, V) { return vmish_slope(x); }
};

/// log(1 + exp(alpha x)) / alpha; x itself where alpha x > beta (the threshold).
struct Softplus {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V alpha, V beta) {
    const V z = alpha * x;
    return select(z > beta, x, vsoftplus(z) * (value<V>(1) / alpha));
  }
  /// Not from the result: just below the threshold it is larger than just above.
  template <class V> BRASA_ACTIVATION_FN V derivative(V x, V alpha, V beta) {
    const V z = alpha * x;
    return select(z > beta, value<V>(1), vlogistic(z));
  }
};

/// x limited to [alpha, beta]: the piecewise linear function.
struct Hardtanh {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V alpha, V beta) {
    return select(x < alpha, alpha, select(x > beta, beta, x));
  }
  template <class V> BRASA_ACTIVATION_FN V derivative(V y, V alpha, V beta) {
    return select(y <= alpha, V{}, select(y >= beta, V{}, value<V>(1)));
  }
};

/// x / 6 + 1 / 2 limited to [0, 1]
struct Hardsigmoid {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V, V) {
    const V line = (x + value<V>(3)) * value<V>(1.0 / 6);
    return select(line < V{}, V{}, select(line > value<V>(1), value<V>(1), line));
  }
  template <class V> BRASA_ACTIVATION_FN V derivative(V y, V, V) {
    return select(y <= V{}, V{}, select(y >= value<V>(1), V{}, value<V>(1.0 / 6)));
  }
};

/// x hardsigmoid(x)
struct Hardswish {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V, V) {
    const V product = x * Hardsigmoid::forward(x, x, x);
    return select(x <= value<V>(-3), V{}, product);
  }
  template <class V> BRASA_ACTIVATION_FN V derivative(V x, V, V) {
    const V inner = x * value<V>(1.0 / 3) + value<V>(0.5);
    return select(x <= value<V>(-3), V{}, select(x >= value<V>(3), value<V>(1), inner));
  }
};

/// The unit step: x > 0 ? 1 : 0, NaN for NaN; its derivative is 0.
struct Step {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V, V) {
    return select(x <= V{}, V{}, select(x > V{}, value<V>(1), x));
  }
  template <class V> BRASA_ACTIVATION_FN V derivative(V, V, V) { return V{}; }
};

/// -1, 0 or 1; its derivative is 0.
struct Sign {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V, V) {
    return select(x > V{}, value<V>(1), select(x < V{}, value<V>(-1), x));
  }
  template <class V> BRASA_ACTIVATION_FN V derivative(V, V, V) { return V{}; }
};

struct Identity {
  template <class V> BRASA_ACTIVATION_FN V forward(V x, V, V) { return x; }
  template <class V> BRASA_ACTIVATION_FN V derivative(V, V, V) { return value<V>(1); }
};

/// Calls f.operator()<A>() with the struct of this kind.
template <class F> static inline void visit_activation(ActivationKind kind, const F& f) {
  switch (kind) {
    case ActivationKind::none:
    case ActivationKind::count:
      f.template operator()<Identity>();
      break;
#define BRASA_CASE(name, type, needs, alpha, beta) \
  case ActivationKind::name:                       \
    f.template operator()<type>();                 \
    break;
      BRASA_ACTIVATIONS(BRASA_CASE)
#undef BRASA_CASE
  }
}

#if defined(BRASA_ISA)
}  // namespace brasa::cpu::BRASA_ISA
#else
}  // namespace brasa::cuda
#endif

#endif
