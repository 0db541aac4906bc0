#include "softmax/softmax.h"

#include "core/vmath.h"
#include "softmax/lines.h"

namespace brasa::cpu::BRASA_ISA {

template <class T> void softmax_forward(Context ctx, const T* x, T* y, AxisShape shape) {
  const bool streaming = shape.n <= kTileElements && streams_lines(y, shape);
  for_pieces<T, true>(ctx, shape, [=]<class Piece>(const Piece& piece, const Placement<T>& place) {
    constexpr int64_t kStates = Piece::kStates;
    alignas(64) T tile[kTileElements], maximum[kStates], factor[kStates];
    const Operand<const T> in = place.input(x, tile);
    const Operand<T> out = place.output(y, tile);
    const Operand<T> exponentials = streaming ? Operand<T>{tile, 1} : place.work(y, tile);
    piece.max_of(in, maximum);
    piece.sum_of(factor, [&](auto k) {
      piece.fetch_next(in, k);
      const Vec<T> e = vexp_below_zero(piece.get(in, k) - piece.state(maximum, k));
      piece.put(exponentials, k, e);
      return e;
    });
    piece.map_state(factor, [&](int64_t i) { return value<Vec<T>>(1) / load(factor + i); });
    piece.each([&](auto k) {
      const Vec<T> e = piece.get(exponentials, k);
      piece.put_result(out, k, e * piece.state(factor, k), streaming);
    });
    place.finish(y, tile);
  });
}

template <class T> void log_softmax_forward(Context ctx, const T* x, T* y, AxisShape shape) {
  const bool streaming = streams_lines(y, shape);
  for_pieces<T, true>(ctx, shape, [=]<class Piece>(const Piece& piece, const Placement<T>& place) {
    constexpr int64_t kStates = Piece::kStates;
    alignas(64) T tile[kTileElements], maximum[kStates], log_sum[kStates];
    const Operand<const T> in = place.input(x, tile);
    const Operand<T> out = place.output(y, tile);
    piece.max_of(in, maximum);
    piece.sum_of(log_sum, [&](auto k) {
      piece.fetch_next(in, k);
      return vexp_below_zero(piece.get(in, k) - piece.state(maximum, k));
    });
    piece.map_state(log_sum, [&](int64_t i) { return vlog(load(log_sum + i)); });
    piece.each([&](auto k) {
      const Vec<T> below = piece.get(in, k) - piece.state(maximum, k);
      piece.put_result(out, k, below - piece.state(log_sum, k), streaming);
    });
    place.finish(y, tile);
  });
}

template <class T>
void softmax_backward(Context ctx, const T* dy, const T* y, T* dx, AxisShape shape) {
  const bool streaming = streams_lines(dx, shape);
  for_pieces<T>(ctx, shape, [=]<class Piece>(const Piece& piece, const Placement<T>& place) {
    constexpr int64_t kStates = Piece::kStates;
    alignas(64) T tile[kTileElements], y_tile[kTileElements], dot[kStates];
    const Operand<const T> g = place.input(dy, tile), p = place.input(y, y_tile);
    const Operand<T> out = place.output(dx, tile);
    piece.sum_of(dot, [&](auto k) { return piece.get(p, k) * piece.get(g, k); });
    piece.each([&](auto k) {
      const Vec<T> d = piece.get(p, k) * (piece.get(g, k) - piece.state(dot, k));
      piece.put_result(out, k, d, streaming);
    });
    place.finish(dx, tile);
  });
}

template <class T>
void log_softmax_backward(Context ctx, const T* dy, const T* y, T* dx, AxisShape shape) {
  const bool streaming = streams_lines(dx, shape);
  for_pieces<T>(ctx, shape, [=]<class Piece>(const Piece& piece, const Placement<T>& place) {
    constexpr int64_t kStates = Piece::kStates;
    alignas(64) T tile[kTileElements], y_tile[kTileElements], sum[kStates];
    const Operand<const T> g = place.input(dy, tile), p = place.input_once(y, y_tile);
    const Operand<T> out = place.output(dx, tile);
    piece.sum_of(sum, [&](auto k) { return piece.get(g, k); });
    piece.each([&](auto k) {
      piece.fetch_next(p, k);
      piece.fetch_next(g, k);
      const Vec<T> d = fma(-vexp(piece.get(p, k)), piece.state(sum, k), piece.get(g, k));
      piece.put_result(out, k, d, streaming);
    });
    place.finish(dx, tile);
  });
}

BRASA_INSTANTIATE(softmax_forward, float, double)
BRASA_INSTANTIATE(softmax_backward, float, double)
BRASA_INSTANTIATE(log_softmax_forward, float, double)
BRASA_INSTANTIATE(log_softmax_backward, float, double)

}  // namespace brasa::cpu::BRASA_ISA
