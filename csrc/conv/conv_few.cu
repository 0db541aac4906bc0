// What convolutions over few channels copy.
#include "conv/conv_few.cuh"
#include "core/ptx_convert.cuh"

namespace brasa::cuda {

/// A thread writes a pixel of the copy: four channels of kRows rows.
template <class T, int kRows>
__global__ void __launch_bounds__(kThreads)
    fold_image_kernel(const T* x, T* to, Layout5 layout, int channels, int64_t count,
                      simt::Divisor width, simt::Divisor height, int step, int top, int left) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    int64_t image = i;
    const int column = int(width.take_remainder(image)) - left;
    const int first = int(height.take_remainder(image)) * step - top;
    const T* from = x + image * layout.image + column * layout.step[2];
    T pixel[kRows * 4] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = first + r;
      const bool there =
          unsigned(row) < unsigned(layout.size[1]) && unsigned(column) < unsigned(layout.size[2]);
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (there && c < channels)
          pixel[r * 4 + c] = from[row * layout.step[1] + c * layout.channel];
    }
#pragma unroll
    for (int p = 0; p < kRows / 2; ++p) {
      simt::Pack<uint32_t, 4> words;
      __builtin_memcpy(&words, pixel + p * 8, 16);
      simt::store_pack(reinterpret_cast<uint32_t*>(to + (i * kRows + 2 * p) * 4), words);
    }
  }
}

template <class T>
void fold_image(simt::stream_t stream, const ConvParams& p, const FewChannels& few, const T* x,
                T* to) {
  const int64_t count = few.over_windows.batch * few.height * few.width;
  simt::launch(
      {.grid = simt::blocks_for(count, kThreads), .block = dim3(kThreads), .stream = stream},
      few.rows == 2 ? fold_image_kernel<T, 2> : fold_image_kernel<T, 4>, x, to,
      layout_of_image(p.in_channels, p.in, p.x_channels_last), int(p.in_channels), count,
      simt::Divisor(few.width), simt::Divisor(few.height), int(p.stride[1]), int(p.pad_begin[1]),
      int(p.pad_begin[2]));
}

/// Which tap and channel of the kernel an element of the depth is.
struct FoldedKernel {
  int rows, pixels, across;                ///< of a line; taps of the copy in a row
  int channels, height, width;             ///< of the kernel
  BRASA_DEVICE_FN int find(int k) const {  ///< in the filter of a column, or -1
    const int line = k / (4 * rows * pixels), c = k % 4, r = k / 4 % rows;
    const int row = line / across * rows + r;
    const int column = line % across * pixels + k / (4 * rows) % pixels;
    const bool there = c < channels && row < height && column < width;
    return there ? (c * height + row) * width + column : -1;
  }
  /// The other way.
  BRASA_DEVICE_FN int place(int filter) const {
    const int column = filter % width, row = filter / width % height, c = filter / width / height;
    const int line = row / rows * across + column / pixels;
    return ((line * pixels + column % pixels) * rows + row % rows) * 4 + c;
  }
};
static FoldedKernel folded_kernel(const ConvParams& p, const FewChannels& few) {
  return {few.rows,           few.pixels,       int(few.over_windows.kernel[2]),
          int(p.in_channels), int(p.kernel[1]), int(p.kernel[2])};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    fold_weights_kernel(const T* w, T* to, FoldedKernel kernel, int64_t depth, int64_t count) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  const int filter = kernel.channels * kernel.height * kernel.width;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    const int64_t column = i / depth;
    const int at = kernel.find(int(i % depth));
    to[i] = at >= 0 ? w[column * filter + at] : T{};
  }
}

template <class T>
void fold_weights(simt::stream_t stream, const ConvParams& p, const FewChannels& few, const T* w,
                  T* to) {
  const int64_t count = p.out_channels * few.depth();
  simt::launch(
      {.grid = simt::blocks_for(count, kThreads), .block = dim3(kThreads), .stream = stream},
      fold_weights_kernel<T>, w, to, folded_kernel(p, few), few.depth(), count);
}

/// A block has a warp's width of columns of one element of their filters.
template <class T>
__global__ void __launch_bounds__(kThreads)
    unfold_weights_kernel(const float* parts, T* dw, FoldedKernel kernel, int64_t depth,
                          int64_t columns, int64_t splits) {
  const int64_t column = int64_t(blockIdx.x) * simt::kWarpSize + threadIdx.x % simt::kWarpSize;
  const int filter = kernel.channels * kernel.height * kernel.width;
  for (int element = int(blockIdx.y); element < filter; element += int(gridDim.y)) {
    const float sum = sum_parts(parts, kernel.place(element) * columns + column, depth * columns,
                                splits, column < columns);
    if (threadIdx.x < simt::kWarpSize && column < columns)
      dw[column * filter + element] = simt::narrow<T>(sum);
  }
}

