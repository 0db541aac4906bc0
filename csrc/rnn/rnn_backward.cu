// The recurrence backward on CUDA: cells for the steps of rnn_tile.cuh, which walk from the last
// step to the first. A step multiplies the gradients of the step after it by W_hh, then finishes
// its own; what does not go through W_hh waits in dh0 and dc0. One more step leaves dh0.
#include "rnn/rnn.h"
#include "rnn/rnn_rows.cuh"

namespace brasa::cuda {

/// The row that a backward step is at, and whether the step before it, one later in time, left a
/// gradient that goes through W_hh.
struct BackwardRow {
  int64_t t, row;
  bool inside, alive, from_next;

  static BRASA_DEVICE_FN BackwardRow at(const RnnParams& p, int64_t step, int64_t b) {
    BackwardRow r;
    r.inside = step < p.steps;
    r.t = time_of(p, p.steps - 1 - (r.inside ? step : p.steps - 1));
    r.row = row_of(p, r.t, b);
    r.alive = r.inside && is_alive(p, r.t, b);
    r.from_next = step > 0 && is_alive(p, time_of(p, p.steps - step), b);
    return r;
  }
};

/// What every step works on.
template <class T> struct BackwardCall {
  RnnParams p;
  RnnBackward<T> a;
  Carried<T> dh, dc;
  Clipped<T> clipped;
};

/// dh of a row: what waits in dh0, dy, and the product, where there is one.
template <class T> struct StateGradient {
  using W = Wide<T>;
  BackwardRow at;
  W waiting, dy, before;

  static BRASA_DEVICE_FN StateGradient fetch(const BackwardCall<T>& f, int64_t step, int64_t b,
                                             int64_t k) {
    const RnnParams& p = f.p;
    StateGradient g{BackwardRow::at(p, step, b), f.dh.get(b * p.state + k), W(0), W(0)};
    if (!g.at.alive) return g;
    if (f.a.dy) g.dy = simt::widen(f.a.dy[g.at.row * p.state + k]);
    g.before = state_before(p, f.a.y, f.a.h0, p.state, g.at.t, b, k);
    return g;
  }

  /// Leaves what passes by a row that is not alive in dh0 and returns false; keeps h'.
  BRASA_DEVICE_FN bool take(const BackwardCall<T>& f, int64_t b, int64_t k, W product,
                            W& dh) const {
    const W passing = at.from_next ? waiting + product : waiting;
    if (!at.alive) f.dh.put(b * f.p.state + k, passing);
    if (at.inside && f.a.previous) f.a.previous[at.row * f.p.state + k] = simt::narrow<T>(before);
    dh = dy + passing;
    return at.alive;
  }
};

/// d-gates of an LSTM's unit from dm.
template <class T> struct LstmGradient {
  using W = Wide<T>;
  BackwardCall<T> f;
  Exchange<T> exchange;

  struct Operands {
    W gate[4], c, before, dc;
  };
  BRASA_DEVICE_FN Operands fetch(const BackwardRow& at, int64_t b, int64_t u) const {
    const RnnParams& p = f.p;
    Operands o{};
    if (!at.alive) return o;
#pragma unroll
    for (int g = 0; g < 4; ++g) o.gate[g] = simt::widen(f.a.gates[(at.row * 4 + g) * p.hidden + u]);
    o.c = simt::widen(f.a.cells[at.row * p.hidden + u]);
    o.before = state_before(p, f.a.cells, f.a.c0, p.hidden, at.t, b, u);
    o.dc = f.dc.get(b * p.hidden + u);
    return o;
  }

  BRASA_DEVICE_FN void put(const BackwardRow& at, int64_t step, int64_t b, int64_t u, W dm,
                           const Operands& o) const {
    if (!at.inside) return;
    const RnnParams& p = f.p;
    W d[4] = {}, dc = o.dc, m = 0;
    if (at.alive) {
      const W* const peephole = f.a.peephole ? f.a.peephole + u : nullptr;
      const W tanh_c = vtanh(o.c);
      m = o.gate[3] * tanh_c;
      d[3] = dm * tanh_c * f.clipped.sigmoid_slope(o.gate[3]);
      dc += dm * o.gate[3] * (W(1) - tanh_c * tanh_c);
      if (peephole) dc += d[3] * peephole[2 * p.hidden];
      d[0] = dc * o.gate[2] * f.clipped.sigmoid_slope(o.gate[0]);
      d[1] = dc * o.before * f.clipped.sigmoid_slope(o.gate[1]);
      d[2] = dc * o.gate[0] * f.clipped.tanh_slope(o.gate[2]);
      dc *= o.gate[1];
      if (peephole) dc = fma(d[0], peephole[0], fma(d[1], peephole[p.hidden], dc));
      f.dc.put(b * p.hidden + u, dc);
    }
    if (f.a.m) f.a.m[at.row * p.hidden + u] = simt::narrow<T>(m);
    T* const to = exchange.row(step + 1, b) + u;
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      const T gradient = simt::narrow<T>(d[g]);
      f.a.dgates[(at.row * 4 + g) * p.hidden + u] = gradient;
      to[g * p.hidden] = gradient;
    }
    if (!f.a.dpeephole) return;
    T* const terms = f.a.dpeephole + at.row * 3 * p.hidden + u;
    terms[0] = simt::narrow<T>(d[0] * o.before);
    terms[p.hidden] = simt::narrow<T>(d[1] * o.before);
    terms[2 * p.hidden] = simt::narrow<T>(d[3] * o.c);
  }
};

