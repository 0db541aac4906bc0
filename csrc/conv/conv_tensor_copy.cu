// What convolutions on tensor cores copy: images filled up with channels, packed weights, and the
// gradient of the weight from its parts.
#include "conv/conv_tensor.cuh"
#include "core/ptx_convert.cuh"

namespace brasa::cuda {

/// Pieces of an image: `of_pixel` in all groups, `of_group` in one.
struct PieceOrder {
  int64_t count, group_channels;
  simt::Divisor of_group, of_pixel, pixels;
  bool planes;  ///< the image is C-ordered: neighbouring threads have neighbouring pixels
};

/// A thread writes one piece.
template <class T>
__global__ void __launch_bounds__(kThreads)
    fill_channels_kernel(const T* from, T* to, Layout5 layout, PieceOrder order, int64_t pixels,
                         int64_t of_pixel) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < order.count; i += stride) {
    int64_t image = i, piece, pixel;
    if (order.planes) {
      pixel = order.pixels.take_remainder(image), piece = order.of_pixel.take_remainder(image);
    } else {
      piece = order.of_pixel.take_remainder(image), pixel = order.pixels.take_remainder(image);
    }
    int64_t group = piece;
    const int64_t first = order.of_group.take_remainder(group) * kPiece<T>;
    const T* source = from + image * layout.image + pixel * layout.step[2] +
                      (group * order.group_channels + first) * layout.channel;
    T filled[kPiece<T>];
#pragma unroll
    for (int c = 0; c < kPiece<T>; ++c)
      filled[c] = first + c < order.group_channels ? source[c * layout.channel] : T{};
    simt::Pack<uint32_t, 4> words;  // of 16-bit elements the compiler would store one by one
    __builtin_memcpy(&words, filled, kPieceBytes);
    T* target = to + ((image * pixels + pixel) * of_pixel + piece) * kPiece<T>;
    simt::store_pack(reinterpret_cast<uint32_t*>(target), words);
  }
}

template <class T>
void fill_channels(simt::stream_t stream, const T* from, T* to, const Layout5& layout,
                   int64_t images, int64_t groups, int64_t of_group, int64_t filled) {
  const int64_t pixels = int64_t(layout.size[0]) * layout.size[1] * layout.size[2];
  const int64_t pieces = filled / kPiece<T>, count = images * pixels * groups * pieces;
  if (count == 0) return;
  const PieceOrder order{count,
                         of_group,
                         simt::Divisor(pieces),
                         simt::Divisor(groups * pieces),
                         simt::Divisor(pixels),
                         layout.channel != 1};
  simt::launch(
      {.grid = simt::blocks_for(count, kThreads), .block = dim3(kThreads), .stream = stream},
      fill_channels_kernel<T>, from, to, layout, order, pixels, groups * pieces);
}

// Weights lie [output channel][input channel][tap]: the taps of some channels are one run of
// memory. Blocks read such runs, pass a square of channels and up to nine taps through shared
// memory, and write along what the other layout has innermost, so that both sides move whole
// sectors. Reading a tap at a time touched each sector once per tap: 512 to 512 channels of 3x3
// took 9 us on an H100.
constexpr int kSide = 32;  // of the squares
template <class T> constexpr int kTapsAtOnce = sizeof(T) == 8 ? 4 : 9;
constexpr int kSquareWords = kSide * (kSide + 2) + 8;  // taps begin four banks apart in 16 bits

/// Where a tap's channels go, for column 0 of a group; nowhere where no grid has it.
template <class T> struct PackedTap {
  T* to;
  int64_t depth, pitch;
};
template <class T> BRASA_DEVICE_FN PackedTap<T> find_tap(const WeightPacking<T>& p, int tap) {
  const int width = int(p.kernel[2]), height = int(p.kernel[1]);
  const int at[3] = {tap / width / height, tap / width % height, tap % width};
  for (int g = 0; g < p.count; ++g) {
    const PackedGrid<T>& grid = p.grid[g];
    int64_t index = 0;
    bool there = true;
    for (int d = 0; d < 3; ++d) {
      const Axis& axis = grid.axis[d];
      const int from_first = at[d] - int(axis.kernel_first), step = int(axis.kernel_step);
      const int j = from_first / step;
      there = there && j * step == from_first && j >= 0 && j < axis.taps;
      index = index * axis.taps + j;
    }
    if (there) return {grid.to + index * grid.depth, grid.depth, grid.pitch};
  }
  return {nullptr, 0, 0};
}

