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
  for (int d = 0; d < box.rank() - 1; ++d) {
    if (box.stride[d] <= 0 || box.stride[d] % 16 != 0)
      throw emulator::Error("emulator: a tensor map with a stride of " +
                            std::to_string(box.stride[d]));
  }
  if (box.lines > 256) throw emulator::Error("emulator: a box of more than 256 lines");
  return {static_cast<std::byte*>(const_cast<void*>(box.base)),
          {box.extent[0], box.extent[1], box.extent[2], box.extent[3]},
          {box.item_bytes, box.stride[0], box.stride[1], box.stride[2]},
          {128 / box.item_bytes, box.lines, box.items},
          {},
          {},
          {}};
}

TensorMap make_pixel_map(const PixelBox& box) {
  emulator::require_aligned(box.base, 16);
  for (int64_t stride : box.stride) {
    if (stride <= 0 || stride % 16 != 0)
      throw emulator::Error("emulator: a tensor map with a stride of " + std::to_string(stride));
  }
  if (box.pixels > 1024 || !box.is_possible())
    throw emulator::Error("emulator: a map of pixels that the copy engine cannot walk");
  return {static_cast<std::byte*>(const_cast<void*>(box.base)),
          {box.channels, box.size[0], box.size[1], box.images},
          {box.item_bytes, box.stride[0], box.stride[1], box.stride[2]},
          {128 / box.item_bytes, box.pixels, 1},
          {box.first[0], box.first[1]},
          {int(box.size[0] + box.past(0)), int(box.size[1] + box.past(1))},
          {box.step[0], box.step[1]}};
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

/// A function of the driver, found through the runtime: nothing is linked against the driver.
template <class Function> static Function driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  check(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess)
    throw std::runtime_error(std::string("CUDA: the driver has no ") + name);
  return reinterpret_cast<Function>(function);
}

static CUtensorMapDataType data_type(int item_bytes) {
  return item_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}

static void check_map(CUresult result) {
  if (result != CUDA_SUCCESS)
    throw std::runtime_error("CUDA: no tensor map, error " + std::to_string(int(result)));
}

TensorMap make_tensor_map(const TensorBox& box) {
  static const auto encode =
      driver_function<PFN_cuTensorMapEncodeTiled_v12000>("cuTensorMapEncodeTiled");
  TensorMap map;
  const cuuint64_t extent[4] = {cuuint64_t(box.extent[0]), cuuint64_t(box.extent[1]),
                                cuuint64_t(box.extent[2]), cuuint64_t(box.extent[3])};
  const cuuint64_t stride[3] = {cuuint64_t(box.stride[0]), cuuint64_t(box.stride[1]),
                                cuuint64_t(box.stride[2])};
  const cuuint32_t size[4] = {cuuint32_t(128 / box.item_bytes), cuuint32_t(box.lines),
                              cuuint32_t(box.items), 1};
  const cuuint32_t step[4] = {1, 1, 1, 1};
  check_map(encode(&map, data_type(box.item_bytes), cuuint32_t(box.rank()),
                   const_cast<void*>(box.base), extent, stride, size, step,
                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
  return map;
}

TensorMap make_pixel_map(const PixelBox& box) {
  static const auto encode =
      driver_function<PFN_cuTensorMapEncodeIm2col_v12000>("cuTensorMapEncodeIm2col");
  TensorMap map;
  const cuuint64_t extent[4] = {cuuint64_t(box.channels), cuuint64_t(box.size[0]),
                                cuuint64_t(box.size[1]), cuuint64_t(box.images)};
  const cuuint64_t stride[3] = {cuuint64_t(box.stride[0]), cuuint64_t(box.stride[1]),
                                cuuint64_t(box.stride[2])};
  const int past[2] = {int(box.past(0)), int(box.past(1))};
  const cuuint32_t step[4] = {1, cuuint32_t(box.step[0]), cuuint32_t(box.step[1]), 1};
  check_map(encode(&map, data_type(box.item_bytes), 4, const_cast<void*>(box.base), extent, stride,
                   box.first, past, cuuint32_t(128 / box.item_bytes), cuuint32_t(box.pixels), step,
                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
  return map;
}

#endif

}  // namespace brasa::simt
