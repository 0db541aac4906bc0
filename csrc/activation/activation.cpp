#include "activation/activation.h"

#include "core/elementwise.h"
#include "core/epilogue.h"

namespace brasa::cpu::BRASA_ISA {

/// Whether softplus has its default parameters, or a higher threshold: multiplying by 1 is then all
/// that its general form adds, as the float32 result is x from 17 on.
template <class T> static bool is_plain_softplus(Activation activation) {
  return sizeof(T) == 4 && activation.kind == ActivationKind::softplus && activation.alpha == 1 &&
         activation.beta >= 17;
}

template <class T>
void activation_forward(Context ctx, const T* x, T* y, int64_t n, Activation activation) {
  const Vec<T> alpha = broadcast(T(activation.alpha)), beta = broadcast(T(activation.beta));
  if (is_plain_softplus<T>(activation))
    return map_large(ctx, n, [](Vec<T> v) { return vsoftplus(v); }, y, x);
  visit_activation(activation.kind, [&]<class A>() {
    map_large(ctx, n, [=](Vec<T> v) { return A::forward(v, alpha, beta); }, y, x);
  });
}

template <class T>
void activation_backward(Context ctx, const T* dy, const T* v, T* dx, int64_t n,
                         Activation activation) {
  const Vec<T> alpha = broadcast(T(activation.alpha)), beta = broadcast(T(activation.beta));
  visit_activation(activation.kind, [&]<class A>() {
    const auto slope = [=](Vec<T> g, Vec<T> u) { return g * A::derivative(u, alpha, beta); };
    map_large(ctx, n, slope, dx, dy, v);
  });
}

template <class T> RowActivation<T> row_activation(ActivationKind kind) {
  RowActivation<T> chosen = nullptr;
  visit_activation(kind, [&]<class A>() {
    chosen = [](const T* x, T* y, int64_t n, T alpha, T beta) {
      const Vec<T> a = broadcast(alpha), b = broadcast(beta);
      map_range(0, n, [=](Vec<T> v) { return A::forward(v, a, b); }, y, x);
    };
  });
  return chosen;
}

BRASA_INSTANTIATE(activation_forward, float, double)
BRASA_INSTANTIATE(activation_backward, float, double)
BRASA_INSTANTIATE(row_activation, float, double)

}  // namespace brasa::cpu::BRASA_ISA