/// A block packs kSide output channels x kSide input channels x kTapsAtOnce taps. blockIdx.y counts
/// groups of taps, blockIdx.z groups of channels.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    pack_weights_kernel(const __grid_constant__ WeightPacking<T> p, int64_t across) {
  BRASA_SHARED(T, square, [kTapsAtOnce<T> * kSquareWords]);
  BRASA_SHARED(PackedTap<T>, place, [kTapsAtOnce<T>]);
  const int lane = int(threadIdx.x) % kSide, line = int(threadIdx.x) / kSide;
  constexpr int kLines = kThreads / kSide;
  const bool columns_outside = p.w_column >= p.w_channel;
  const int64_t outer_step = columns_outside ? p.w_column : p.w_channel;
  const int64_t inner_step = columns_outside ? p.w_channel : p.w_column;
  const int64_t first_outer = blockIdx.x / across * kSide;
  const int64_t first_inner = blockIdx.x % across * kSide;
  const int64_t outers = (columns_outside ? p.columns : p.channels) - first_outer;
  const int64_t inners = (columns_outside ? p.channels : p.columns) - first_inner;
  const int64_t first_column = columns_outside ? first_outer : first_inner;
  const int64_t first_channel = columns_outside ? first_inner : first_outer;
  const int kernel = int(p.kernel[0] * p.kernel[1] * p.kernel[2]);
  for (int64_t z = blockIdx.z; z < p.groups; z += gridDim.z) {
    for (int first = int(blockIdx.y) * kTapsAtOnce<T>; first < kernel;
         first += int(gridDim.y) * kTapsAtOnce<T>) {
      const int taps = kernel - first < kTapsAtOnce<T> ? kernel - first : kTapsAtOnce<T>;
      if (int(threadIdx.x) < taps) place[threadIdx.x] = find_tap(p, first + int(threadIdx.x));
      const T* from =
          p.w + z * p.w_group + first_outer * outer_step + first_inner * inner_step + first;
      for (int outer = line; outer < kSide; outer += kLines) {
        int inner = lane / taps, tap = lane % taps;
#pragma unroll kTapsAtOnce < T>
        for (int i = 0; i < taps; ++i) {
          T& to = square[tap * kSquareWords + outer * (kSide + 2) + inner];
          to = outer < outers && inner < inners
                   ? from[outer * outer_step + inner * inner_step + tap]
                   : T{};
          inner += kSide / taps, tap += kSide % taps;
          if (tap >= taps) tap -= taps, ++inner;
        }
      }
      __syncthreads();
      for (int i = line; i < taps * kSide; i += kLines) {
        const int tap = i / kSide, c = i % kSide;
        const int outer = columns_outside ? c : lane, inner = columns_outside ? lane : c;
        const PackedTap<T>& at = place[tap];
        const int64_t column = first_column + c, channel = first_channel + lane;
        if (column < p.columns && channel < at.depth)
          at.to[(z * p.columns + column) * at.pitch + channel] =
              square[tap * kSquareWords + outer * (kSide + 2) + inner];
      }
      __syncthreads();
    }
  }
}

template <class T> void pack_weights(simt::stream_t stream, const WeightPacking<T>& p) {
  constexpr int64_t kMostTaps = 65535;
  int64_t depth = 0;
  for (int g = 0; g < p.count; ++g)
    if (p.grid[g].taps() > 0) depth = larger(depth, p.grid[g].depth);
  if (depth == 0) return;
  const bool columns_outside = p.w_column >= p.w_channel;
  const int64_t down = simt::ceil_div<int64_t>(columns_outside ? p.columns : depth, kSide);
  const int64_t across = simt::ceil_div<int64_t>(columns_outside ? depth : p.columns, kSide);
  const int64_t taps = simt::ceil_div<int64_t>(p.taps(), kTapsAtOnce<T>);
  simt::launch(
      {.grid = dim3(unsigned(down * across), unsigned(smaller(taps, kMostTaps)), grid_z(p.groups)),
       .block = dim3(kThreads),
       .stream = stream},
      pack_weights_kernel<T>, p, across);
}

// The gradient of the weight likewise: blocks read kFinishColumns output channels of some rows
// (tap, channel), add up the parts, and write runs of all taps of some channels.
constexpr int kWeightThreads = 128, kFinishColumns = 32, kPackColumns = 4;
constexpr int kFinishAcross = kFinishColumns / kPackColumns;
constexpr int kMostFinishRows = 72;

/// The parts of dw, [group][tap][channel][column] each, and where their sums go.
struct WeightParts {
  const float* parts;
  int64_t splits, size;  ///< of a part
  int64_t groups, group_out, group_in, channels, taps;
  int channels_at_once;
  bool packs;

  /// The sum of four columns.
  BRASA_DEVICE_FN void add(int64_t at, int live, float (&sum)[kPackColumns]) const {
    constexpr int kAtOnce = 4;
    for (int64_t first = 0; first < splits; first += kAtOnce) {
      float part[kAtOnce][kPackColumns];
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s)
        read_some(parts + (first + s) * size + at, first + s < splits ? live : 0, packs, part[s]);
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) {
#pragma unroll
        for (int i = 0; i < kPackColumns; ++i) sum[i] += part[s][i];
      }
    }
  }
};

