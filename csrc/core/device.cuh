// The one header a kernel file (`.cu`) includes: CUDA's words for two compilers.
//
//   nvcc  builds the file for the GPU; the names below are thin covers over CUDA.
//   g++   builds the same file as C++20 for the tests: every CUDA thread is a fiber on the CPU
//         (csrc/emulator), so kernels run, and their races and faults are found, without a GPU.
//
// Rules that keep one source right on both:
//   - shared memory is BRASA_SHARED(float, tile, [16][68]) (static, at most 48 KiB in all) or
//     BRASA_DYN_SHARED(float, tile) (`.smem` bytes of the launch, at most 227 KiB), both aligned
//     for 16-byte access;
//   - every launch is launch({.grid = ..., .block = ...}, kernel<...>, args...), never `<<< >>>`;
//     it throws at once on a bad launch, on a machine without a GPU for instance;
//   - inline PTX stands only in core/ptx_*.cuh, each wrapper with an emulation beside it;
//   - no reliance on warp lockstep: __syncwarp() wherever lanes exchange data through memory
//     (shuffles and ballots do not order memory);
//   - blocks of one launch share data by atomics or grid_sync() only; a later launch on the same
//     stream sees everything. The "last block adds up" idiom is two launches here;
//   - a spin loop calls spin_hint() in its body.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "core/context.h"

#if defined(__CUDACC__)
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#define BRASA_EMULATED_DEVICE 0
#define BRASA_DEVICE_FN __device__ __forceinline__
#define BRASA_HOST_DEVICE_FN __host__ __device__ __forceinline__
#define BRASA_SHARED(T, name, dims) __shared__ __align__(16) T name dims
#define BRASA_DYN_SHARED(T, name)                                          \
  extern __shared__ __align__(1024) unsigned char brasa_dynamic_shared_[]; \
  T* const name = reinterpret_cast<T*>(brasa_dynamic_shared_)

namespace brasa::simt {
using stream_t = cudaStream_t;
}

/// The compiler knows neither this 64-bit integer nor what memory holds from here on.
#define BRASA_FORGET(integer) asm volatile("" : "+l"(integer)::"memory")
#else
#include "emulator/capture.h"
#include "emulator/cuda_builtins.h"
#include "emulator/cuda_math.h"
#include "emulator/runtime.h"

#define BRASA_EMULATED_DEVICE 1
#define BRASA_DEVICE_FN inline __attribute__((always_inline))
#define BRASA_HOST_DEVICE_FN inline __attribute__((always_inline))
#define BRASA_SHARED(T, name, dims)                             \
  typedef T name##_shared_type dims;                            \
  static const char name##_shared_tag = 0;                      \
  name##_shared_type& name = *static_cast<name##_shared_type*>( \
      ::brasa::simt::emulator::static_shared(&name##_shared_tag, sizeof(name##_shared_type)))
#define BRASA_DYN_SHARED(T, name) \
  T* const name = static_cast<T*>(::brasa::simt::emulator::dynamic_shared())

namespace brasa::simt {
using stream_t = void*;
}

#define BRASA_FORGET(integer) asm volatile("" : "+r"(integer)::"memory")
#endif

namespace brasa::simt {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullMask = 0xffffffffu;

// Enough blocks of 256 threads to fill an H200 (132 multiprocessors) twice over; a grid-stride loop
// gains nothing from more. A constant, not the number of this GPU, so that partial results and with
// them rounding do not depend on the device.
inline constexpr int64_t kMaxStrideBlocks = 2112;

struct LaunchConfig {
  dim3 grid{1};
  dim3 block{1};
  size_t smem = 0;  // bytes of dynamic shared memory
  stream_t stream = nullptr;
  bool cooperative = false;  // all blocks resident together: grid_sync() is allowed
  unsigned cluster = 1;      // blocks per cluster along x
};

#if !BRASA_EMULATED_DEVICE
// ------------------------------------------------------------------------------------------ CUDA

/// Throws what `error` means: std::bad_alloc when memory ran out, std::runtime_error otherwise.
inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report this error again
  if (error == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

/// Starts `kernel` on `config.stream`; arguments are converted to the kernel's parameter types.
template <class... Parameters, class... Arguments>
void launch(const LaunchConfig& config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  constexpr size_t kDefaultSharedLimit = 48 * 1024;
  if (config.smem > kDefaultSharedLimit) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(config.smem)));
  }
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (config.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  if (config.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = config.cluster;
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t launch_config{};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = config.smem;
  launch_config.stream = config.stream;
  launch_config.attrs = attributes;
  launch_config.numAttrs = count;
  check(cudaLaunchKernelEx(&launch_config, kernel, std::forward<Arguments>(arguments)...));
  check(cudaGetLastError());
}

/// How many blocks of `threads` threads and `smem` bytes of dynamic shared memory the current GPU
/// holds at once, and so the most that a cooperative launch may have; 0 where not one fits.
template <class... Parameters>
int64_t resident_blocks(void (*kernel)(Parameters...), int threads, size_t smem) {
  int device = 0, processors = 0, shared_limit = 0, per_processor = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  check(cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (smem > static_cast<size_t>(shared_limit)) return 0;
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem)));
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, threads, smem));
  return int64_t(processors) * per_processor;
}

