#include "attention/attention.h"
#include "bind/bind.h"

namespace brasa {
namespace {

/// Strides of an array (batch..., rows, columns) whose rows are contiguous; `batch` is that of q.
AttentionStrides strides_of(const ArrayView& x, const ArrayView& q, int64_t rows, int64_t columns) {
  BRASA_REQUIRE(x.rank == q.rank, "ranks differ");
  const int rank = x.rank - 2;
  for (int d = 0; d < rank; ++d)
    BRASA_REQUIRE(x.shape[d] == q.shape[d], "batch dimensions differ, got " + shape_text(x));
  BRASA_REQUIRE(x.shape[rank] == rows && x.shape[rank + 1] == columns,
                "unexpected shape " + shape_text(x));
  BRASA_REQUIRE(columns <= 1 || x.size == 0 || x.strides[rank + 1] == 1, "contiguous rows needed");
  AttentionStrides s{.row = x.strides[rank]};
  for (int d = 0; d < rank; ++d) s.batch[d] = x.strides[d];
  return s;
}

/// The same of an array that is written: no two of its elements may share memory.
AttentionStrides output_strides(const ArrayView& x, const ArrayView& q, int64_t rows,
                                int64_t columns) {
  const AttentionStrides strides = strides_of(x, q, rows, columns);
  int64_t span = 1;
  for (int d = 0; d < x.rank && x.size; ++d)
    span = checked_add(span, checked_multiply(x.shape[d] - 1, std::abs(x.strides[d])));
  BRASA_REQUIRE(x.size == 0 || span == x.size, "a dense output is needed");
  return strides;
}

AttentionParams read_params(const In& q, const In& k, const In& v, const ArrayView& y, bool causal,
                            double scale, double dropout, Word seed, Word offset) {
  const int rank = q.rank - 2;
  BRASA_REQUIRE(rank >= 0 && rank <= kMaxAttentionBatch, "2 to 8 dimensions needed");
  BRASA_REQUIRE(k.rank == q.rank && v.rank == q.rank, "ranks differ");
  BRASA_REQUIRE(dropout >= 0 && dropout <= 1, "dropout is no probability");
  for (const ArrayView& x : {ArrayView(k), ArrayView(v), y}) require_same_dtype(q, x);
  AttentionParams p{.rank = rank, .count = 1};
  for (int d = 0; d < rank; ++d) p.count = checked_multiply(p.count, p.shape[d] = q.shape[d]);
  p.l = q.shape[rank], p.e = q.shape[rank + 1];
  p.s = k.shape[rank], p.ev = v.shape[rank + 1];
  p.q = strides_of(q, q, p.l, p.e);
  p.k = strides_of(k, q, p.s, p.e);
  p.v = strides_of(v, q, p.s, p.ev);
  p.causal = causal, p.scale = scale, p.dropout = dropout, p.seed = seed, p.offset = offset;
  // Bytes of scratch, and operations, can be counted.
  checked_multiply(checked_add(checked_add(p.e, p.ev), 64), 64 * 64);
  checked_multiply(checked_multiply(checked_multiply(p.count, p.l), p.s),
                   checked_multiply(checked_add(p.e, p.ev), 16));
  return p;
}

/// What numbers beside arrays of this dtype are: the mask's, and the sums that are saved.
DType wide_dtype(DType dtype) {
  return dtype == DType::float64 ? DType::float64 : DType::float32;
}

/// Bytes or elements of T, of any strides.
template <class T>
AttentionMask<T> read_mask(const OptionalIn& mask, const ArrayView& q, const AttentionParams& p) {
  AttentionMask<T> m{};
  if (!mask) return m;
  const int rank = q.rank - 2;
  BRASA_REQUIRE(mask.dtype == DType::uint8 || mask.dtype == wide_dtype(q.dtype),
                "unexpected dtype of the mask");
  BRASA_REQUIRE(mask.rank == q.rank, "ranks differ");
  for (int d = 0; d < rank; ++d) {
    BRASA_REQUIRE(mask.shape[d] == q.shape[d], "batch dimensions of the mask differ");
    m.strides.batch[d] = mask.strides[d];
  }
  BRASA_REQUIRE(mask.shape[rank] == p.l && mask.shape[rank + 1] == p.s,
                "unexpected shape " + shape_text(mask));
  m.strides.row = mask.strides[rank];
  m.column = mask.strides[rank + 1];
  if (mask.dtype == DType::uint8)
    m.allowed = mask.as<const uint8_t>();
  else
    m.added = mask.as<const T>();
  return m;
}

void require_log_sum(const ArrayView& log_sum, const ArrayView& q) {
  BRASA_REQUIRE(log_sum.dtype == wide_dtype(q.dtype), "unexpected dtype of the sums");
  require_c_order(log_sum);
  require_rank(log_sum, q.rank - 1);
  for (int d = 0; d < log_sum.rank; ++d)
    BRASA_REQUIRE(log_sum.shape[d] == q.shape[d], "unexpected shape " + shape_text(log_sum));
}

int64_t work(const AttentionParams& p) {
  return p.count * p.l * p.s * (p.e + p.ev) / 16;
}

void bind_forward(py::module_& m) {
  m.def(
      "attention_forward",
      [](In q, In k, In v, OptionalIn mask, Out y, OptionalOut log_sum, bool causal, double scale,
         double dropout, Word seed, Word offset) {
        AttentionParams p = read_params(q, k, v, y, causal, scale, dropout, seed, offset);
        p.y = output_strides(y, q, p.l, p.ev);
        if (log_sum) require_log_sum(log_sum, q);
        Context ctx = make_context(q);
        visit_floating(q.dtype, [&]<class T>() {
          const auto read = read_mask<Wide<T>>(mask, q, p);
          const Workspace scratch(ctx, device::attention_workspace<T>(p, ctx.threads));
          const ReleaseGil gil(work(p));
          device::attention_forward<T>(ctx, p, q.as<const T>(), k.as<const T>(), v.as<const T>(),
                                       read, y.as<T>(), log_sum.as<Wide<T>>());
        });
      },
      "q"_a, "k"_a, "v"_a, "mask"_a, "y"_a, "log_sum"_a, "causal"_a, "scale"_a, "dropout"_a,
      "seed"_a, "offset"_a);
}

template <class T> struct Wanted {
  T* data;
  AttentionStrides strides;
};
template <class T>
Wanted<T> wanted(const OptionalOut& gradient, const ArrayView& q, int64_t rows, int64_t columns) {
  if (!gradient) return {};
  require_same_dtype(q, gradient);
  return {gradient.as<T>(), output_strides(gradient, q, rows, columns)};
}

void bind_backward(py::module_& m) {
  m.def(
      "attention_backward",
      [](In dy, In q, In k, In v, OptionalIn mask, In y, In log_sum, OptionalOut dq, OptionalOut dk,
         OptionalOut dv, bool causal, double scale, double dropout, Word seed, Word offset) {
        AttentionParams p = read_params(q, k, v, y, causal, scale, dropout, seed, offset);
        p.y = strides_of(y, q, p.l, p.ev);
        require_same_dtype(q, dy);
        require_log_sum(log_sum, q);
        const AttentionStrides dy_strides = strides_of(dy, q, p.l, p.ev);
        Context ctx = make_context(q);
        visit_floating(q.dtype, [&]<class T>() {
          const auto read = read_mask<Wide<T>>(mask, q, p);
          const auto to_q = wanted<T>(dq, q, p.l, p.e), to_k = wanted<T>(dk, q, p.s, p.e),
                     to_v = wanted<T>(dv, q, p.s, p.ev);
          const AttentionGradients<T> g{dy.as<const T>(), to_q.data,    to_k.data,    to_v.data,
                                        dy_strides,       to_q.strides, to_k.strides, to_v.strides};
          const Workspace scratch(ctx, device::attention_workspace<T>(p, ctx.threads));
          const ReleaseGil gil(work(p));
          device::attention_backward<T>(ctx, p, q.as<const T>(), k.as<const T>(), v.as<const T>(),
                                        read, y.as<const T>(), log_sum.as<const Wide<T>>(), g);
        });
      },
      "dy"_a, "q"_a, "k"_a, "v"_a, "mask"_a, "y"_a, "log_sum"_a, "dq"_a, "dk"_a, "dv"_a, "causal"_a,
      "scale"_a, "dropout"_a, "seed"_a, "offset"_a);
}

}  // namespace

void bind_attention(py::module_& m) {
  bind_forward(m);
  bind_backward(m);
}

}  // namespace brasa
