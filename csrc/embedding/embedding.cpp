#include "embedding/embedding.h"

#include "core/elementwise.h"

namespace brasa::cpu::BRASA_ISA {
namespace {

/// Elements of a parallel chunk, some 10 us of copying.
constexpr int64_t kCopyGrain = 32 * 1024;
/// Columns of dweight that one thread adds up: four cache lines of float32.
constexpr int64_t kColumnGrain = 64;

BRASA_INLINE int64_t index_at(const RowIndices& r, int64_t p) {
  return r.wide ? r.wide[p] : int64_t(r.narrow[p]);
}

/// The row that is copied kRowsAhead positions later, or one that may be fetched in its place.
constexpr int64_t kRowsAhead = 2;
BRASA_INLINE int64_t next_row(const RowIndices& indices, TableShape shape, int64_t p, int64_t end) {
  const int64_t v = p + kRowsAhead < end ? index_at(indices, p + kRowsAhead) : 0;
  return v >= 0 && v < shape.rows ? v : 0;
}

/// y = x, with a later row fetched: rows lie anywhere, and no hardware foresees that.
template <class T> BRASA_INLINE void copy_row(const T* x, const T* later, int64_t n, T* y) {
  each_part<T, 4>(n, [=](int, int64_t d, int64_t live) {
    __builtin_prefetch(later + d);
    write(y + d, read(x + d, live), live);
  });
}

}  // namespace

template <class T>
void embedding_forward(Context ctx, RowIndices indices, const T* weight, T* y, TableShape shape) {
  const int64_t columns = shape.columns;
  if (columns == 0) return;
  const int64_t grain = columns < kCopyGrain ? kCopyGrain / columns : 1;
  parallel_for(ctx, indices.count, grain, [=](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t v = index_at(indices, p);
      T* const row = y + p * columns;
      if (v >= 0 && v < shape.rows)
        copy_row(weight + v * columns, weight + next_row(indices, shape, p, end) * columns, columns,
                 row);
      else
        for (int64_t d = 0; d < columns; ++d) row[d] = T(__builtin_nan(""));
    }
  });
}

template <class T> size_t embedding_backward_workspace(int64_t, int64_t) {
  return 0;
}

template <class T>
void embedding_backward(Context ctx, const T* dy, RowIndices indices, T* dweight,
                        TableShape shape) {
  const int64_t columns = shape.columns;
  parallel_for(ctx, shape.rows * columns, kCopyGrain, [=](int64_t begin, int64_t end) {
    __builtin_memset(dweight + begin, 0, size_t(end - begin) * sizeof(T));
  });
  if (indices.count * columns <= kCopyGrain) ctx.threads = 1;
  parallel_for(ctx, columns, kColumnGrain, [=](int64_t begin, int64_t end) {
    for (int64_t p = 0; p < indices.count; ++p) {
      const int64_t v = index_at(indices, p);
      if (v < 0 || v >= shape.rows || v == shape.padding) continue;
      T* const sum = dweight + v * columns;
      map_range(begin, end, [](Vec<T> a, Vec<T> b) { return a + b; }, sum, sum, dy + p * columns);
    }
  });
}

BRASA_INSTANTIATE(embedding_forward, float, double)
BRASA_INSTANTIATE(embedding_backward_workspace, float, double)
BRASA_INSTANTIATE(embedding_backward, float, double)

}  // namespace brasa::cpu::BRASA_ISA
