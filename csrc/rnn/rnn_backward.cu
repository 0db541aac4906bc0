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

/// dh of a row: what waits in dh0, dy, and the product, where there is one.
template <class T> struct StateGradient {
  BackwardRow at;
  T waiting, dy, before;

  static BRASA_DEVICE_FN StateGradient fetch(const RnnParams& p, const RnnBackward<T>& a,
                                             int64_t step, int64_t b, int64_t k) {
    StateGradient g{BackwardRow::at(p, step, b), a.dh0[b * p.state + k], T(0), T(0)};
    if (!g.at.alive) return g;
    if (a.dy) g.dy = a.dy[g.at.row * p.state + k];
    g.before = state_before(p, a.y, a.h0, p.state, g.at.t, b, k);
    return g;
  }

  /// Leaves what passes by a row that is not alive in dh0 and returns false; keeps h'.
  BRASA_DEVICE_FN bool take(const RnnParams& p, const RnnBackward<T>& a, int64_t b, int64_t k,
                            T product, T& dh) const {
    const T passing = at.from_next ? waiting + product : waiting;
    if (!at.alive) a.dh0[b * p.state + k] = passing;
    if (at.inside && a.previous) a.previous[at.row * p.state + k] = before;
    dh = dy + passing;
    return at.alive;
  }
};

/// d-gates of an LSTM's unit from dm.
template <class T> struct LstmGradient {
  RnnParams p;
  RnnBackward<T> a;
  Exchange<T> exchange;
  Clipped<T> clipped;

  struct Operands {
    T gate[4], c, before, dc;
  };
  BRASA_DEVICE_FN Operands fetch(const BackwardRow& at, int64_t b, int64_t u) const {
    Operands o{};
    if (!at.alive) return o;
#pragma unroll
    for (int g = 0; g < 4; ++g) o.gate[g] = a.gates[(at.row * 4 + g) * p.hidden + u];
    o.c = a.cells[at.row * p.hidden + u];
    o.before = state_before(p, a.cells, a.c0, p.hidden, at.t, b, u);
    o.dc = a.dc0[b * p.hidden + u];
    return o;
  }

  BRASA_DEVICE_FN void put(const BackwardRow& at, int64_t step, int64_t b, int64_t u, T dm,
                           const Operands& o) const {
    if (!at.inside) return;
    T d[4] = {}, dc = o.dc;
    if (at.alive) {
      const T* const peephole = a.peephole ? a.peephole + u : nullptr;
      const T tanh_c = vtanh(o.c);
      d[3] = dm * tanh_c * clipped.sigmoid_slope(o.gate[3]);
      dc += dm * o.gate[3] * (T(1) - tanh_c * tanh_c);
      if (peephole) dc += d[3] * peephole[2 * p.hidden];
      d[0] = dc * o.gate[2] * clipped.sigmoid_slope(o.gate[0]);
      d[1] = dc * o.before * clipped.sigmoid_slope(o.gate[1]);
      d[2] = dc * o.gate[0] * clipped.tanh_slope(o.gate[2]);
      dc *= o.gate[1];
      if (peephole) dc = fma(d[0], peephole[0], fma(d[1], peephole[p.hidden], dc));
      a.dc0[b * p.hidden + u] = dc;
      if (a.m) a.m[at.row * p.hidden + u] = o.gate[3] * tanh_c;
    } else if (a.m) {
      a.m[at.row * p.hidden + u] = T(0);
    }
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      a.dgates[(at.row * 4 + g) * p.hidden + u] = d[g];
      exchange.row(step + 1, b)[g * p.hidden + u] = d[g];
    }
    if (!a.dpeephole) return;
    T* const terms = a.dpeephole + at.row * 3 * p.hidden + u;
    terms[0] = d[0] * o.before, terms[p.hidden] = d[1] * o.before, terms[2 * p.hidden] = d[3] * o.c;
  }
};

template <class T> struct LstmBackwardStep {
  static constexpr int kColumns = 4, kParts = 4;
  LstmGradient<T> gradient;

  struct Operands {
    StateGradient<T> state;
    typename LstmGradient<T>::Operands cell;
  };
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    const auto state = StateGradient<T>::fetch(gradient.p, gradient.a, step, b, u);
    return {state, gradient.fetch(state.at, b, u)};
  }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const T (&product)[1],
                              const Operands& o) const {
    T dh;
    if (o.state.take(gradient.p, gradient.a, b, u, product[0], dh))
      gradient.a.dh0[b * gradient.p.state + u] = T(0);
    gradient.put(o.state.at, step, b, u, dh, o.cell);
  }
};

/// dh of the projected state, for the second product.
template <class T> struct ProjectedStateStep {
  static constexpr int kColumns = 4, kParts = 4;
  RnnParams p;
  RnnBackward<T> a;
  Exchange<T> exchange;

  using Operands = StateGradient<T>;
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t k) const {
    return Operands::fetch(p, a, step, b, k);
  }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t k, const T (&product)[1],
                              const Operands& o) const {
    T dh;
    if (o.take(p, a, b, k, product[0], dh)) {
      a.dh0[b * p.state + k] = T(0);
    } else {
      dh = 0;
    }
    if (!o.at.inside) return;
    a.dh[o.at.row * p.state + k] = dh;
    exchange.row(step, b)[k] = dh;
  }
};