template <class T> struct LstmBackwardStep {
  static constexpr int kSums = 1;
  static constexpr bool kAcross = true;
  LstmGradient<T> gradient;

  struct Operands {
    StateGradient<T> state;
    typename LstmGradient<T>::Operands cell;
  };
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    const auto state = StateGradient<T>::fetch(gradient.f, step, b, u);
    return {state, gradient.fetch(state.at, b, u)};
  }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const Wide<T> (&product)[1],
                              const Operands& o) const {
    const BackwardCall<T>& f = gradient.f;
    Wide<T> dh;
    if (o.state.take(f, b, u, product[0], dh)) f.dh.put(b * f.p.state + u, Wide<T>(0));
    gradient.put(o.state.at, step, b, u, dh, o.cell);
  }
};

/// dh of the projected state, for the second product.
template <class T> struct ProjectedStateStep {
  static constexpr int kSums = 1;
  static constexpr bool kAcross = true;
  BackwardCall<T> f;
  Exchange<T> exchange;

  using Operands = StateGradient<T>;
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t k) const {
    return Operands::fetch(f, step, b, k);
  }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t k, const Wide<T> (&product)[1],
                              const Operands& o) const {
    Wide<T> dh;
    if (o.take(f, b, k, product[0], dh)) {
      f.dh.put(b * f.p.state + k, Wide<T>(0));
    } else {
      dh = 0;
    }
    if (!o.at.inside) return;
    const T gradient = simt::narrow<T>(dh);
    f.a.dh[o.at.row * f.p.state + k] = gradient;
    exchange.row(step, b)[k] = gradient;
  }
};

/// d-gates from dm = dh W_hr.
template <class T> struct ProjectionBackwardStep {
  static constexpr int kSums = 1;
  static constexpr bool kAcross = true;
  LstmGradient<T> gradient;

  struct Operands {
    BackwardRow at;
    typename LstmGradient<T>::Operands cell;
  };
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    const auto at = BackwardRow::at(gradient.f.p, step, b);
    return {at, gradient.fetch(at, b, u)};
  }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const Wide<T> (&dm)[1],
                              const Operands& o) const {
    gradient.put(o.at, step, b, u, dm[0], o.cell);
  }
};

template <class T> struct GruOperands {
  using W = Wide<T>;
  StateGradient<T> state;
  W r, z, n;

  static BRASA_DEVICE_FN GruOperands fetch(const BackwardCall<T>& f, int64_t step, int64_t b,
                                           int64_t u) {
    GruOperands o{StateGradient<T>::fetch(f, step, b, u), W(0), W(0), W(0)};
    if (!o.state.at.alive) return o;
    const T* const gates = f.a.gates + o.state.at.row * 3 * f.p.hidden + u;
    o.r = simt::widen(gates[0]), o.z = simt::widen(gates[f.p.hidden]);
    o.n = simt::widen(gates[2 * f.p.hidden]);
    return o;
  }
  BRASA_DEVICE_FN W dz(const BackwardCall<T>& f, W dh) const {
    return dh * (state.before - n) * f.clipped.sigmoid_slope(z);
  }
  BRASA_DEVICE_FN W dn(const BackwardCall<T>& f, W dh) const {
    return dh * (W(1) - z) * f.clipped.tanh_slope(n);
  }
};

