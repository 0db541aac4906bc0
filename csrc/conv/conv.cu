// Which kernels compute a convolution on CUDA.
#include "conv/conv_depthwise.cuh"
#include "conv/conv_paths.cuh"
#include "conv/conv_tensor.cuh"
#include "matmul/matmul.h"

namespace brasa::cuda {

/// (m, k) by (k, n), strides of the second operand given; the first is C-contiguous.
static MatmulParams product(const ConvParams& p, int64_t n, int64_t k, int64_t b_depth,
                            int64_t b_column) {
  MatmulParams product{.m = p.batch * p.out_pixels(), .n = n, .k = k};
  product.a_row = product.m == 1 ? 1 : k, product.a_depth = 1;
  product.b_depth = k == 1 ? 1 : b_depth, product.b_column = n == 1 ? 1 : b_column;
  product.batch.count = product.sum.count = 1;
  product.aligned = p.aligned;
  return product;
}
static MatmulParams forward_product(const ConvParams& p) {
  return product(p, p.out_channels, p.in_channels, 1, p.in_channels);
}
static MatmulParams input_product(const ConvParams& p) {
  return product(p, p.in_channels, p.out_channels, p.in_channels, 1);
}
static Context context_of(const ConvParams& p) {
  return {.math_mode = p.math_mode};
}

template <class T>
void conv_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                  const Epilogue<T>& epilogue) {
  check_extents(p);
  if (is_product(p)) return matmul(ctx, forward_product(p), x, w, y, epilogue);
  if (p.is_depthwise()) return depthwise_forward(ctx, x, w, y, p, epilogue);
  if constexpr (sizeof(T) <= 4) {
    if (on_tensor_cores<T>(p)) return tensor_forward(ctx, x, w, y, p, epilogue);
  }
  gather_forward(ctx, x, w, y, p, epilogue);
}

template <class T> size_t conv_forward_workspace(const ConvParams& p, int) {
  if (is_product(p)) return matmul_workspace<T>(forward_product(p), context_of(p));
  if (p.is_depthwise()) return depthwise_forward_workspace<T>(p);
  if constexpr (sizeof(T) <= 4) {
    if (on_tensor_cores<T>(p)) return tensor_forward_workspace<T>(p);
  }
  return gather_forward_workspace<T>(p);
}

template <class T>
void conv_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& p) {
  check_extents(p);
  if (is_product(p)) return matmul(ctx, input_product(p), dy, w, dx, Epilogue<T>{});
  if (p.is_depthwise()) return depthwise_backward_input(ctx, dy, w, dx, p);
  if constexpr (sizeof(T) <= 4) {
    if (on_tensor_cores<T>(p)) return tensor_backward_input(ctx, dy, w, dx, p);
  }
  gather_backward_input(ctx, dy, w, dx, p);
}

template <class T> size_t conv_backward_input_workspace(const ConvParams& p, int) {
  if (is_product(p)) return matmul_workspace<T>(input_product(p), context_of(p));
  if (p.is_depthwise()) return depthwise_input_workspace<T>(p);
  if constexpr (sizeof(T) <= 4) {
    if (on_tensor_cores<T>(p)) return tensor_input_workspace<T>(p);
  }
  return gather_input_workspace<T>(p);
}

BRASA_INSTANTIATE(conv_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(conv_forward_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(conv_backward_input, float, double, float16, bfloat16)
BRASA_INSTANTIATE(conv_backward_input_workspace, float, double, float16, bfloat16)

}  // namespace brasa::cuda
