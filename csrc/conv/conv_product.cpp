#include "conv/conv_product.h"

#include "conv/conv_stage.h"
#include "core/order.h"
#include "matmul/matmul.h"

namespace brasa::cpu::BRASA_ISA {

/// One tap of all channels, every one in x; strides of channels-last images alone.
static bool is_product(const ConvParams& p) {
  bool plain = p.taps() == 1 && p.groups == 1;
  for (int d = 0; d < 3; ++d) plain = plain && p.pad_begin[d] == 0 && p.pad_end[d] == 0;
  return plain;
}

static bool has_stride(const ConvParams& p) {
  return p.out[0] != p.in[0] || p.out[1] != p.in[1] || p.out[2] != p.in[2];
}

static bool is_product_of(int64_t depth, int64_t columns) {
  return depth >= order::kConvProductDepth && columns >= order::kConvProductColumns;
}

static bool has_many_weights(const ConvParams& p) {
  return p.in_channels * p.out_channels >= order::kConvProductWeights;
}

bool may_be_product(const ConvParams& p) {
  return p.taps() == 1 && p.groups == 1 && is_product_of(p.in_channels, p.out_channels);
}
bool is_product_forward(const ConvParams& p) {
  return is_product(p) && may_be_product(p) &&
         (p.out_pixels() <= order::kConvProductImage || has_many_weights(p));
}
bool is_product_input(const ConvParams& p) {
  return is_product(p) && is_product_of(p.out_channels, p.in_channels);
}
bool is_product_weight(const ConvParams& p) {
  const int64_t pixels = p.batch * p.out_pixels();
  return is_product(p) && p.in_channels >= order::kConvProductColumns &&
         p.out_channels >= order::kConvProductColumns &&
         pixels <= (has_many_weights(p) ? order::kConvProductLongSum : order::kConvProductSum);
}

/// A (m, k) and B (k, n) with these steps between rows of A, k in A, k in B, columns of B.
static MatmulParams product_of(int64_t m, int64_t n, int64_t k, int64_t a_row, int64_t a_depth,
                               int64_t b_depth, int64_t b_column) {
  MatmulParams params{};
  params.m = m, params.n = n, params.k = k;
  params.a_row = a_row, params.a_depth = a_depth;
  params.b_depth = b_depth, params.b_column = b_column;
  params.batch.count = params.sum.count = 1;
  return params;
}

static MatmulParams forward_product(const ConvParams& p) {
  const int64_t channels = p.in_channels;
  MatmulParams product =
      product_of(p.batch * p.out_pixels(), p.out_channels, channels, channels, 1, 1, channels);
  product.packed_b = p.packed_w;
  return product;
}
static MatmulParams input_product(const ConvParams& p) {
  const int64_t outputs = p.out_channels;
  return product_of(p.batch * p.out_pixels(), p.in_channels, outputs, outputs, 1, p.in_channels, 1);
}
static MatmulParams weight_product(const ConvParams& p) {
  const int64_t channels = p.in_channels, outputs = p.out_channels;
  return product_of(outputs, channels, p.batch * p.out_pixels(), 1, outputs, channels, 1);
}

/// Calls f(row, in) for every row of y: `in` is the pixel of x under its first one, counted over
/// images.
template <class F> static void for_rows(Context ctx, const ConvParams& p, const F& f) {
  parallel_for(ctx, p.batch * p.out[0] * p.out[1], row_grain(p.out[2] * p.in_channels),
               [&](int64_t begin, int64_t end) {
                 for (int64_t row = begin; row < end; ++row) {
                   const int64_t n = row / (p.out[0] * p.out[1]);
                   const int64_t d = row / p.out[1] % p.out[0] * p.stride[0];
                   f(row, ((n * p.in[0] + d) * p.in[1] + row % p.out[1] * p.stride[1]) * p.in[2]);
                 }
               });
}

/// The pixels of x that y is made of, channels-last and one after another: x itself or a copy.
template <class T>
static const T* dense_pixels(Context ctx, const ConvParams& p, const T* x, Arena& arena) {
  const int64_t channels = p.in_channels;
  if (!p.x_channels_last) {
    T* converted = arena.take<T>(p.batch * p.in_pixels() * channels);
    if (x) convert_images(ctx, x, converted, p.batch, channels, p.in_pixels(), true);
    x = converted;
  }
  if (!has_stride(p)) return x;
  T* dense = arena.take<T>(p.batch * p.out_pixels() * channels);
  if (x)
    for_rows(ctx, p, [&](int64_t row, int64_t in) {
      for (int64_t i = 0; i < p.out[2]; ++i)
        __builtin_memcpy(dense + (row * p.out[2] + i) * channels,
                         x + (in + i * p.stride[2]) * channels, size_t(channels) * sizeof(T));
    });
  return dense;
}

template <class T>
static void multiply(Context ctx, const MatmulParams& params, const T* a, const T* b, T* y,
                     const Epilogue<T>& epilogue, void* workspace) {
  ctx.workspace = workspace;
  ctx.workspace_bytes = matmul_workspace<T>(params, ctx);
  matmul(ctx, params, a, b, y, epilogue);
}

/// The workspace of x's pixels and a product.
template <class T>
static size_t workspace_of(const ConvParams& p, const MatmulParams& product, int threads) {
  Arena arena(nullptr);
  dense_pixels<T>(Context{}, p, nullptr, arena);
  return arena.used() + matmul_workspace<T>(product, {.threads = threads});
}

template <class T>
void product_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                     const Epilogue<T>& epilogue) {
  Arena arena(ctx.workspace);
  const T* pixels = dense_pixels(ctx, p, x, arena);
  multiply(ctx, forward_product(p), pixels, w, y, epilogue, arena.rest());
}