template <class T> struct GruBackwardStep {
  static constexpr int kSums = 1;
  static constexpr bool kAcross = true;
  using W = Wide<T>;
  BackwardCall<T> f;
  Exchange<T> exchange;

  struct Operands {
    GruOperands<T> gru;
    W v;
  };
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    Operands o{GruOperands<T>::fetch(f, step, b, u), W(0)};
    if (o.gru.state.at.alive) o.v = simt::widen(f.a.v[o.gru.state.at.row * f.p.hidden + u]);
    return o;
  }

  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const W (&product)[1],
                              const Operands& o) const {
    W dh, dr = 0, dz = 0, dn = 0, dv = 0;
    if (o.gru.state.take(f, b, u, product[0], dh)) {
      dz = o.gru.dz(f, dh);
      dn = o.gru.dn(f, dh);
      dv = dn * o.gru.r;
      dr = dn * o.v * f.clipped.sigmoid_slope(o.gru.r);
      f.dh.put(b * f.p.hidden + u, dh * o.gru.z);
    }
    if (!o.gru.state.at.inside) return;
    const int64_t row = o.gru.state.at.row, h = f.p.hidden;
    T *const d = f.a.dgates + row * 3 * h + u, *const to = exchange.row(step + 1, b) + u;
    to[0] = d[0] = simt::narrow<T>(dr);
    to[h] = d[h] = simt::narrow<T>(dz);
    to[2 * h] = f.a.dv[row * h + u] = simt::narrow<T>(dv);
    d[2 * h] = simt::narrow<T>(dn);
  }
};

/// With the reset before the product: d-z and d-n, which is multiplied by W_hn.
template <class T> struct GruNewBackwardStep {
  static constexpr int kSums = 1;
  static constexpr bool kAcross = true;
  BackwardCall<T> f;
  Exchange<T> news;

  using Operands = GruOperands<T>;
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    return Operands::fetch(f, step, b, u);
  }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const Wide<T> (&product)[1],
                              const Operands& o) const {
    Wide<T> dh, dz = 0, dn = 0;
    if (o.state.take(f, b, u, product[0], dh)) {
      dz = o.dz(f, dh);
      dn = o.dn(f, dh);
      f.dh.put(b * f.p.hidden + u, dh * o.z);
    }
    if (!o.state.at.inside) return;
    T* const d = f.a.dgates + o.state.at.row * 3 * f.p.hidden + u;
    d[f.p.hidden] = simt::narrow<T>(dz);
    news.row(step, b)[u] = d[2 * f.p.hidden] = simt::narrow<T>(dn);
  }
};

/// d-r from d-n W_hn, and what of that goes past W_hh.
template <class T> struct GruResetBackwardStep {
  static constexpr int kSums = 1;
  static constexpr bool kAcross = true;
  using W = Wide<T>;
  BackwardCall<T> f;
  Exchange<T> exchange;

  struct Operands {
    BackwardRow at;
    W r, waiting, before;
    T dz;
  };
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    const RnnParams& p = f.p;
    Operands o{BackwardRow::at(p, step, b), W(0), W(0), W(0), T{}};
    if (!o.at.alive) return o;
    o.r = simt::widen(f.a.gates[o.at.row * 3 * p.hidden + u]);
    o.dz = f.a.dgates[(o.at.row * 3 + 1) * p.hidden + u];
    o.waiting = f.dh.get(b * p.hidden + u);
    o.before = state_before(p, f.a.y, f.a.h0, p.hidden, o.at.t, b, u);
    return o;
  }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const W (&product)[1],
                              const Operands& o) const {
    const RnnParams& p = f.p;
    const W slope = f.clipped.sigmoid_slope(o.r);
    const W dr = o.at.alive ? product[0] * o.before * slope : W(0);
    if (o.at.alive) f.dh.put(b * p.hidden + u, o.waiting + product[0] * o.r);
    T* const to = exchange.row(step + 1, b) + u;
    to[0] = f.a.dgates[o.at.row * 3 * p.hidden + u] = simt::narrow<T>(dr);
    to[p.hidden] = o.dz;
    f.a.reset[o.at.row * p.hidden + u] = simt::narrow<T>(o.r * o.before);
  }
};

