#include "bind/bind.h"
#include "matmul/matmul.h"
#if !defined(BRASA_FOR_CUDA)
#include <cstring>

#include "core/isa.h"
#endif

namespace brasa {
namespace {

/// Extent of dimension `d` of the result's batch in `x`, whose batch is aligned to its end; 1 where
/// x has none. With its stride: 0 where x is repeated.
struct BatchExtent {
  int64_t extent, stride;
};
BatchExtent batch_extent(const ArrayView& x, int d, int batch_rank) {
  const int i = d - (batch_rank - (x.rank - 2));
  if (i < 0 || x.shape[i] == 1) return {1, 0};
  return {x.shape[i], x.strides[i]};
}

void append(BatchDims& dims, int64_t extent, int64_t a_stride, int64_t b_stride) {
  BRASA_REQUIRE(dims.rank < kMaxBatchRank, "too many batch dimensions");
  dims.shape[dims.rank] = extent;
  dims.a_strides[dims.rank] = a_stride;
  dims.b_strides[dims.rank++] = b_stride;
  dims.count = checked_multiply(dims.count, extent);
}

/// Sorts the batch dimensions into those of the result and those it sums over (extent 1 there).
void read_batch(const ArrayView& a, const ArrayView& b, const ArrayView& y, MatmulParams& p) {
  const int rank = std::max(a.rank, b.rank) - 2;
  BRASA_REQUIRE(y.rank - 2 <= rank, "the result has too many dimensions");
  p.batch.count = p.sum.count = 1;
  for (int d = 0; d < rank; ++d) {
    const BatchExtent in_a = batch_extent(a, d, rank), in_b = batch_extent(b, d, rank);
    const int64_t extent = in_a.extent == 1 ? in_b.extent : in_a.extent;
    BRASA_REQUIRE(in_a.extent == extent || in_a.extent == 1, "batch dimensions differ");
    BRASA_REQUIRE(in_b.extent == extent || in_b.extent == 1, "batch dimensions differ");
    const int in_y = d - (rank - (y.rank - 2));
    const int64_t result = in_y < 0 ? 1 : y.shape[in_y];
    BRASA_REQUIRE(result == extent || result == 1, "unexpected shape of the result");
    if (extent != 1) append(result == extent ? p.batch : p.sum, extent, in_a.stride, in_b.stride);
  }
}

/// Rows of a batch that share B are rows of one product: (N, T, k) x (k, n) is (N T, k) x (k, n).
void merge_batch_into_rows(MatmulParams& p) {
  while (p.batch.rank > 0) {
    const int d = p.batch.rank - 1;
    const bool shares_b = p.batch.b_strides[d] == 0;
    if (!shares_b || (p.m != 1 && p.batch.a_strides[d] != p.m * p.a_row)) return;
    if (p.m == 1) p.a_row = p.batch.a_strides[d];
    p.m *= p.batch.shape[d];
    --p.batch.rank;
    p.batch.count = 1;
    for (int i = 0; i < p.batch.rank; ++i) p.batch.count *= p.batch.shape[i];
  }
}

/// A column of results is computed as a row: its elements then lie in the lanes of vectors.
void turn_column_into_row(MatmulParams& p, ArrayView& a, ArrayView& b) {
  std::swap(a.data, b.data);
  std::swap(p.m, p.n);
  std::swap(p.a_row, p.b_column);
  std::swap(p.a_depth, p.b_depth);
  std::swap(p.batch.a_strides, p.batch.b_strides);
  std::swap(p.sum.a_strides, p.sum.b_strides);
}

#if defined(BRASA_FOR_CUDA)

bool read_packed(ArrayView&, const ArrayView&) {
  return false;
}

#else

/// What a packed B was packed for: the cache line in front of its panels.
struct PackedHeader {
  int64_t isa, k, n;
};
constexpr int64_t kPackedHeader = 64;

int64_t packed_size(const ArrayView& like, int64_t k, int64_t n) {
  checked_multiply(checked_multiply(k, n), 1024);  // room for the columns of a narrow panel
  int64_t size = 0;
  visit<float, double>(like.dtype, [&]<class T>() {
    size = kPackedHeader / int64_t(sizeof(T)) + cpu::matmul_packed_elements<T>(k, n);
  });
  return size;
}

/// A vector in place of B is a packed one. Turns it into the matrix (k, n) that it stands for.
bool read_packed(ArrayView& b, const ArrayView& y) {
  if (b.rank != 1 || y.rank < 2) return false;
  require_c_order(b);
  const int64_t item = b.dtype == DType::float32 ? 4 : b.dtype == DType::float64 ? 8 : 0;
  BRASA_REQUIRE(b.size * item >= kPackedHeader, "no packed operand");
  PackedHeader header;
  std::memcpy(&header, b.data, sizeof(header));
  BRASA_REQUIRE(header.isa == cpu::isa_index(), "b was packed for another instruction set");
  BRASA_REQUIRE(header.k >= 0 && header.n == y.shape[y.rank - 1], "unexpected shape of the result");
  BRASA_REQUIRE(b.size == packed_size(b, header.k, header.n), "no packed operand");
  b.data = static_cast<char*>(b.data) + kPackedHeader;
  b.rank = 2;
  b.shape[0] = header.k, b.shape[1] = header.n;
  b.strides[0] = b.strides[1] = 1;
  return true;
}

#endif

bool is_half(DType dtype) {
  return dtype == DType::float16 || dtype == DType::bfloat16;
}

bool is_aligned(const ArrayView& x) {
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

MatmulParams read_params(ArrayView& a, ArrayView& b, const ArrayView& y, bool transpose_a,
                         bool transpose_b, bool has_bias) {
  const bool packed_b = read_packed(b, y);
  BRASA_REQUIRE(!packed_b || !transpose_b, "a packed operand is transposed already");
  BRASA_REQUIRE(a.rank >= 2 && b.rank >= 2 && y.rank >= 2, "matrices needed");
  require_same_dtype(a, b);
  require_same_dtype(a, y);
  require_c_order(y);
  const int a_row = a.rank - 2 + transpose_a, a_depth = a.rank - 1 - transpose_a;
  const int b_depth = b.rank - 2 + transpose_b, b_column = b.rank - 1 - transpose_b;
  MatmulParams p{.m = a.shape[a_row], .n = b.shape[b_column], .k = a.shape[a_depth]};
  BRASA_REQUIRE(b.shape[b_depth] == p.k, "inner dimensions differ");
  BRASA_REQUIRE(y.shape[y.rank - 2] == p.m && y.shape[y.rank - 1] == p.n,
                "unexpected shape of the result");
  // The stride of a dimension of extent 1 says nothing: 1 leads to the shortest paths.
  p.a_row = p.m == 1 ? 1 : a.strides[a_row];
  p.a_depth = p.k == 1 ? 1 : a.strides[a_depth];
  p.b_depth = p.k == 1 ? 1 : b.strides[b_depth];
  p.b_column = p.n == 1 ? 1 : b.strides[b_column];
  read_batch(a, b, y, p);
  if (p.sum.count == 0) {
    p.k = 0;
    p.sum = {.count = 1};
  }
  merge_batch_into_rows(p);
  p.packed_b = packed_b;
  p.aligned = is_aligned(a) && is_aligned(b);
  if (p.n == 1 && !has_bias && !packed_b) turn_column_into_row(p, a, b);
  return p;
}

/// Multiply-adds, if they and the bytes of every operand can be counted in 64 bits.
int64_t checked_work(const MatmulParams& p) {
  const int64_t result = checked_multiply(checked_multiply(p.m, p.n), p.batch.count);
  const int64_t products = checked_multiply(result, checked_multiply(p.k, p.sum.count));
  checked_multiply(products, 64);
  return products;
}

void bind_forward(py::module_& m) {
  m.def(
      "matmul",
      [](In a, In b, OptionalIn bias, OptionalIn residual, Out y, OptionalOut saved,
         bool transpose_a, bool transpose_b, Activation activation) {
        require_apart(y, a);
        require_apart(y, b);
        const MatmulParams p = read_params(a, b, y, transpose_a, transpose_b, bool(bias));
        const int64_t work = checked_work(p);
        const bool wide_bias = bias && bias.dtype != a.dtype;
        if (bias) {
          BRASA_REQUIRE(!wide_bias || (is_half(a.dtype) && bias.dtype == DType::float32),
                        "unexpected dtype of the bias");
          require_shape(bias, y.shape[y.rank - 1]);
          require_c_order(bias);
          require_apart(y, bias);
        }
        for (const ArrayView& x : {ArrayView(residual), ArrayView(saved)}) {
          if (is_none(x)) continue;
          require_same_dtype(a, x);
          require_same_shape(y, x);
          require_c_order(x);
          require_apart(y, x);
        }
        Context ctx = make_context(a);
        visit_floating(a.dtype, [&]<class T>() {
          const Workspace scratch(ctx, device::matmul_workspace<T>(p, ctx));
          Epilogue<T> epilogue{bias.as<const T>(), residual.as<const T>(), saved.as<T>(),
                               activation};
          if (wide_bias) epilogue.bias = nullptr, epilogue.wide_bias = bias.as<const float>();
          const ReleaseGil gil(work / 16);
          device::matmul<T>(ctx, p, a.as<const T>(), b.as<const T>(), y.as<T>(), epilogue);
        });
      },
      "a"_a, "b"_a, "bias"_a, "residual"_a, "y"_a, "saved"_a, "transpose_a"_a, "transpose_b"_a,
      "activation"_a);
}

#if !defined(BRASA_FOR_CUDA)

void bind_packing(py::module_& m) {
  m.def(
      "_matmul_packed_size",
      [](In b, bool transpose_b) {
        require_rank(b, 2);
        return packed_size(b, b.shape[transpose_b], b.shape[!transpose_b]);
      },
      "b"_a, "transpose_b"_a);
  m.def(
      "_matmul_pack",
      [](In b, Out packed, bool transpose_b) {
        require_rank(b, 2);
        require_same_dtype(b, packed);
        require_c_order(packed);
        const int64_t k = b.shape[transpose_b], n = b.shape[!transpose_b];
        require_shape(packed, packed_size(b, k, n));
        const PackedHeader header{cpu::isa_index(), k, n};
        std::memcpy(packed.data, &header, sizeof(header));
        const Context ctx = make_context(b);
        const ReleaseGil gil(b.size);
        visit<float, double>(b.dtype, [&]<class T>() {
          cpu::matmul_pack<T>(ctx, b.as<const T>(), b.strides[transpose_b], b.strides[!transpose_b],
                              k, n, packed.as<T>() + kPackedHeader / int64_t(sizeof(T)));
        });
      },
      "b"_a, "packed"_a, "transpose_b"_a);
}

#endif

}  // namespace

void bind_matmul(py::module_& m) {
  bind_forward(m);
#if !defined(BRASA_FOR_CUDA)
  bind_packing(m);
#endif
  m.def(
      "column_sums",
      [](In x, Out y) {
        require_rank(x, 2);
        require_c_order(x);
        const bool wide = is_half(x.dtype) && y.dtype == DType::float32;
        if (!wide) require_same_dtype(x, y);
        require_shape(y, x.shape[1]);
        require_c_order(y);
        const Context ctx = make_context(x);
        const ReleaseGil gil(x.size);
#if defined(BRASA_FOR_CUDA)
        if (wide) {
          return visit<float16, bfloat16>(x.dtype, [&]<class T>() {
            device::wide_column_sums<T>(ctx, x.as<const T>(), y.as<float>(), x.shape[0],
                                        x.shape[1]);
          });
        }
#endif
        visit_floating(x.dtype, [&]<class T>() {
          device::column_sums<T>(ctx, x.as<const T>(), y.as<T>(), x.shape[0], x.shape[1]);
        });
      },
      "x"_a, "y"_a);
}

}  // namespace brasa
