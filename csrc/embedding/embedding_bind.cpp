#include "bind/bind.h"
#include "embedding/embedding.h"
#if !defined(BRASA_FOR_CUDA)
#include "core/indices.h"
#endif

namespace brasa {
namespace {

RowIndices row_indices(const In& indices) {
  BRASA_REQUIRE(indices.dtype == DType::int32 || indices.dtype == DType::int64,
                "unexpected dtype of indices");
  require_c_order(indices);
  RowIndices r{nullptr, nullptr, indices.size};
  if (indices.dtype == DType::int64)
    r.wide = indices.as<const int64_t>();
  else
    r.narrow = indices.as<const int32_t>();
  return r;
}

/// `rows` holds one row of `table` for each index.
TableShape table_shape(const ArrayView& table, const ArrayView& rows, int64_t count,
                       int64_t padding) {
  require_same_dtype(table, rows);
  require_rank(table, 2);
  require_c_order(table);
  require_c_order(rows);
  const TableShape shape{table.shape[0], table.shape[1], padding};
  BRASA_REQUIRE(rows.size == checked_multiply(count, shape.columns),
                "unexpected shape " + shape_text(rows));
  return shape;
}

}  // namespace

void bind_embedding(py::module_& m) {
  m.def(
      "embedding_forward",
      [](In indices, In weight, Out y) {
        const RowIndices rows = row_indices(indices);
        const TableShape shape = table_shape(weight, y, rows.count, -1);
#if !defined(BRASA_FOR_CUDA)
        require_indices("indices", indices, shape.rows);
#endif
        const Context ctx = make_context(weight);
        const ReleaseGil gil(y.size);
        visit_floating(weight.dtype, [&]<class T>() {
          device::embedding_forward<T>(ctx, rows, weight.as<const T>(), y.as<T>(), shape);
        });
      },
      "indices"_a, "weight"_a, "y"_a);
  m.def(
      "embedding_backward",
      [](In dy, In indices, Out dweight, int64_t padding) {
        const RowIndices rows = row_indices(indices);
        const TableShape shape = table_shape(dweight, dy, rows.count, padding);
        Context ctx = make_context(dy);
        visit_floating(dy.dtype, [&]<class T>() {
          const Workspace scratch(ctx,
                                  device::embedding_backward_workspace<T>(rows.count, shape.rows));
          const ReleaseGil gil(dy.size + dweight.size);
          device::embedding_backward<T>(ctx, dy.as<const T>(), rows, dweight.as<T>(), shape);
        });
      },
      "dy"_a, "indices"_a, "dweight"_a, "padding"_a);
}

}  // namespace brasa