/// Sets `bytes` bytes of device memory to `value`, in stream order.
inline void memset_async(void* pointer, int value, size_t bytes, stream_t stream) {
  check(cudaMemsetAsync(pointer, value, bytes, stream));
}

/// Waits for everything on `stream`; errors of its kernels are thrown here.
inline void synchronize(stream_t stream) {
  check(cudaStreamSynchronize(stream));
}

/// Barrier over all threads of a cooperative launch; orders memory.
BRASA_DEVICE_FN void grid_sync() {
  cooperative_groups::this_grid().sync();
}

/// Named barrier `id` (1 to 15) over `threads` threads of the block, a multiple of 32.
BRASA_DEVICE_FN void bar_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Stands in the body of a loop that waits for another thread.
BRASA_DEVICE_FN void spin_hint() {
  __nanosleep(20);
}

#else
// ------------------------------------------------------------------------------------------
// emulator

template <class... Parameters, class... Arguments>
void launch(const LaunchConfig& config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<std::remove_cv_t<Parameters>...> arguments;
  };
  const emulator::Grid grid{.grid = config.grid,
                            .block = config.block,
                            .dynamic_shared = config.smem,
                            .cooperative = config.cooperative,
                            .cluster = config.cluster,
                            .kernel = reinterpret_cast<const void*>(kernel)};
  Call call{kernel, {static_cast<Parameters>(arguments)...}};
  emulator::enqueue(config.stream, [grid, call]() mutable {
    emulator::run_grid(
        grid,
        [](void* closure) {
          auto& call = *static_cast<Call*>(closure);
          std::apply(call.kernel, call.arguments);
        },
        &call);
  });
}

/// Few, so that tests with small arrays meet both what fits and what does not.
template <class... Parameters> int64_t resident_blocks(void (*)(Parameters...), int, size_t smem) {
  return emulator::resident_blocks(smem);
}

inline void memset_async(void* pointer, int value, size_t bytes, stream_t stream) {
  emulator::enqueue(stream, [=] { emulator::device_fill(pointer, value, bytes); });
}

inline void synchronize(stream_t stream) {
  emulator::refuse_while_capturing(stream, "synchronize");
}

BRASA_DEVICE_FN void grid_sync(emulator::Location where = emulator::Location::current()) {
  emulator::grid_barrier(where);
}

BRASA_DEVICE_FN void bar_sync(int id, int threads,
                              emulator::Location where = emulator::Location::current()) {
  emulator::named_barrier(id, threads, where);
}

