#include "activation/activation.h"
#include "core/device.cuh"
#include "core/elementwise.cuh"
#include "core/ptx_convert.cuh"

namespace brasa::cuda {

constexpr int kThreads = 256;
/// Blocks that a multiprocessor shall hold, or 0: as the compiler sees fit, which spilled here.
template <class T> inline constexpr int kBlocks = sizeof(T) == 8 || simt::kBlackwell ? 4 : 0;

// A kernel for each activation was 144 of them. The four that take the time of many instructions
// and are in most networks have their own; those that are a few instructions have one, as have the
// others, and float64, for all of them: a thread looks up its own once. Registers are those of the
// largest, which is why relu does not share a kernel with mish. Those of many instructions that are
// not common take half a pack at a time: each of a pack's elements is a copy of their code.

template <ActivationKind kKind> struct Only {
  static constexpr int kOfPack = 1;  ///< packs are taken in so many parts; 0: elements, one by one
  static BRASA_HOST_DEVICE_FN constexpr bool has(ActivationKind kind) { return kind == kKind; }
};
/// Smooth ones that are rare.
struct Rare {
  static constexpr int kOfPack = 2;
  static BRASA_HOST_DEVICE_FN constexpr bool has(ActivationKind kind) {
    using enum ActivationKind;
    return kind == elu || kind == selu || kind == celu || kind == gelu_tanh || kind == mish ||
           kind == softplus;
  }
};
struct Simple {
  static constexpr int kOfPack = 1;
  static BRASA_HOST_DEVICE_FN constexpr bool has(ActivationKind kind) {
    using enum ActivationKind;
    return !Rare::has(kind) && kind != sigmoid && kind != tanh && kind != gelu && kind != silu;
  }
};
struct All {
  static constexpr int kOfPack = 0;
  static BRASA_HOST_DEVICE_FN constexpr bool has(ActivationKind) { return true; }
};

template <class T, class Set>
constexpr int kLanesAtOnce = simt::kPackLanes<T> / (Set::kOfPack > 0 ? Set::kOfPack : 1);

/// Calls f.operator()<A>() with the struct of this kind, one that Set has.
template <class Set, class F> BRASA_DEVICE_FN void visit(ActivationKind kind, const F& f) {
  switch (kind) {
#define BRASA_CASE(name, type, needs, alpha, beta)                                      \
  case ActivationKind::name:                                                            \
    if constexpr (Set::has(ActivationKind::name)) return f.template operator()<type>(); \
    break;
    BRASA_ACTIVATIONS(BRASA_CASE)
#undef BRASA_CASE
    default:
      if constexpr (Set::has(ActivationKind::none)) f.template operator()<Identity>();
  }
}

template <class T, class Set>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    activation_forward_kernel(const T* x, T* y, int64_t n, bool packs, Activation activation) {
  const Wide<T> alpha = Wide<T>(activation.alpha), beta = Wide<T>(activation.beta);
  visit<Set>(activation.kind, [&]<class A>() {
    simt::map_packs<kLanesAtOnce<T, Set>>(x, y, n, Set::kOfPack > 0 && packs,
                                          [&](Wide<T> v) { return A::forward(v, alpha, beta); });
  });
}

template <class T, class Set>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    activation_backward_kernel(const T* dy, const T* v, T* dx, int64_t n, bool packs,
                               Activation activation) {
  const Wide<T> alpha = Wide<T>(activation.alpha), beta = Wide<T>(activation.beta);
  visit<Set>(activation.kind, [&]<class A>() {
    simt::for_packs<kLanesAtOnce<T, Set>>(n, Set::kOfPack > 0 && packs, [&]<int kLanes>(int64_t i) {
      const auto value = simt::load_wide<kLanes>(v + i);
      auto g = simt::load_wide<kLanes>(dy + i);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) g[k] *= A::derivative(value[k], alpha, beta);
      simt::store_wide(dx + i, g);
    });
  });
}

// --------------------------------------------------------------------------------------- launchers

/// Calls f.operator()<Set>() with the activations that share a kernel with this one.
template <class T, class F> static void with_set(ActivationKind kind, const F& f) {
  using enum ActivationKind;
  if constexpr (sizeof(T) == 8) {
    f.template operator()<All>();
  } else if (Rare::has(kind)) {
    f.template operator()<Rare>();
  } else if (Simple::has(kind)) {
    f.template operator()<Simple>();
  } else {
    kind == sigmoid ? f.template operator()<Only<sigmoid>>()
    : kind == tanh  ? f.template operator()<Only<tanh>>()
    : kind == gelu  ? f.template operator()<Only<gelu>>()
                    : f.template operator()<Only<silu>>();
  }
}

static simt::LaunchConfig over(Context ctx, int64_t n) {
  return {.grid = simt::blocks_for(n, kThreads),
          .block = dim3(kThreads),
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}

template <class T>
void activation_forward(Context ctx, const T* x, T* y, int64_t n, Activation activation) {
  if (n == 0) return;
  const bool packs = simt::pack_aligned(x) && simt::pack_aligned(y);
  with_set<T>(activation.kind, [&]<class Set>() {
    simt::launch(over(ctx, n), activation_forward_kernel<T, Set>, x, y, n, packs, activation);
  });
}

template <class T>
void activation_backward(Context ctx, const T* dy, const T* v, T* dx, int64_t n,
                         Activation activation) {
  if (n == 0) return;
  const bool packs = simt::pack_aligned(dy) && simt::pack_aligned(v) && simt::pack_aligned(dx);
  with_set<T>(activation.kind, [&]<class Set>() {
    simt::launch(over(ctx, n), activation_backward_kernel<T, Set>, dy, v, dx, n, packs, activation);
  });
}

BRASA_INSTANTIATE(activation_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(activation_backward, float, double, float16, bfloat16)

}  // namespace brasa::cuda