/// dw[group, column][channel][tap]. blockIdx.x counts columns, fastest, then channels; blockIdx.y
/// taps, blockIdx.z groups.
template <class T>
__global__ void __launch_bounds__(kWeightThreads)
    finish_weight_kernel(WeightParts p, T* dw, int64_t column_tiles) {
  BRASA_SHARED(float, rows, [kFinishColumns][kMostFinishRows + 1]);
  const int lane = int(threadIdx.x) % kFinishAcross * kPackColumns;
  const int64_t first_column = blockIdx.x % column_tiles * kFinishColumns;
  const int64_t first_channel = blockIdx.x / column_tiles * p.channels_at_once;
  const int64_t columns = p.group_out - first_column, in_columns = columns - lane;
  const int live = in_columns < kPackColumns ? int(in_columns) : kPackColumns;
  const int channels = p.group_in - first_channel < p.channels_at_once
                           ? int(p.group_in - first_channel)
                           : p.channels_at_once;
  const int at_once = kMostFinishRows / p.channels_at_once;
  for (int64_t group = blockIdx.z; group < p.groups; group += gridDim.z) {
    for (int64_t first = int64_t(blockIdx.y) * at_once; first < p.taps;
         first += int64_t(gridDim.y) * at_once) {
      const int taps = p.taps - first < at_once ? int(p.taps - first) : at_once;
      const int count = taps * channels;
      for (int row = int(threadIdx.x) / kFinishAcross; row < count && live > 0;
           row += kWeightThreads / kFinishAcross) {
        const int tap = row / channels, channel = row % channels;
        const int64_t at =
            ((group * p.taps + first + tap) * p.channels + first_channel + channel) * p.group_out +
            first_column + lane;
        float sum[kPackColumns] = {};
        p.add(at, live, sum);
#pragma unroll
        for (int i = 0; i < kPackColumns; ++i) rows[lane + i][channel * taps + tap] = sum[i];
      }
      __syncthreads();
      T* const to =
          dw + ((group * p.group_out + first_column) * p.group_in + first_channel) * p.taps + first;
      const int in_warp = int(threadIdx.x) % simt::kWarpSize;
      for (int column = int(threadIdx.x) / simt::kWarpSize;
           column < kFinishColumns && column < columns;
           column += kWeightThreads / simt::kWarpSize) {
        T* const run = to + column * p.group_in * p.taps;
        for (int i = in_warp; i < count; i += simt::kWarpSize)
          run[i / taps * p.taps + i % taps] = simt::narrow<T>(rows[column][i]);
      }
      __syncthreads();
    }
  }
}

template <class T>
void finish_weight(simt::stream_t stream, const float* parts, int64_t splits, T* dw,
                   const ConvParams& p, int64_t channels) {
  constexpr int64_t kEnoughBlocks = 264, kMostTaps = 65535;
  WeightParts from{.parts = parts,
                   .splits = splits,
                   .size = p.groups * p.taps() * channels * p.group_out(),
                   .groups = p.groups,
                   .group_out = p.group_out(),
                   .group_in = p.group_in(),
                   .channels = channels,
                   .taps = p.taps(),
                   .channels_at_once = 8,
                   .packs = p.group_out() % kPackColumns == 0};
  const int64_t columns = simt::ceil_div<int64_t>(p.group_out(), kFinishColumns);
  const auto tiles = [&] {
    return columns * simt::ceil_div<int64_t>(p.group_in(), from.channels_at_once);
  };
  while (from.channels_at_once > 1 && tiles() * p.groups < kEnoughBlocks)
    from.channels_at_once /= 2;
  const int64_t taps = simt::ceil_div<int64_t>(p.taps(), kMostFinishRows / from.channels_at_once);
  simt::launch(
      {.grid = dim3(unsigned(tiles()), unsigned(smaller(taps, kMostTaps)), grid_z(p.groups)),
       .block = dim3(kWeightThreads),
       .stream = stream},
      finish_weight_kernel<T>, from, dw, columns);
}

#define BRASA_CONV_COPIES(T)                                                                     \
  template void fill_channels<T>(simt::stream_t, const T*, T*, const Layout5&, int64_t, int64_t, \
                                 int64_t, int64_t);                                              \
  template void pack_weights<T>(simt::stream_t, const WeightPacking<T>&);
BRASA_CONV_COPIES(float)
BRASA_CONV_COPIES(double)
BRASA_CONV_COPIES(float16)
BRASA_CONV_COPIES(bfloat16)

#define BRASA_FINISH_WEIGHT(T)                                                                 \
  template void finish_weight<T>(simt::stream_t, const float*, int64_t, T*, const ConvParams&, \
                                 int64_t);
BRASA_FINISH_WEIGHT(float)
BRASA_FINISH_WEIGHT(float16)
BRASA_FINISH_WEIGHT(bfloat16)

}  // namespace brasa::cuda
