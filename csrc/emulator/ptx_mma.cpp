// Tensor cores: the last lane gathers both matrices from all registers, multiplies, and scatters.
//
// A tensor core's order of sums and its rounding are not documented (tensor_sum.h), so results are
// compared with a tolerance.
#include "emulator/ptx_mma.h"

#include <cstring>

#include "core/half.h"
#include "emulator/scheduler.h"
#include "emulator/tensor_sum.h"

namespace brasa::simt::emulator {
namespace {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

struct MmaArgument {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

template <int K> struct Operands {
  float a[16][K];
  float b[8][K];
};

/// The hardware ignores the low 13 bits of a tf32.
float tf32(uint32_t bits) {
  return std::bit_cast<float>(bits & ~0x1fffu);
}
template <class T> float half_of(uint32_t pair, int half) {
  return host::widen(T{static_cast<uint16_t>(pair >> 16 * half)});
}

template <class T>
void gather(Operands<8>& operands, const MmaArgument& argument, int group, int quarter) {
  for (int r = 0; r < 4; ++r) {
    operands.a[group + 8 * (r % 2)][quarter + 4 * (r / 2)] = tf32(argument.a[r]);
  }
  for (int r = 0; r < 2; ++r) operands.b[group][quarter + 4 * r] = tf32(argument.b[r]);
}

template <class T>
void gather(Operands<16>& operands, const MmaArgument& argument, int group, int quarter) {
  for (int half = 0; half < 2; ++half) {
    for (int r = 0; r < 4; ++r) {
      const int column = 2 * quarter + half + 8 * (r / 2);
      operands.a[group + 8 * (r % 2)][column] = half_of<T>(argument.a[r], half);
    }
    for (int r = 0; r < 2; ++r) {
      operands.b[group][2 * quarter + half + 8 * r] = half_of<T>(argument.b[r], half);
    }
  }
}

template <class T, int K> void run_mma(void* const* arguments, uint32_t lanes) {
  if (lanes != kAllLanes) fail("mma: all 32 lanes must take part");
  Operands<K> operands;
  for (int lane = 0; lane < kLanes; ++lane) {
    gather<T>(operands, *static_cast<MmaArgument*>(arguments[lane]), lane / 4, lane % 4);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    float* d = static_cast<MmaArgument*>(arguments[lane])->d;
    for (int r = 0; r < 4; ++r) {
      const int row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
      d[r] = tensor_sum(d[r], operands.a[row], operands.b[column], K);
    }
  }
}

struct LoadArgument {
  uint32_t* registers;
  const uint16_t* row;
  bool transposed;
};

void run_load(void* const* arguments, uint32_t lanes) {
  if (lanes != kAllLanes) fail("ldmatrix: all 32 lanes must take part");
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<LoadArgument*>(arguments[lane]);
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t pair[2];
      for (int half = 0; half < 2; ++half) {
        const int along = lane % 4 * 2 + half;
        const int row = mine.transposed ? along : lane / 4;
        const int column = mine.transposed ? lane / 4 : along;
        pair[half] = static_cast<LoadArgument*>(arguments[matrix * 8 + row])->row[column];
      }
      std::memcpy(&mine.registers[matrix], pair, sizeof pair);
    }
  }
}

struct StoreArgument {
  const uint32_t* registers;
  uint16_t* row;
};

void run_store(void* const* arguments, uint32_t lanes) {
  if (lanes != kAllLanes) fail("stmatrix: all 32 lanes must take part");
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const uint32_t* from = static_cast<StoreArgument*>(arguments[lane])->registers;
      uint16_t* row = static_cast<StoreArgument*>(arguments[matrix * 8 + lane / 4])->row;
      std::memcpy(row + lane % 4 * 2, &from[matrix], sizeof(uint32_t));
    }
  }
}

constexpr WarpFunction kStore{"stmatrix", &run_store, false};
constexpr WarpFunction kMmaTf32{"mma_m16n8k8_tf32", &run_mma<float, 8>, false};
constexpr WarpFunction kMmaBf16{"mma_m16n8k16_bf16", &run_mma<bfloat16, 16>, false};
constexpr WarpFunction kMmaF16{"mma_m16n8k16_f16", &run_mma<float16, 16>, false};
constexpr WarpFunction kLoad{"ldmatrix", &run_load, false};

}  // namespace

void mma_tf32(float* d, const uint32_t* a, const uint32_t* b, Location where) {
  MmaArgument argument{d, a, b};
  join_warp(kMmaTf32, kAllLanes, &argument, where);
}

void mma_bf16(float* d, const uint32_t* a, const uint32_t* b, Location where) {
  MmaArgument argument{d, a, b};
  join_warp(kMmaBf16, kAllLanes, &argument, where);
}

void mma_f16(float* d, const uint32_t* a, const uint32_t* b, Location where) {
  MmaArgument argument{d, a, b};
  join_warp(kMmaF16, kAllLanes, &argument, where);
}

void store_matrices(void* row, const uint32_t* registers, Location where) {
  constexpr size_t kRowBytes = 16;
  require_aligned(row, kRowBytes);
  if (!in_shared_memory(row)) fail("stmatrix: " + describe_address(row) + ", not shared memory");
  note_access(row, kRowBytes, kWrite, __builtin_return_address(0));
  StoreArgument argument{registers, static_cast<uint16_t*>(row)};
  join_warp(kStore, kAllLanes, &argument, where);
}

void load_matrices(uint32_t* registers, const void* row, bool transposed, Location where) {
  constexpr size_t kRowBytes = 16;
  require_aligned(row, kRowBytes);
  if (!in_shared_memory(row)) fail("ldmatrix: " + describe_address(row) + ", not shared memory");
  note_access(row, kRowBytes, kRead, __builtin_return_address(0));
  LoadArgument argument{registers, static_cast<const uint16_t*>(row), transposed};
  join_warp(kLoad, kAllLanes, &argument, where);
}

}  // namespace brasa::simt::emulator
