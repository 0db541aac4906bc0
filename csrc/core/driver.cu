#include "core/driver.cuh"

namespace brasa::simt {

#if BRASA_EMULATED_DEVICE

DeviceProperties device_properties() {
  return {emulator::capability(), emulator::multiprocessors()};
}

#else

static int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device));
  return value;
}

DeviceProperties device_properties() {
  constexpr int kMaxDevices = 64;
  static DeviceProperties known[kMaxDevices];
  int device = 0;
  check(cudaGetDevice(&device));
  if (device < kMaxDevices && known[device].multiprocessors) return known[device];
  const DeviceProperties properties{
      10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
          attribute(cudaDevAttrComputeCapabilityMinor, device),
      attribute(cudaDevAttrMultiProcessorCount, device)};
  if (device < kMaxDevices) known[device] = properties;  // the same from every thread
  return properties;
}

#endif

}  // namespace brasa::simt