template <class T> struct SimpleBackwardStep {
  static constexpr int kSums = 1;
  static constexpr bool kAcross = true;
  using W = Wide<T>;
  BackwardCall<T> f;
  Exchange<T> exchange;

  struct Operands {
    StateGradient<T> state;
    W h;
  };
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    Operands o{StateGradient<T>::fetch(f, step, b, u), W(0)};
    if (o.state.at.alive) o.h = simt::widen(f.a.y[o.state.at.row * f.p.hidden + u]);
    return o;
  }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const W (&product)[1],
                              const Operands& o) const {
    const auto& clipped = f.clipped;
    W dh, d = 0;
    if (o.state.take(f, b, u, product[0], dh)) {
      d = dh * (f.p.cell == RnnCell::rnn_relu ? clipped.relu_slope(o.h) : clipped.tanh_slope(o.h));
      f.dh.put(b * f.p.hidden + u, W(0));
    }
    if (!o.state.at.inside) return;
    exchange.row(step + 1, b)[u] = f.a.dgates[o.state.at.row * f.p.hidden + u] = simt::narrow<T>(d);
  }
};

// ----------------------------------------------------------------------------------------
// launchers

static ExchangeSizes backward_sizes(const RnnParams& p) {
  if (p.cell == RnnCell::gru_reset_before) return {2 * p.hidden, p.hidden};
  return {rnn_gates(p.cell) * p.hidden, p.projected ? p.state : 0};
}

template <class T> size_t rnn_backward_workspace(const RnnParams& p, int) {
  return backward_sizes(p).bytes<T>(p);
}

template <class T>
static void lstm_backward(Context ctx, const BackwardCall<T>& f, const Exchanges<T>& exchanges,
                          const StepProduct<T>& product) {
  const RnnParams& p = f.p;
  start_states(ctx, p, f.a.dc_n, f.dc, p.hidden);
  const LstmGradient<T> gradient{f, exchanges.states};
  if (!p.projected) return run_steps(ctx, product, LstmBackwardStep<T>{gradient}, p.steps + 1);
  const StepProduct<T> projection(exchanges.second, p.hidden, p.state, {f.a.w_hr, 1, 0, p.hidden});
  for (int64_t step = 0; step <= p.steps; ++step) {
    run_step(ctx, product, ProjectedStateStep<T>{f, exchanges.second}, step);
    if (step < p.steps) run_step(ctx, projection, ProjectionBackwardStep<T>{gradient}, step);
  }
}

template <class T>
static void gru_backward(Context ctx, const BackwardCall<T>& f, const Exchanges<T>& exchanges,
                         const StepProduct<T>& product) {
  const int64_t h = f.p.hidden, steps = f.p.steps;
  if (f.p.cell == RnnCell::gru)
    return run_steps(ctx, product, GruBackwardStep<T>{f, exchanges.states}, steps + 1);
  const StepProduct<T> news(exchanges.second, h, h, {f.a.w_hh + 2 * h * h, 1, 0, h});
  for (int64_t step = 0; step <= steps; ++step) {
    run_step(ctx, product, GruNewBackwardStep<T>{f, exchanges.second}, step);
    if (step < steps) run_step(ctx, news, GruResetBackwardStep<T>{f, exchanges.states}, step);
  }
}

template <class T> void rnn_backward(Context ctx, const RnnParams& p, const RnnBackward<T>& a) {
  const ExchangeSizes sizes = backward_sizes(p);
  const Exchanges<T> exchanges(ctx, p, sizes);
  const BackwardCall<T> f{p, a, {exchanges.h, a.dh0}, {exchanges.c, a.dc0}, Clipped<T>(p)};
  start_states(ctx, p, a.dh_n, f.dh, p.state);
  const StepProduct<T> product(exchanges.states, p.state, sizes.states, {a.w_hh, 1, 0, p.state});
  if (p.cell == RnnCell::lstm) return lstm_backward(ctx, f, exchanges, product);
  if (rnn_gates(p.cell) == 3) return gru_backward(ctx, f, exchanges, product);
  run_steps(ctx, product, SimpleBackwardStep<T>{f, exchanges.states}, p.steps + 1);
}

BRASA_INSTANTIATE(rnn_backward_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(rnn_backward, float, double, float16, bfloat16)

}  // namespace brasa::cuda
