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

/// Three dimensions of a tensor, x innermost and contiguous, or four with an outer one, and the box
/// that tma_load() copies: 128 bytes along x. Elements of 2 or 4 bytes; strides are multiples of 16
/// bytes, the base, too.
struct TensorBox {
  const void* base;
  int item_bytes;
  int64_t extent[4];  ///< the last is 0 where there is no outer dimension
  int64_t stride[3];  ///< of y, z and the outer dimension, in bytes
  int lines, items;   ///< of the box, along y and z

  int rank() const { return extent[3] == 0 ? 3 : 4; }
};
TensorMap make_tensor_map(const TensorBox& box);

/// Channels-last images and the walk over them that tma_load_pixels() makes, from left to right,
/// then down, then from image to image: `count` places along w and h, `step` pixels apart, from
/// `first` on. A load brings 128 bytes of channels of `pixels` places. Strides are multiples of 16
/// bytes, the base, too.
struct PixelBox {
  const void* base;
  int item_bytes;
  int64_t channels, size[2], images;  ///< size, as all pairs here, of w and of h
  int64_t stride[3];                  ///< of w, h and images, in bytes
  int first[2], count[2], step[2];
  int pixels;

  /// Where the walk ends, counted from the last pixel.
  int64_t past(int d) const { return first[d] + int64_t(count[d]) * step[d] - size[d]; }
  /// Whether the copy engine can walk so.
  bool is_possible() const {
    constexpr int64_t kNear = 128, kMostStep = 8;
    bool yes = true;
    for (int d = 0; d < 2; ++d)
      yes = yes && first[d] >= -kNear && first[d] < kNear && past(d) >= -kNear && past(d) < kNear &&
            step[d] <= kMostStep;
    return yes;
  }
};
TensorMap make_pixel_map(const PixelBox& box);

}  // namespace brasa::simt