template <class T> int64_t packed_product_elements(const ConvParams& p) {
  return matmul_packed_elements<T>(p.in_channels, p.out_channels);
}

template <class T> void pack_product(Context ctx, const T* w, T* packed, const ConvParams& p) {
  matmul_pack(ctx, w, 1, p.in_channels, p.in_channels, p.out_channels, packed);
}

template <class T> size_t product_forward_workspace(const ConvParams& p, int threads) {
  return workspace_of<T>(p, forward_product(p), threads);
}

/// dx, channels-last, from those of its pixels that y was made of; zeros between them.
template <class T>
static void spread_pixels(Context ctx, const ConvParams& p, const T* dense, T* dx) {
  const int64_t channels = p.in_channels, row_elements = p.in[2] * channels;
  parallel_for(ctx, p.batch * p.in[0] * p.in[1], row_grain(row_elements),
               [&](int64_t begin, int64_t end) {
                 for (int64_t row = begin; row < end; ++row)
                   zero_fill(dx + row * row_elements, row_elements);
               });
  for_rows(ctx, p, [&](int64_t row, int64_t in) {
    for (int64_t i = 0; i < p.out[2]; ++i)
      __builtin_memcpy(dx + (in + i * p.stride[2]) * channels,
                       dense + (row * p.out[2] + i) * channels, size_t(channels) * sizeof(T));
  });
}

template <class T>
void product_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& p,
                            void* workspace) {
  Arena arena(workspace);
  T* dense = has_stride(p) ? arena.take<T>(p.batch * p.out_pixels() * p.in_channels) : dx;
  multiply(ctx, input_product(p), dy, w, dense, Epilogue<T>{}, arena.rest());
  if (dense != dx) spread_pixels(ctx, p, dense, dx);
}

template <class T> size_t product_input_workspace(const ConvParams& p, int threads) {
  Arena arena(nullptr);
  if (has_stride(p)) arena.take<T>(p.batch * p.out_pixels() * p.in_channels);
  return arena.used() + matmul_workspace<T>(input_product(p), {.threads = threads});
}

template <class T>
void product_backward_weight(Context ctx, const T* dy, const T* x, T* dw, const ConvParams& p,
                             void* workspace) {
  Arena arena(workspace);
  const T* pixels = dense_pixels(ctx, p, x, arena);
  multiply(ctx, weight_product(p), dy, pixels, dw, Epilogue<T>{}, arena.rest());
}

template <class T> size_t product_weight_workspace(const ConvParams& p, int threads) {
  return workspace_of<T>(p, weight_product(p), threads);
}

BRASA_INSTANTIATE(packed_product_elements, float, double)
BRASA_INSTANTIATE(pack_product, float, double)
BRASA_INSTANTIATE(product_forward, float, double)
BRASA_INSTANTIATE(product_forward_workspace, float, double)
BRASA_INSTANTIATE(product_backward_input, float, double)
BRASA_INSTANTIATE(product_input_workspace, float, double)
BRASA_INSTANTIATE(product_backward_weight, float, double)
BRASA_INSTANTIATE(product_weight_workspace, float, double)

}  // namespace brasa::cpu::BRASA_ISA
