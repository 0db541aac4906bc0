// What host code asks of the GPU at hand.
#pragma once

#include "core/device.cuh"

namespace brasa::simt {

struct DeviceProperties {
  int capability;  ///< 80 for 8.0
  int multiprocessors;
};

/// Of the current device. Asked once per device.
DeviceProperties device_properties();

}  // namespace brasa::simt
