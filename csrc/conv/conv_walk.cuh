// How Hopper's copy engine walks the pixels of a grid over an image, for the kernels that multiply
// them by matrices (matmul/matmul_wgmma.cuh): the loading thread tells it a tile's first pixel, a
// tap and a line of channels; it finds the other pixels and fills in the padding.
#pragma once

#include "conv/conv_tensor.cuh"
#include "core/driver.cuh"
#include "matmul/matmul_wgmma.cuh"

namespace brasa::cuda {

/// How pixels and taps are counted; pairs are of w and of h.
struct PixelWalk {
  simt::Divisor width, height, chunks, taps;  ///< chunks: lines of a tap; taps: of a row
  int count[2], first[2], step[2], apart[2], images, rows_of_taps;
  int channels, width_of_taps;  ///< where lines of channels and steps to the right end

  struct Place {
    int w, h, image;
  };
  BRASA_DEVICE_FN Place pixel(int64_t index) const {
    const auto w = int(width.take_remainder(index)), h = int(height.take_remainder(index));
    return {first[0] + w * step[0], first[1] + h * step[1], int(index)};
  }
  /// The same, counted in pixels of the grid.
  BRASA_DEVICE_FN Place place(int64_t index) const {
    const auto w = int(width.take_remainder(index)), h = int(height.take_remainder(index));
    return {w, h, int(index)};
  }
  /// `step` pixels of the grid further.
  BRASA_DEVICE_FN void advance(Place& at, const Place& step) const {
    at.w += step.w, at.h += step.h, at.image += step.image;
    if (at.w >= count[0]) at.w -= count[0], ++at.h;
    if (at.h >= count[1]) at.h -= count[1], ++at.image;
  }
  struct Tap {
    int channel, right, down;
    bool there;
  };
  template <class T> BRASA_DEVICE_FN Tap tap(int64_t line) const {
    const auto chunk = int(chunks.take_remainder(line)), across = int(taps.take_remainder(line));
    return {chunk * (kLine128 / int(sizeof(T))), across * apart[0], int(line) * apart[1],
            line < rows_of_taps};
  }
  /// The tap of the next line.
  template <class T> BRASA_DEVICE_FN void advance(Tap& tap) const {
    tap.channel += kLine128 / int(sizeof(T));
    if (tap.channel < channels) return;
    tap.channel = 0, tap.right += apart[0];
    if (tap.right < width_of_taps) return;
    tap.right = 0, tap.down += apart[1];
  }
};

template <class T> PixelWalk walk_of(const PixelOperand<T>& left) {
  constexpr int64_t kDepth = kLine128 / int64_t(sizeof(T));
  const Axis *w = &left.grid.axis[2], *h = &left.grid.axis[1];
  return {.width = simt::Divisor(w->count),
          .height = simt::Divisor(h->count),
          .chunks = simt::Divisor(simt::ceil_div(left.image.channels, kDepth)),
          .taps = simt::Divisor(w->taps),
          .count = {int(w->count), int(h->count)},
          .first = {int(w->in_first), int(h->in_first)},
          .step = {int(w->in_step), int(h->in_step)},
          .apart = {int(w->tap_step), int(h->tap_step)},
          .images = int(left.pixels / (w->count * h->count)),
          .rows_of_taps = int(h->taps),
          .channels = int(left.image.channels),
          .width_of_taps = int(w->taps * w->tap_step)};
}

template <class T>
simt::TensorMap map_pixels(const PixelOperand<T>& left, const PixelWalk& walk, int pixels) {
  constexpr int64_t kItem = sizeof(T);
  const Layout5& layout = left.image.layout;
  simt::PixelBox box{};
  box.base = left.image.data, box.item_bytes = int(kItem), box.channels = left.image.channels;
  box.images = walk.images, box.stride[2] = layout.image * kItem, box.pixels = pixels;
  for (int d = 0; d < 2; ++d) {
    box.size[d] = layout.size[2 - d], box.stride[d] = layout.step[2 - d] * kItem;
    box.first[d] = walk.first[d], box.step[d] = walk.step[d];
    box.count[d] = int(left.grid.axis[2 - d].count);
  }
  return simt::make_pixel_map(box);
}

/// A matrix whose rows are `pitch` elements apart, in boxes of `lines` rows.
template <class T>
simt::TensorMap map_matrix(const T* data, int64_t columns, int64_t rows, int64_t pitch, int lines) {
  constexpr int64_t kItem = sizeof(T);
  return simt::make_tensor_map({.base = data,
                                .item_bytes = int(kItem),
                                .extent = {columns, rows, 1},
                                .stride = {pitch * kItem, pitch * rows * kItem},
                                .lines = lines,
                                .items = 1});
}

}  // namespace brasa::cuda