template <class T>
void unfold_weights(simt::stream_t stream, const ConvParams& p, const FewChannels& few,
                    const float* parts, int64_t splits, T* dw) {
  constexpr int64_t kMostElements = 65535;
  const int64_t columns = simt::ceil_div<int64_t>(p.out_channels, simt::kWarpSize);
  simt::launch(
      {.grid = dim3(unsigned(columns), unsigned(smaller(p.in_channels * p.taps(), kMostElements))),
       .block = dim3(kThreads),
       .stream = stream},
      unfold_weights_kernel<T>, parts, dw, folded_kernel(p, few), few.depth(), p.out_channels,
      splits);
}

/// The numbers of backward data along h and w.
struct InputTaps {
  int taps[2], first[2], kernel[2], stride[2], pad[2];

  InputTaps(const ConvParams& p, const FewInputs& few) {
    for (int d = 0; d < 2; ++d) {
      taps[d] = int(few.axis[d + 1].taps), first[d] = int(few.axis[d + 1].in_first);
      kernel[d] = int(p.kernel[d + 1]), stride[d] = int(p.stride[d + 1]);
      pad[d] = int(p.pad_begin[d + 1]);
    }
  }
  /// Which element of a kernel brings residue r a place `tap` behind the first, or -1.
  BRASA_DEVICE_FN int find(int d, int r, int tap) const {
    const int k = r + pad[d] - stride[d] * (first[d] + tap);
    return k >= 0 && k < kernel[d] ? k : -1;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    fold_input_weights_kernel(const T* w, T* to, InputTaps at, int channels, int outputs, int depth,
                              int64_t count) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    const int output = int(i % depth), tap = int(i / depth % (at.taps[0] * at.taps[1]));
    const int column = int(i / depth / (at.taps[0] * at.taps[1]));
    const int c = column % 4, residue = column / 4;
    const int row = residue / at.stride[1] < at.stride[0]
                        ? at.find(0, residue / at.stride[1], tap / at.taps[1])
                        : -1;
    const int across = at.find(1, residue % at.stride[1], tap % at.taps[1]);
    const bool there = row >= 0 && across >= 0 && c < channels && output < outputs;
    to[i] = there
                ? w[((int64_t(output) * channels + c) * at.kernel[0] + row) * at.kernel[1] + across]
                : T{};
  }
}

template <class T>
void fold_input_weights(simt::stream_t stream, const ConvParams& p, const FewInputs& few,
                        int64_t depth, const T* w, T* to) {
  const int64_t count = few.columns * few.taps() * depth;
  simt::launch(
      {.grid = simt::blocks_for(count, kThreads), .block = dim3(kThreads), .stream = stream},
      fold_input_weights_kernel<T>, w, to, InputTaps(p, few), int(p.in_channels),
      int(p.out_channels), int(depth), count);
}

/// A thread writes a pixel.
template <class T>
__global__ void __launch_bounds__(kThreads)
    unfold_input_kernel(const T* from, T* dx, Layout5 layout, int channels, int64_t count,
                        simt::Divisor width, simt::Divisor height, simt::Divisor across,
                        simt::Divisor down, int residues_across, int64_t places_down,
                        int64_t places_across, int64_t columns) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    int64_t image = i;
    int64_t column = width.take_remainder(image), row = height.take_remainder(image);
    T* to = dx + image * layout.image + row * layout.step[1] + column * layout.step[2];
    const int64_t s = across.take_remainder(column), r = down.take_remainder(row);
    const T* at = from + ((image * places_down + row) * places_across + column) * columns +
                  (r * residues_across + s) * 4;
    const auto pixel = simt::load_pack<4>(at);
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (c < channels) to[c * layout.channel] = pixel[c];
  }
}

template <class T>
void unfold_input(simt::stream_t stream, const ConvParams& p, const FewInputs& few,
                  const T* columns, T* dx) {
  const int64_t count = p.batch * p.in_pixels();
  simt::launch(
      {.grid = simt::blocks_for(count, kThreads), .block = dim3(kThreads), .stream = stream},
      unfold_input_kernel<T>, columns, dx, layout_of_image(p.in_channels, p.in, p.x_channels_last),
      int(p.in_channels), count, simt::Divisor(p.in[2]), simt::Divisor(p.in[1]),
      simt::Divisor(p.stride[2]), simt::Divisor(p.stride[1]), int(p.stride[2]), few.axis[1].count,
      few.axis[2].count, few.columns);
}

#define BRASA_FEW_CHANNELS(T)                                                                    \
  template void fold_image<T>(simt::stream_t, const ConvParams&, const FewChannels&, const T*,   \
                              T*);                                                               \
  template void fold_weights<T>(simt::stream_t, const ConvParams&, const FewChannels&, const T*, \
                                T*);                                                             \
  template void unfold_weights<T>(simt::stream_t, const ConvParams&, const FewChannels&,         \
                                  const float*, int64_t, T*);                                    \
  template void fold_input_weights<T>(simt::stream_t, const ConvParams&, const FewInputs&,       \
                                      int64_t, const T*, T*);                                    \
  template void unfold_input<T>(simt::stream_t, const ConvParams&, const FewInputs&, const T*, T*);
BRASA_FEW_CHANNELS(float16)
BRASA_FEW_CHANNELS(bfloat16)

}  // namespace brasa::cuda
