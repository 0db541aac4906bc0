#include "conv/conv_depthwise.h"

#include "conv/conv_depthwise_bands.h"

namespace brasa::cpu::BRASA_ISA {

/// Rows of pixels that are handed to a thread together.
constexpr int64_t kBandRows = 4;

/// Bytes of x and y from which rows are fetched ahead: pixels lie too far apart for hardware to see
/// what comes. From DRAM 128 channels at 56x56 take 40 % of the time, from L3 5 to 20 % more.
constexpr int64_t kFetchedBytes = 20 << 20;

template <class T> static bool is_fetched(const ConvParams& p) {
  const int64_t pixels = p.in_pixels() + p.out_pixels();
  return p.in[0] == 1 && p.batch * p.in_channels * pixels * int64_t(sizeof(T)) >= kFetchedBytes;
}

template <class T>
void depthwise_forward(Context ctx, const T* x, const T* w, T* y, const ConvParams& p,
                       const Epilogue<T>& epilogue) {
  if (is_banded<T>(p)) return forward_by_bands(ctx, x, w, y, p, epilogue);
  Arena arena(ctx.workspace);
  const PackedBlocks<T> packed(arena, p, whole_blocks<T>(p.in_channels));
  pack_blocks(ctx, packed, w, epilogue.bias);
  DepthwiseGather<T> g = make_gather(p, packed, plain_source(x, p.in_channels, p.in), y, p.out);
  set_axes(g, forward_axis(p, 0), forward_axis(p, 1), forward_axis(p, 2),
           p.in_channels >= kLanes<T>);
  g.ahead = is_fetched<T>(p);
  Epilogue<T> rest = epilogue;
  rest.bias = nullptr;
  const RowEpilogue<T> finish(rest);
  const int64_t row_elements = p.out[2] * p.out_channels;
  const EvenCut bands(g.rows(), kBandRows);
  parallel_for(ctx, p.batch * bands.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / bands.count, begin = bands.first(i % bands.count);
      const int64_t end = bands.first(i % bands.count + 1);
      gather_band(g, n, begin, end);
      T* out = y + n * g.out_image + begin * row_elements;
      if (!rest.is_trivial()) finish.apply(out, (end - begin) * row_elements, 0, out - y);
    }
  });
}

/// Band i of `bands` of one image: the pixels of all residues, so that dy is read while in cache.
template <class T>
static void backward_band(DepthwiseGather<T> g, const ConvParams& p, int64_t n, int64_t i,
                          int64_t bands) {
  const int64_t count[3] = {residues(p, 0), residues(p, 1), residues(p, 2)};
  for (int64_t k = 0; k < count[0] * count[1] * count[2]; ++k) {
    set_axes(g, backward_axis(p, 0, k / (count[1] * count[2])),
             backward_axis(p, 1, k / count[2] % count[1]), backward_axis(p, 2, k % count[2]),
             p.in_channels >= kLanes<T>);
    gather_band(g, n, g.rows() * i / bands, g.rows() * (i + 1) / bands);
  }
}

template <class T>
void depthwise_backward_input(Context ctx, const T* dy, const T* w, T* dx, const ConvParams& p) {
  Arena arena(ctx.workspace);
  const PackedBlocks<T> packed(arena, p, whole_blocks<T>(p.in_channels));
  pack_blocks<T>(ctx, packed, w, nullptr);
  T* out = p.x_channels_last ? dx : arena.take<T>(p.batch * p.in_pixels() * p.in_channels);
  DepthwiseGather<T> g = make_gather(p, packed, plain_source(dy, p.out_channels, p.out), out, p.in);
  g.ahead = is_fetched<T>(p);
  const int64_t rows = ceil_div(p.in[0], p.stride[0]) * ceil_div(p.in[1], p.stride[1]);
  const int64_t bands = ceil_div(rows, kBandRows);
  parallel_for(ctx, p.batch * bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) backward_band(g, p, i / bands, i % bands, bands);
  });
  if (out != dx) separate_channels(ctx, out, dx, p.batch, p.in_channels, p.in);
}

template <class T> size_t depthwise_workspace(const ConvParams& p, int threads) {
  Arena forward(nullptr), backward(nullptr);
  PackedBlocks<T>(forward, p, whole_blocks<T>(p.in_channels));
  if (is_banded<T>(p)) BandPlan<T>(forward, p, threads);
  if (!p.x_channels_last) backward.take<T>(p.batch * p.in_pixels() * p.in_channels);
  backward.take<T>(larger(kLanes<T> * ceil_div(p.in_channels, kLanes<T>) * (1 + p.taps()),
                          depthwise_parts(p) * p.taps() * p.in_channels) +
                   64);
  return size_t(larger(int64_t(forward.used()), int64_t(backward.used())));
}

BRASA_INSTANTIATE(depthwise_forward, float, double)
BRASA_INSTANTIATE(depthwise_backward_input, float, double)
BRASA_INSTANTIATE(depthwise_workspace, float, double)

}  // namespace brasa::cpu::BRASA_ISA
