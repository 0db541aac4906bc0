#include "activation/activation.h"

#include "core/elementwise.h"
#include "core/epilogue.h"

namespace brasa::cpu::BRASA_ISA {

/// `map`, or `map_light` for the activations that are.
template <class A, class T, class F, class... X>
static inline void map_activation(Context ctx, int64_t n, const F& f, T* y, const X*... x) {
  if constexpr (__is_base_of(Light, A))
    map_light(ctx, n, f, y, x...);
  else
    map(ctx, n, f, y, x...);
}

template <class T>
void activation_forward(Context ctx, const T* x, T* y, int64_t n, Activation activation) {
  const Vec<T> alpha = broadcast(T(activation.alpha)), beta = broadcast(T(activation.beta));
  visit_activation(activation.kind, [&]<class A>() {
    map_activation<A>(ctx, n, [=](Vec<T> v) { return A::forward(v, alpha, beta); }, y, x);
  });
}

template <class T>
void activation_backward(Context ctx, const T* dy, const T* v, T* dx, int64_t n,
                         Activation activation) {
  const Vec<T> alpha = broadcast(T(activation.alpha)), beta = broadcast(T(activation.beta));
  visit_activation(activation.kind, [&]<class A>() {
    const auto slope = [=](Vec<T> g, Vec<T> u) { return g * A::derivative(u, alpha, beta); };
    map_activation<A>(ctx, n, slope, dx, dy, v);
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