BRASA_DEVICE_FN void spin_hint(emulator::Location where = emulator::Location::current()) {
  emulator::yield(where);
}
#endif

// ------------------------------------------------------------------------------------------ both

/// Smallest integer not below a / b, for a >= 0 and b > 0.
template <class T> BRASA_HOST_DEVICE_FN constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

/// Grid for a grid-stride loop over n items, `per_block` of them per block and pass; at least 1.
inline dim3 blocks_for(int64_t n, int64_t per_block) {
  const int64_t blocks = ceil_div(n, per_block);
  return dim3(static_cast<unsigned>(blocks < 1                  ? 1
                                    : blocks > kMaxStrideBlocks ? kMaxStrideBlocks
                                                                : blocks));
}

/// Division by a number that is the same for a whole launch: a multiplication and a shift where the
/// dividend is below 2^31 (Granlund and Montgomery 1994), a third of what a division of 32 bits and
/// a tenth of what one of 64 bits costs. No dividend is negative; where there is none, `by` may be
/// 0.
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int64_t by) : by_(by < 1 ? 1 : by) {
    constexpr int64_t kNarrow = int64_t(1) << 31;
    if (by_ >= kNarrow) {
      multiplier_ = 0, shift_ = 31;  // every narrow dividend is less
      return;
    }
    while ((int64_t(1) << shift_) < by_) ++shift_;
    const uint64_t excess = (uint64_t(1) << shift_) - uint64_t(by_);
    multiplier_ = uint32_t((excess << 32) / uint64_t(by_) + 1);
  }
  int64_t divisor() const { return by_; }
  BRASA_HOST_DEVICE_FN int64_t quotient(int64_t a) const {
    return uint64_t(a) >> 31 ? a / by_ : int64_t(narrow_quotient(uint32_t(a)));
  }
  /// Returns a % by and leaves a / by in `a`.
  BRASA_HOST_DEVICE_FN int64_t take_remainder(int64_t& a) const {
    const int64_t q = quotient(a), remainder = a - q * by_;
    a = q;
    return remainder;
  }
  /// The same of a dividend that is known to be below 2^31, in 32 bits and without the branch.
  BRASA_HOST_DEVICE_FN uint32_t narrow_quotient(uint32_t a) const {
    return (uint32_t((uint64_t(a) * multiplier_) >> 32) + a) >> shift_;
  }
  BRASA_HOST_DEVICE_FN uint32_t take_narrow_remainder(uint32_t& a) const {
    const uint32_t q = narrow_quotient(a), remainder = a - q * uint32_t(by_);
    a = q;
    return remainder;
  }

 private:
  int64_t by_ = 1;
  uint32_t multiplier_ = 1;
  int shift_ = 0;
};

/// Calls f.operator()<N>(i) for all elements of n, N neighbours from i at a time: packs where
/// `packs` says that the arrays are aligned for them, single ones at the end and elsewhere. The
/// threads of a grid along x share the work.
template <int kLanes, class F> BRASA_DEVICE_FN void for_packs(int64_t n, bool packs, const F& f) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t whole = packs ? n / kLanes : 0;
  for (int64_t i = thread; i < whole; i += stride) f.template operator()<kLanes>(i * kLanes);
#pragma unroll 1
  for (int64_t i = whole * kLanes + thread; i < n; i += stride) f.template operator()<1>(i);
}
template <class T, class F> BRASA_DEVICE_FN void for_packs(int64_t n, bool packs, const F& f) {
  for_packs<16 / int(sizeof(T))>(n, packs, f);
}

/// The number that a launch was passed, or that device memory holds.
BRASA_DEVICE_FN uint64_t read(const Word& word) {
  return word.at ? *word.at : word.value;
}

/// Number of this thread in its block, x fastest; and threads per block.
BRASA_DEVICE_FN int thread_rank() {
  return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}
BRASA_DEVICE_FN int block_size() {
  return static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
}

