// Launchers of the emulator's test kernels. Pointers are device memory; `stream_t` is not needed
// here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace brasa::selftest {

/// Copies between host and device; waits for the kernels before, and throws what went wrong in
/// them.
void copy_to_device(void* device, const void* host, size_t bytes);
void copy_to_host(void* host, const void* device, size_t bytes);
#ifndef BRASA_EMULATED  // the emulator has its own
/// Filled with 0xff, as the emulator's.
void* device_alloc(size_t bytes);
void device_free(void* device);
/// 90 for 9.0, and in words what GPU and driver these are.
int device_capability(std::string& about);
#endif

/// c (m,n) = a (m,k) b (k,n). `second_barrier` false leaves out the barrier before a tile is
/// overwritten.
void sgemm(const float* a, const float* b, float* c, int m, int n, int k, bool second_barrier);

/// y = softmax of each of `rows` rows of n. Bugs as in SoftmaxBug.
enum class SoftmaxBug { kNone, kMissingBarrier, kDivergentBarrier, kReadPastEnd };
void softmax(const float* x, float* y, int rows, int n, SoftmaxBug bug);

/// sums[r], maxima[r] of each of `rows` rows of n, by block_reduce over `threads` threads.
template <class T>
void row_statistics(const T* x, T* sums, T* maxima, int rows, int n, int threads);

/// y[i] = 2 x[i] for i < n, 16 bytes at a time; `scalar` takes the path for unaligned arrays.
void scale_by_packs(const float* x, float* y, int64_t n, bool scalar);

/// bins[v] = how many of x[0..n) are v; *odd = how many are odd, counted by ballots.
void histogram(const int* x, int* bins, int* odd, int n);

/// One atomic of each kind on out[0..8): int add, max, exchange; unsigned min, compare-and-swap;
/// the sums as float at out[5], as double at out[6..8).
void atomics(int* out, int threads);

/// h = tanh(w h + x[t]) for `steps` steps, one grid barrier each; h0 and h1 (width) take turns, h0
/// begins.
void recurrence(const float* w, const float* x, float* h0, float* h1, int steps, int width);

/// y[l] for l < 32 * 6: what lane l gets from each shuffle, the last two in groups of 8.
void shuffles(int* y);

/// Dynamic shared memory: y = x reversed, n <= 16384.
void reverse(const float* x, float* y, int n, int n_shared);

/// c (m,n) = a (m,k) b (k,n) on tensor cores: float operands rounded to tf32; or bfloat16 ones,
/// staged by asynchronous copies, with n and k multiples of 8. Bugs as in StageBug.
enum class StageBug { kNone, kWeakWait, kReusedTooEarly };
void gemm_tf32(const float* a, const float* b, float* c, int m, int n, int k);
void gemm_bf16(const uint16_t* a, const uint16_t* b, float* c, int m, int n, int k, StageBug bug);

/// c (m,n) = a (m,k) b (n,k)^T of bfloat16 by the copy engine and a warpgroup; k is a
/// multiple of 8.
enum class RingBug {
  kNone,
  kNoWaitForStage,
  kGivenBackEarly,
  kNoWaitForProduct,
  kWrongBytes,
  kNotInitialised
};
void ring_gemm(const uint16_t* a, const uint16_t* b, float* c, int m, int n, int k, RingBug bug);

/// One group of warps of three keeps 24 registers a thread, or 32, and the others take 240.
void share_registers(bool keep_32);

/// y (24, 64): a box of 24 lines of 64 elements of 16 bits, from a place of a tensor of four
/// dimensions, the innermost first.
struct BoxPlace {
  int x, y, z, outer;
};
void load_box(const uint16_t* x, uint16_t* y, const int64_t (&extent)[4],
              const int64_t (&stride)[3], const BoxPlace& at);

/// y (24, 64): 64 channels of 24 places of a walk over images (images, height, width, channels) of
/// 16-bit elements; pairs are of w and h.
struct PixelImage {
  int images, height, width, channels;
  int first[2], count[2], step[2];
};
struct PixelLoad {
  int channel, w, h, image, right, down;
};
void load_pixels(const uint16_t* x, uint16_t* y, const PixelImage& image, const PixelLoad& at);
/// The other way: pixels of the images y, from (24, 64) numbers of x.
void store_pixels(const uint16_t* x, uint16_t* y, const PixelImage& image, const PixelLoad& at);

/// What the PTX wrapper of that name in wrappers.cu makes of x; `n` words where it takes any
/// number.
void wrapper(const char* name, const uint32_t* x, uint32_t* y, int n);

/// "copy": y = x, 64 lines of 64 numbers of 16 bits, by way of shared memory and the copy engine;
/// "square": y (64,128) = x x^T twice side by side, of bfloat16, by wgmma.
enum class PanelBug { kNone, kNoFence, kNoBarrier };
void panel(const char* kind, const uint16_t* x, void* y, PanelBug bug);

/// y (2,3): the sums of three boxes of 64 x 64 numbers, x (192,64), as each block of a cluster
/// finds what one of them loads for both.
enum class CastBug { kNone, kNoWait, kOneBlock, kEndsEarly };
void multicast(const uint16_t* x, float* y, CastBug bug);

/// y (64,n) = a (64,D) b (n,D)^T by wgmma with a in registers: "tf32" with D = 32, "bf16" or "f16"
/// with D = 64; n is 64 or 128. `overwritten`: before the product is done.
void register_product(const char* type, int n, const void* a, const void* b, float* y,
                      bool overwritten);

/// y[i] = x[stride i] for i < 32, by way of a square in shared memory that is written along
/// columns, with `pad` floats behind each row: what the access lint counts is known.
void access_pattern(const float* x, float* y, int stride, int pad);

/// What orders memory, by name (ordering.cu), each kernel with the bugs that it can have.
enum class OrderBug {
  kNone,
  kNotSetUp,
  kNotFenced,
  kNoWaitToRead,
  kNoWaitToWrite,
  kArrivesEarly,
  kNoBarrier,
  kEndsEarly,
  kNobody,
  kUnaligned
};
void ordering(const char* name, const uint16_t* x, float* y, OrderBug bug);

/// Kernels with one mistake each, by name; `y` has room for 64 floats.
void mistake(const char* name, float* y);

}  // namespace brasa::selftest