/// d-gates from dm = dh W_hr.
template <class T> struct ProjectionBackwardStep {
  static constexpr int kColumns = 4, kParts = 4;
  LstmGradient<T> gradient;

  struct Operands {
    BackwardRow at;
    typename LstmGradient<T>::Operands cell;
  };
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    const auto at = BackwardRow::at(gradient.p, step, b);
    return {at, gradient.fetch(at, b, u)};
  }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const T (&dm)[1],
                              const Operands& o) const {
    gradient.put(o.at, step, b, u, dm[0], o.cell);
  }
};

template <class T> struct GruOperands {
  StateGradient<T> state;
  T r, z, n;

  static BRASA_DEVICE_FN GruOperands fetch(const RnnParams& p, const RnnBackward<T>& a,
                                           int64_t step, int64_t b, int64_t u) {
    GruOperands o{StateGradient<T>::fetch(p, a, step, b, u), T(0), T(0), T(0)};
    if (!o.state.at.alive) return o;
    const T* const gates = a.gates + o.state.at.row * 3 * p.hidden + u;
    o.r = gates[0], o.z = gates[p.hidden], o.n = gates[2 * p.hidden];
    return o;
  }
  BRASA_DEVICE_FN T dz(const Clipped<T>& clipped, T dh) const {
    return dh * (state.before - n) * clipped.sigmoid_slope(z);
  }
  BRASA_DEVICE_FN T dn(const Clipped<T>& clipped, T dh) const {
    return dh * (T(1) - z) * clipped.tanh_slope(n);
  }
};

template <class T> struct GruBackwardStep {
  static constexpr int kColumns = 4, kParts = 4;
  RnnParams p;
  RnnBackward<T> a;
  Exchange<T> exchange;
  Clipped<T> clipped;

  struct Operands {
    GruOperands<T> gru;
    T v;
  };
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    Operands o{GruOperands<T>::fetch(p, a, step, b, u), T(0)};
    if (o.gru.state.at.alive) o.v = a.v[o.gru.state.at.row * p.hidden + u];
    return o;
  }

  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const T (&product)[1],
                              const Operands& o) const {
    T dh, dr = 0, dz = 0, dn = 0, dv = 0;
    if (o.gru.state.take(p, a, b, u, product[0], dh)) {
      dz = o.gru.dz(clipped, dh);
      dn = o.gru.dn(clipped, dh);
      dv = dn * o.gru.r;
      dr = dn * o.v * clipped.sigmoid_slope(o.gru.r);
      a.dh0[b * p.hidden + u] = dh * o.gru.z;
    }
    if (!o.gru.state.at.inside) return;
    const int64_t row = o.gru.state.at.row;
    T *const d = a.dgates + row * 3 * p.hidden + u, *const to = exchange.row(step + 1, b) + u;
    d[0] = dr, d[p.hidden] = dz, d[2 * p.hidden] = dn;
    a.dv[row * p.hidden + u] = dv;
    to[0] = dr, to[p.hidden] = dz, to[2 * p.hidden] = dv;
  }
};

/// With the reset before the product: d-z and d-n, which is multiplied by W_hn.
template <class T> struct GruNewBackwardStep {
  static constexpr int kColumns = 4, kParts = 4;
  RnnParams p;
  RnnBackward<T> a;
  Exchange<T> news;
  Clipped<T> clipped;

  using Operands = GruOperands<T>;
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    return Operands::fetch(p, a, step, b, u);
  }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const T (&product)[1],
                              const Operands& o) const {
    T dh, dz = 0, dn = 0;
    if (o.state.take(p, a, b, u, product[0], dh)) {
      dz = o.dz(clipped, dh);
      dn = o.dn(clipped, dh);
      a.dh0[b * p.hidden + u] = dh * o.z;
    }
    if (!o.state.at.inside) return;
    T* const d = a.dgates + o.state.at.row * 3 * p.hidden + u;
    d[p.hidden] = dz, d[2 * p.hidden] = dn;
    news.row(step, b)[u] = dn;
  }
};

/// d-r from d-n W_hn, and what of that goes past W_hh.
template <class T> struct GruResetBackwardStep {
  static constexpr int kColumns = 4, kParts = 4;
  RnnParams p;
  RnnBackward<T> a;
  Exchange<T> exchange;
  Clipped<T> clipped;

  struct Operands {
    BackwardRow at;
    T r, dz, waiting, before;
  };
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    Operands o{BackwardRow::at(p, step, b), T(0), T(0), T(0), T(0)};
    if (!o.at.alive) return o;
    o.r = a.gates[o.at.row * 3 * p.hidden + u];
    o.dz = a.dgates[(o.at.row * 3 + 1) * p.hidden + u];
    o.waiting = a.dh0[b * p.hidden + u];
    o.before = state_before(p, a.y, a.h0, p.hidden, o.at.t, b, u);
    return o;
  }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const T (&product)[1],
                              const Operands& o) const {
    const T dr = o.at.alive ? product[0] * o.before * clipped.sigmoid_slope(o.r) : T(0);
    if (o.at.alive) a.dh0[b * p.hidden + u] = o.waiting + product[0] * o.r;
    a.dgates[o.at.row * 3 * p.hidden + u] = dr;
    a.reset[o.at.row * p.hidden + u] = o.r * o.before;
    T* const to = exchange.row(step + 1, b) + u;
    to[0] = dr, to[p.hidden] = o.dz;
  }
};