struct Sum {
  template <class T> BRASA_DEVICE_FN T operator()(T a, T b) const { return a + b; }
};

/// NaN wins, from either side.
struct Max {
  template <class T> BRASA_DEVICE_FN T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};

/// Reduces over the 32 lanes, all of which call; every lane gets the same bits, because the
/// butterfly adds the same pairs in every lane and `operation` is commutative.
template <class T, class Operation> BRASA_DEVICE_FN T warp_reduce(T value, Operation operation) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = operation(value, __shfl_xor_sync(kFullMask, value, offset));
  }
  return value;
}
template <class T> BRASA_DEVICE_FN T warp_sum(T value) {
  return warp_reduce(value, Sum{});
}
template <class T> BRASA_DEVICE_FN T warp_max(T value) {
  return warp_reduce(value, Max{});
}

/// Reduces over the block, all of whose threads call; its size is a multiple of 32. Every thread
/// gets the same bits in every run: warps are combined in their order. Orders memory like
/// __syncthreads().
template <class T, class Operation> BRASA_DEVICE_FN T block_reduce(T value, Operation operation) {
  BRASA_SHARED(T, of_warp, [32]);
  value = warp_reduce(value, operation);
  __syncthreads();  // an earlier call may still be reading of_warp
  const int rank = thread_rank();
  if (rank % kWarpSize == 0) of_warp[rank / kWarpSize] = value;
  __syncthreads();
  const int warps = ceil_div(block_size(), kWarpSize);
  T result = of_warp[0];
  for (int warp = 1; warp < warps; ++warp) result = operation(result, of_warp[warp]);
  return result;
}
template <class T> BRASA_DEVICE_FN T block_reduce_sum(T value) {
  return block_reduce(value, Sum{});
}
template <class T> BRASA_DEVICE_FN T block_reduce_max(T value) {
  return block_reduce(value, Max{});
}

/// Whether this is code for sm_100 or later: it takes a few registers more than that for older
/// GPUs, and kernels spill in which those just fit.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
inline constexpr bool kBlackwell = true;
#else
inline constexpr bool kBlackwell = false;
#endif

/// `offset`, of which the compiler knows nothing. Where it knows how an offset came about it may
/// take the addresses of a pack apart, and then stores the pack word by word.
BRASA_DEVICE_FN int64_t opaque(int64_t offset) {
  BRASA_FORGET(offset);
  return offset;
}

/// N neighbours moved by one instruction of up to 16 bytes.
template <class T, int N> struct alignas(sizeof(T) * N) Pack {
  static_assert(sizeof(T) * N <= 16 && (N & (N - 1)) == 0, "one vector access moves 16 bytes");
  T lane[N];
  BRASA_HOST_DEVICE_FN T& operator[](int i) { return lane[i]; }
  BRASA_HOST_DEVICE_FN const T& operator[](int i) const { return lane[i]; }
};

/// Lanes of the widest pack of T.
template <class T> inline constexpr int kPackLanes = 16 / static_cast<int>(sizeof(T));

/// Whether `pointer` may be read and written by packs of 16 bytes.
BRASA_HOST_DEVICE_FN bool pack_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

/// Reads and writes N neighbours at `pointer`, which is aligned to the whole pack.
template <int N, class T> BRASA_DEVICE_FN Pack<T, N> load_pack(const T* pointer) {
#if BRASA_EMULATED_DEVICE
  emulator::require_aligned(pointer, sizeof(Pack<T, N>));
#endif
  return *reinterpret_cast<const Pack<T, N>*>(pointer);
}
template <int N, class T> BRASA_DEVICE_FN void store_pack(T* pointer, const Pack<T, N>& pack) {
#if BRASA_EMULATED_DEVICE
  emulator::require_aligned(pointer, sizeof(Pack<T, N>));
#endif
  *reinterpret_cast<Pack<T, N>*>(pointer) = pack;
}

}  // namespace brasa::simt
