// In which order tiles of a result are computed, and where an item of a batch begins.
#pragma once

#include "core/device.cuh"
#include "matmul/matmul.h"

namespace brasa::cuda {

/// kGroup rows of tiles are walked column by column, so that what the blocks of a GPU read at
/// one time is small and stays in L2.
struct TileOrder {
  static constexpr unsigned kGroup = 8;
  unsigned rows, columns;
  BRASA_HOST_DEVICE_FN unsigned count() const { return rows * columns; }
  BRASA_DEVICE_FN void place(unsigned tile, unsigned& row, unsigned& column) const {
    const unsigned in_group = kGroup * columns, group = tile / in_group;
    const unsigned first = group * kGroup;
    const unsigned height = rows - first < kGroup ? rows - first : kGroup;
    row = first + tile % in_group % height;
    column = tile % in_group / height;
  }
};

BRASA_DEVICE_FN void add_offsets(const BatchDims& dims, int64_t index, int64_t& a, int64_t& b) {
#pragma unroll 1  // divisions of 64 bits are long
  for (int d = dims.rank - 1; d >= 0; --d) {
    const int64_t i = index % dims.shape[d];
    index /= dims.shape[d];
    a += i * dims.a_strides[d];
    b += i * dims.b_strides[d];
  }
}

}  // namespace brasa::cuda
