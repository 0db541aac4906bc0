// Rows of a table by index, and the gradient of the table.
//
//   forward    y[p] = weight[index[p]]
//   backward   dweight[v] = sum over p with index[p] = v of dy[p], in ascending p; 0 at `padding`
//
// Floor: the rows are read and written once; the gradient writes the whole table. Each column of
// dweight belongs to one thread (CPU), each row to the block of its first position (CUDA): no
// atomics, and the order of the additions is that of the positions. Longest chain: how often a row
// occurs.
//
// On CUDA every position's block looks for earlier and later positions of its row, so the indices
// are read n times from L2: 0.1 ms for 8 Ki positions, but 100 times that for ten times as many. A
// sort by index would be the next step.
//
// An index out of range reads nothing: its row of y is NaN and it adds to no gradient.
#pragma once

#include "core/dispatch.h"

namespace brasa {

/// One of the pointers is null.
struct RowIndices {
  const int64_t* wide;
  const int32_t* narrow;
  int64_t count;
};

struct TableShape {
  int64_t rows, columns;
  int64_t padding;  ///< a row without gradient, or -1
};

}  // namespace brasa

BRASA_KERNEL(embedding_forward, RowIndices indices, const T* weight, T* y, TableShape shape)
BRASA_KERNEL(embedding_backward, const T* dy, RowIndices indices, T* dweight, TableShape shape)
