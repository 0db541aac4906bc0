// Device memory of the test kernels: the emulator's, or a GPU's.
#include <cstring>

#include "core/device.cuh"
#include "selftest.h"

namespace brasa::selftest {

#if BRASA_EMULATED_DEVICE

void copy_to_device(void* device, const void* host, size_t bytes) {
  std::memcpy(device, host, bytes);
}
void copy_to_host(void* host, const void* device, size_t bytes) {
  std::memcpy(host, device, bytes);
}

#else

void copy_to_device(void* device, const void* host, size_t bytes) {
  simt::check(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
}
void copy_to_host(void* host, const void* device, size_t bytes) {
  simt::check(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
}
void* device_alloc(size_t bytes) {
  void* device = nullptr;
  simt::check(cudaMalloc(&device, bytes));
  simt::check(cudaMemset(device, 0xff, bytes));
  return device;
}
void device_free(void* device) {
  simt::check(cudaFree(device));
}
int device_capability(std::string& about) {
  cudaDeviceProp properties;
  int device = 0, driver = 0, runtime = 0;
  simt::check(cudaGetDevice(&device));
  simt::check(cudaGetDeviceProperties(&properties, device));
  simt::check(cudaDriverGetVersion(&driver));
  simt::check(cudaRuntimeGetVersion(&runtime));
  about = std::string(properties.name) + ", driver for CUDA " + std::to_string(driver) +
          ", built with " + std::to_string(runtime);
  return 10 * properties.major + properties.minor;
}

#endif

}  // namespace brasa::selftest
