// Products on tensor cores: what of a product they can read as it lies, and how it is cut.
//
// Tensor-core kernels read operands 16 bytes at a time: one direction contiguous, everything else a
// multiple of 16 bytes. An operand that lies otherwise is copied into the workspace first, along
// the depth; so is one whose products are summed over dimensions of the batch, which become part of
// the depth, and so are both in 3xTF32, in two parts (tf32_split.cuh).
#pragma once

#include "matmul/matmul.h"

namespace brasa::cuda {

/// An operand as a tensor-core kernel reads it: `stride` elements between neighbours in the
/// direction that is not contiguous.
struct TensorOperand {
  int64_t stride;
  bool along_depth;  ///< contiguous along the depth, not along its rows (columns)
  bool copied;
  int64_t bytes;  ///< of the copy
};

/// Hopper's are 128 rows high and as wide as they are called, the flat one 64 x 128.
enum class TensorTile : int8_t {
  few_rows,
  flat,
  small,
  large,
  wgmma_flat,
  wgmma_64,
  wgmma_128,
  wgmma_192,
  wgmma_256
};

struct TensorPlan {
  MatmulParams p;  ///< the product as the kernel sees it
  TensorOperand a, b;
  TensorTile tile;
  int64_t splits;       ///< of the depth, each `split_depth` long
  int64_t split_depth;  ///< a multiple of the tile's depth
  bool in_cluster;      ///< parts are added up by the blocks of a cluster, else in the workspace
  bool thrice;          ///< 3xTF32
  int64_t parts_bytes;

  int64_t workspace() const { return a.bytes + b.bytes + parts_bytes; }
};

}  // namespace brasa::cuda
