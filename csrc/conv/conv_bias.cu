// The gradient of the bias on CUDA: sums of dy over its pixels.
//
// Neighbouring threads have pieces of 16 bytes of a pixel's channels each, a block some of the
// pixels; what blocks sum are parts, which a second kernel adds, a block to 32 channels.
//
// Floor: dy once. Parts are as many as two blocks for each multiprocessor: a thread then has whole
// batches of loads under way (one element at a time, in 64 parts, dy of 64 channels took 29 us on
// an H100, where its memory asks for 9, and one thread to a channel another 9 us for the parts).
#include "conv/conv_depthwise.cuh"
#include "conv/conv_paths.cuh"

namespace brasa::cuda {

constexpr int64_t kBiasBlocks = 264;
constexpr int kMostAcross = 32;  ///< threads along the channels

/// How a bias gradient is cut.
struct BiasCut {
  int across;  ///< threads along the channels, a power of two
  int64_t columns, parts;

  BiasCut(const ConvParams& p, int64_t pieces) : across(1) {
    while (across < kMostAcross && across < pieces) across *= 2;
    columns = simt::ceil_div<int64_t>(pieces, across);
    const int64_t rows = kThreads / across;  // of a block at once
    const int64_t most = simt::ceil_div(p.batch * p.out_pixels(), 2 * rows);
    parts = larger(1, smaller(simt::ceil_div(kBiasBlocks, columns), most));
  }
};

/// out[part][channel] = sum of dy over the part's pixels; blockIdx.y counts parts.
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads)
    bias_kernel(const T* dy, Wide<T>* out, int64_t pixels, int64_t channels, int across) {
  using Lane = Wide<T>;
  constexpr int kApart = kThreads + simt::kWarpSize / kLanes;  // so that no two read one bank
  BRASA_SHARED(Lane, of_thread, [kLanes][kApart]);
  const int rows = kThreads / across, lane = int(threadIdx.x) % across;
  const int64_t first = int64_t(blockIdx.x) * across * kLanes, channel = first + lane * kLanes;
  const int64_t part = blockIdx.y, end = pixels * (part + 1) / gridDim.y;
  Lane sum[kLanes] = {};
  if (channel < channels) {
#pragma unroll 4
    for (int64_t p = pixels * part / gridDim.y + threadIdx.x / across; p < end; p += rows) {
      const T* from = dy + p * channels + channel;
      if constexpr (kLanes > 1) {
        Piece<T> piece;
        load_piece(from, piece);
#pragma unroll
        for (int i = 0; i < kLanes; ++i) sum[i] += piece[i];
      } else {
        sum[0] += simt::widen(*from);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kLanes; ++i) of_thread[i][threadIdx.x] = sum[i];
  __syncthreads();
  const int width = across * kLanes;
  for (int c = int(threadIdx.x); c < width && first + c < channels; c += kThreads) {
    Lane total = 0;
    for (int row = 0; row < rows; ++row) total += of_thread[c % kLanes][row * across + c / kLanes];
    out[part * channels + first + c] = total;
  }
}

/// to[i] = the sum over parts of from[part * n + i].
template <class T, class U>
__global__ void __launch_bounds__(kThreads)
    add_bias_parts_kernel(const T* from, U* to, int64_t n, int64_t parts) {
  const int64_t i = int64_t(blockIdx.x) * simt::kWarpSize + threadIdx.x % simt::kWarpSize;
  const T sum = sum_parts(from, i, n, parts, i < n);
  if (threadIdx.x >= simt::kWarpSize || i >= n) return;
  to[i] = simt::narrow<U>(sum);
}

template <class T> static bool reads_pieces(const ConvParams& p) {
  return p.aligned && p.out_channels % kPiece<T> == 0;
}
template <class T> static BiasCut cut_bias(const ConvParams& p) {
  return {p, reads_pieces<T>(p) ? p.out_channels / kPiece<T> : p.out_channels};
}

template <class T> int64_t bias_parts(const ConvParams& p) {
  return cut_bias<T>(p).parts * p.out_channels;
}

template <class T, class U>
void backward_bias(Context ctx, const T* dy, U* db, Wide<T>* parts, const ConvParams& p) {
  const BiasCut cut = cut_bias<T>(p);
  const bool pieces = reads_pieces<T>(p) && simt::pack_aligned(dy);
  simt::launch({.grid = dim3(unsigned(cut.columns), unsigned(cut.parts)),
                .block = dim3(kThreads),
                .stream = stream_of(ctx)},
               pieces ? bias_kernel<T, kPiece<T>> : bias_kernel<T, 1>, dy, parts,
               p.batch * p.out_pixels(), p.out_channels, cut.across);
  simt::launch({.grid = dim3(unsigned(simt::ceil_div<int64_t>(p.out_channels, simt::kWarpSize))),
                .block = dim3(kThreads),
                .stream = stream_of(ctx)},
               add_bias_parts_kernel<Wide<T>, U>, parts, db, p.out_channels, cut.parts);
}

#define BRASA_BIAS_GRADIENT(T)                       \
  template int64_t bias_parts<T>(const ConvParams&); \
  template void backward_bias<T, T>(Context, const T*, T*, Wide<T>*, const ConvParams&);
BRASA_BIAS_GRADIENT(float)
BRASA_BIAS_GRADIENT(double)
BRASA_BIAS_GRADIENT(float16)
BRASA_BIAS_GRADIENT(bfloat16)
template void backward_bias<float16, float>(Context, const float16*, float*, float*,
                                            const ConvParams&);
template void backward_bias<bfloat16, float>(Context, const bfloat16*, float*, float*,
                                             const ConvParams&);

}  // namespace brasa::cuda
