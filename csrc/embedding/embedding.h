// Rows of a table by index, and the gradient of the table.
//
//   forward    y[p] = weight[index[p]]
//   backward   dweight[v] = sum over p with index[p] = v of dy[p], in ascending p; 0 at `padding`
//
// Floor: the rows are read and written once; the gradient writes the whole table. Each column of
// dweight belongs to one thread: no atomics, and the order of the additions is that of the
// positions. Longest chain: how often a row occurs.
//
// On CUDA the positions are sorted by row first (sort.cuh), which reads and writes 8 bytes of each
// position once per byte of the largest row's number. Lost: every position's block looks for the
// others of its row, so that the indices are read n times from L2: 0.1 ms for 8 Ki positions, but
// 100 times that for ten times as many.
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

/// Bytes of scratch that embedding_backward() needs for so many indices and rows.
BRASA_FUNCTION(size_t, embedding_backward_workspace, int64_t count, int64_t rows)
BRASA_KERNEL(embedding_backward, const T* dy, RowIndices indices, T* dweight, TableShape shape)
