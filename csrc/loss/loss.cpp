#include "loss/loss.h"

#include "core/vmath.h"
#include "softmax/lines.h"

namespace brasa::cpu::BRASA_ISA {
namespace {

/// In place of a class: the position takes no part, or its class is out of range. The bindings
/// refuse the latter; it can come up when another thread changes the array meanwhile, and must not
/// read outside.
constexpr int64_t kIgnored = -1, kOutside = -2;

BRASA_INLINE int64_t class_at(const ClassIndices& c, int64_t i) {
  return c.wide ? c.wide[i] : int64_t(c.narrow[i]);
}

template <class T> BRASA_INLINE int64_t class_of(const CrossEntropyParams<T>& p, int64_t position) {
  const int64_t c = class_at(p.classes, position);
  return c == p.ignore_index ? kIgnored : c < 0 || c >= p.shape.n ? kOutside : c;
}

template <class T> BRASA_INLINE T weight_of(const CrossEntropyParams<T>& p, int64_t c) {
  return c < 0 ? T(0) : p.weight ? p.weight[c] : T(1);
}

template <class T> T sum_of_weights(const CrossEntropyParams<T>& p) {
  if (!p.weight) return T(p.shape.n);
  double total = 0;
  for (int64_t c = 0; c < p.shape.n; ++c) total += double(p.weight[c]);
  return T(total);
}

/// w_c q_c of a vector of elements.
template <class T, class Piece, class Index>
BRASA_INLINE Vec<T> weighted_target(const CrossEntropyParams<T>& p, const Piece& piece,
                                    Operand<const T> target, Index k) {
  const T smoothing = T(p.label_smoothing);
  const Vec<T> q = fma(piece.get(target, k), broadcast(T(1 - p.label_smoothing)),
                       broadcast(smoothing / T(p.shape.n)));
  return p.weight ? q * piece.per_element(p.weight, k) : q;
}

/// Losses of a piece against classes.
template <class T, class Piece>
void class_losses(const CrossEntropyParams<T>& p, T weights, const Piece& piece, Operand<const T> x,
                  const T* maximum, const T* log_sum, T* losses) {
  const T smoothing = T(p.label_smoothing), kept = T(1 - p.label_smoothing);
  alignas(64) T spread[Piece::kStates] = {};
  if (smoothing != 0) {
    piece.sum_of(spread, [&](auto k) {
      const Vec<T> below = piece.state(maximum, k) - piece.get(x, k);
      return p.weight ? below * piece.per_element(p.weight, k) : below;
    });
  }
  for (int64_t i = 0; i < piece.lines(); ++i) {
    const int64_t c = class_of(p, piece.line + i);
    if (c < 0) {
      losses[i] = c == kIgnored ? T(0) : T(__builtin_nan(""));
      continue;
    }
    losses[i] =
        kept * weight_of(p, c) * ((maximum[i] - x.data[piece.position(x, c, i)]) + log_sum[i]);
    if (smoothing != 0)
      losses[i] += smoothing / T(p.shape.n) * fma_scalar(weights, log_sum[i], spread[i]);
  }
}

template <class T>
void forward_positions(Context ctx, const T* logits, const CrossEntropyParams<T>& p, T* losses,
                       T* statistics) {
  const T weights = sum_of_weights(p);
  const int64_t positions = p.shape.lines();
  for_pieces<T>(ctx, p.shape, [=, &p]<class Piece>(const Piece& piece, const Placement<T>& place) {
    alignas(64) T tile[kTileElements], maximum[Piece::kStates], log_sum[Piece::kStates];
    const Operand<const T> x = place.input(logits, tile);
    piece.max_of(x, maximum);
    piece.sum_of(log_sum, [&](auto k) {
      piece.fetch_next(x, k);
      return vexp_below_zero(piece.get(x, k) - piece.state(maximum, k));
    });
    piece.map_state(log_sum, [&](int64_t i) { return vlog(load(log_sum + i)); });
    T* const losses_here = losses + piece.line;
    if (p.probabilities) {
      alignas(64) T target_tile[kTileElements], total[Piece::kStates];
      const Operand<const T> target = place.input_once(p.probabilities, target_tile);
      piece.sum_of(total, [&](auto k) {
        const Vec<T> below = piece.state(maximum, k) - piece.get(x, k);
        return weighted_target(p, piece, target, k) * (below + piece.state(log_sum, k));
      });
      for (int64_t i = 0; i < piece.lines(); ++i) losses_here[i] = total[i];
    } else {
      class_losses(p, weights, piece, x, maximum, log_sum, losses_here);
    }
    if (statistics) {
      for (int64_t i = 0; i < piece.lines(); ++i) {
        statistics[piece.line + i] = maximum[i];
        statistics[positions + piece.line + i] = log_sum[i];
      }
    }
  });
}

/// Sum of f(i) for i < n in float64: 16 lanes, then LaneSum's tree.
template <class F> double sum_in_lanes(int64_t n, const F& f) {
  double lane[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int l = 0; l < 16; ++l) lane[l] += f(i + l);
  for (int l = 0; i < n; ++i, ++l) lane[l] += f(i);
  for (int step = 8; step; step /= 2)
    for (int l = 0; l < step; ++l) lane[l] += lane[l + step];
  return lane[0];
}

template <class T> double divisor_of(const CrossEntropyParams<T>& p) {
  if (p.reduction == Reduction::sum) return 1;
  if (p.probabilities) return double(p.shape.lines());
  return sum_in_lanes(p.shape.lines(),
                      [&](int64_t i) { return double(weight_of(p, class_of(p, i))); });
}

}  // namespace

template <class T> size_t cross_entropy_workspace(const CrossEntropyParams<T>& params) {
  return params.reduction == Reduction::none ? 0 : size_t(params.shape.lines()) * sizeof(T);
}

template <class T>
void cross_entropy_forward(Context ctx, const T* logits, CrossEntropyParams<T> params,
                           Wide<T>* losses, Wide<T>* statistics, Wide<T>* divisor) {
  if (params.reduction == Reduction::none) {
    forward_positions(ctx, logits, params, losses, statistics);
    return;
  }
  T* const of_position = static_cast<T*>(ctx.workspace);
  forward_positions(ctx, logits, params, of_position, statistics);
  const double total =
      sum_in_lanes(params.shape.lines(), [=](int64_t i) { return double(of_position[i]); });
  const double by = divisor_of(params);
  losses[0] = T(total / by);
  if (divisor) divisor[0] = T(by);
}

template <class T>
void cross_entropy_backward(Context ctx, const Wide<T>* dy, const T* logits,
                            CrossEntropyParams<T> params, const Wide<T>* statistics,
                            const Wide<T>* divisor, T* dlogits) {
  const bool reduced = params.reduction != Reduction::none;
  const T weights = sum_of_weights(params), kept = T(1 - params.label_smoothing);
  const T share = T(params.label_smoothing) / T(params.shape.n);
  const int64_t positions = params.shape.lines();
  const bool streaming = streams_lines(dlogits, params.shape);
  for_pieces<T>(
      ctx, params.shape,
      [=, p = &params]<class Piece>(const Piece& piece, const Placement<T>& place) {
        alignas(64) T tile[kTileElements], target_tile[kTileElements];
        alignas(64) T maximum[Piece::kStates], log_sum[Piece::kStates], g[Piece::kStates] = {};
        alignas(64) T of_p[Piece::kStates] = {};
        const Operand<const T> x = place.input_once(logits, tile);
        const Operand<T> out = place.output(dlogits, tile);
        for (int64_t i = 0; i < piece.lines(); ++i) {
          const int64_t at = piece.line + i;
          const int64_t c = p->probabilities ? 0 : class_of(*p, at);
          g[i] = c < 0 ? T(0) : reduced ? dy[0] / divisor[0] : dy[at];
          of_p[i] = g[i] * fma_scalar(kept, weight_of(*p, c), share * weights);
          maximum[i] = statistics[at];
          log_sum[i] = statistics[positions + at];
        }
        const auto probability = [&](auto k) {
          return vexp(piece.get(x, k) - piece.state(maximum, k) - piece.state(log_sum, k));
        };
        if (p->probabilities) {
          const Operand<const T> target = place.input(p->probabilities, target_tile);
          piece.sum_of(of_p, [&](auto k) { return weighted_target(*p, piece, target, k); });
          piece.each([&](auto k) {
            const Vec<T> q = weighted_target(*p, piece, target, k);
            piece.put(out, k, piece.state(g, k) * fma(piece.state(of_p, k), probability(k), -q));
          });
        } else {
          piece.each([&](auto k) {
            const Vec<T> a = piece.state(of_p, k);
            Vec<T> d = a == Vec<T>{} ? Vec<T>{} : a * probability(k);
            if (share != 0) {
              const Vec<T> w = p->weight ? piece.per_element(p->weight, k) : broadcast(T(1));
              d -= piece.state(g, k) * broadcast(share) * w;
            }
            piece.put_result(out, k, d, streaming);
          });
          for (int64_t i = 0; i < piece.lines(); ++i) {
            const int64_t c = class_of(*p, piece.line + i);
            if (c >= 0) out.data[piece.position(out, c, i)] -= g[i] * kept * weight_of(*p, c);
          }
        }
        place.finish(dlogits, tile);
      });
}

BRASA_INSTANTIATE(cross_entropy_forward, float, double)
BRASA_INSTANTIATE(cross_entropy_workspace, float, double)
BRASA_INSTANTIATE(cross_entropy_backward, float, double)

}  // namespace brasa::cpu::BRASA_ISA
