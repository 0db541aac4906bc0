#include "core/driver.cuh"

#if !BRASA_EMULATED_DEVICE
#include <cudaTypedefs.h>
#endif

namespace brasa::simt {

#if BRASA_EMULATED_DEVICE

DeviceProperties device_properties() {
  return {emulator::capability(), emulator::multiprocessors()};
}

TensorMap make_tensor_map(const TensorBox& box) {
  emulator::require_aligned(box.base, 16);
  for (int64_t stride : box.stride) {
    if (stride <= 0 || stride % 16 != 0)
      throw emulator::Error("emulator: a tensor map with a stride of " + std::to_string(stride));
  }
  if (box.lines > 256) throw emulator::Error("emulator: a box of more than 256 lines");
  return {static_cast<std::byte*>(const_cast<void*>(box.base)),
          {box.extent[0], box.extent[1], box.extent[2]},
          {box.item_bytes, box.stride[0], box.stride[1]},
          {128 / box.item_bytes, box.lines, box.items}};
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
  const DeviceProperties properties{10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                                        attribute(cudaDevAttrComputeCapabilityMinor, device),
                                    attribute(cudaDevAttrMultiProcessorCount, device)};
  if (device < kMaxDevices) known[device] = properties;  // the same from every thread
  return properties;
}

/// The driver's function, found through the runtime: nothing is linked against the driver.
static PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                         cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess)
    throw std::runtime_error("CUDA: the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

TensorMap make_tensor_map(const TensorBox& box) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = encoder();
  TensorMap map;
  const cuuint64_t extent[3] = {cuuint64_t(box.extent[0]), cuuint64_t(box.extent[1]),
                                cuuint64_t(box.extent[2])};
  const cuuint64_t stride[2] = {cuuint64_t(box.stride[0]), cuuint64_t(box.stride[1])};
  const cuuint32_t size[3] = {cuuint32_t(128 / box.item_bytes), cuuint32_t(box.lines),
                              cuuint32_t(box.items)};
  const cuuint32_t step[3] = {1, 1, 1};
  const CUresult result = encode(
      &map, box.item_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
      3, const_cast<void*>(box.base), extent, stride, size, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw std::runtime_error("CUDA: no tensor map, error " + std::to_string(int(result)));
  return map;
}

#endif

}  // namespace brasa::simt