template <class T> struct SimpleBackwardStep {
  static constexpr int kColumns = 4, kParts = 4;
  RnnParams p;
  RnnBackward<T> a;
  Exchange<T> exchange;
  Clipped<T> clipped;

  struct Operands {
    StateGradient<T> state;
    T h;
  };
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    Operands o{StateGradient<T>::fetch(p, a, step, b, u), T(0)};
    if (o.state.at.alive) o.h = a.y[o.state.at.row * p.hidden + u];
    return o;
  }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const T (&product)[1],
                              const Operands& o) const {
    T dh, d = 0;
    if (o.state.take(p, a, b, u, product[0], dh)) {
      d = dh * (p.cell == RnnCell::rnn_relu ? clipped.relu_slope(o.h) : clipped.tanh_slope(o.h));
      a.dh0[b * p.hidden + u] = T(0);
    }
    if (!o.state.at.inside) return;
    a.dgates[o.state.at.row * p.hidden + u] = d;
    exchange.row(step + 1, b)[u] = d;
  }
};

// ----------------------------------------------------------------------------------------
// launchers

static ExchangeSizes backward_sizes(const RnnParams& p) {
  if (p.cell == RnnCell::gru_reset_before) return {2 * p.hidden, p.hidden};
  return {rnn_gates(p.cell) * p.hidden, p.projected ? p.state : 0};
}

template <class T> size_t rnn_backward_workspace(const RnnParams& p, int) {
  return size_t(backward_sizes(p).elements(p.batch) + p.batch * (p.state + p.hidden)) * sizeof(T);
}

template <class T>
static void lstm_backward(Context ctx, const RnnParams& p, const RnnBackward<T>& a,
                          const Exchanges<T>& exchanges, const StepProduct<T>& product) {
  start_states(ctx, p, a.dc_n, a.dc0, p.hidden);
  const LstmGradient<T> gradient{p, a, exchanges.states, {T(p.clip)}};
  if (!p.projected) return run_steps(ctx, product, LstmBackwardStep<T>{gradient}, p.steps + 1);
  const StepProduct<T> projection(exchanges.second, p.hidden, p.state, {a.w_hr, 1, 0, p.hidden});
  for (int64_t step = 0; step <= p.steps; ++step) {
    run_step(ctx, product, ProjectedStateStep<T>{p, a, exchanges.second}, step);
    if (step < p.steps) run_step(ctx, projection, ProjectionBackwardStep<T>{gradient}, step);
  }
}

template <class T>
static void gru_backward(Context ctx, const RnnParams& p, const RnnBackward<T>& a,
                         const Exchanges<T>& exchanges, const StepProduct<T>& product) {
  const Clipped<T> clipped{T(p.clip)};
  if (p.cell == RnnCell::gru)
    return run_steps(ctx, product, GruBackwardStep<T>{p, a, exchanges.states, clipped},
                     p.steps + 1);
  const int64_t h = p.hidden;
  const StepProduct<T> news(exchanges.second, h, h, {a.w_hh + 2 * h * h, 1, 0, h});
  for (int64_t step = 0; step <= p.steps; ++step) {
    run_step(ctx, product, GruNewBackwardStep<T>{p, a, exchanges.second, clipped}, step);
    if (step < p.steps)
      run_step(ctx, news, GruResetBackwardStep<T>{p, a, exchanges.states, clipped}, step);
  }
}

template <class T>
void rnn_backward(Context ctx, const RnnParams& p, const RnnBackward<T>& arrays) {
  const ExchangeSizes sizes = backward_sizes(p);
  const Exchanges<T> exchanges(ctx, p, sizes);
  RnnBackward<T> a = arrays;
  T* const scratch = static_cast<T*>(ctx.workspace) + sizes.elements(p.batch);
  if (!a.dh0) a.dh0 = scratch;
  if (!a.dc0) a.dc0 = scratch + p.batch * p.state;
  start_states(ctx, p, a.dh_n, a.dh0, p.state);
  const StepProduct<T> product(exchanges.states, p.state, sizes.states, {a.w_hh, 1, 0, p.state});
  if (p.cell == RnnCell::lstm) return lstm_backward(ctx, p, a, exchanges, product);
  if (rnn_gates(p.cell) == 3) return gru_backward(ctx, p, a, exchanges, product);
  run_steps(ctx, product, SimpleBackwardStep<T>{p, a, exchanges.states, {T(p.clip)}}, p.steps + 1);
}

BRASA_INSTANTIATE(rnn_backward_workspace, float, double)
BRASA_INSTANTIATE(rnn_backward, float, double)

}  // namespace brasa::cuda
