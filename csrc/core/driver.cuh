// What host code asks of the GPU at hand.
#pragma once

#include "core/device.cuh"
#include "core/ptx_tma.cuh"

namespace brasa::simt {

struct DeviceProperties {
  int capability;  ///< 80 for 8.0
  int multiprocessors;
};

/// Of the current device. Asked once per device.
DeviceProperties device_properties();

/// Three dimensions of a tensor, x innermost and contiguous, and the box that tma_load() copies:
/// 128 bytes along x. Elements of 2 or 4 bytes; strides are multiples of 16 bytes, the base, too.
struct TensorBox {
  const void* base;
  int item_bytes;
  int64_t extent[3];
  int64_t stride[2];  ///< of y and z, in bytes
  int lines, items;   ///< of the box, along y and z
};
TensorMap make_tensor_map(const TensorBox& box);

}  // namespace brasa::simt
