// The recurrence forward on CUDA: cells for the steps of rnn_tile.cuh. Projections and the GRU with
// its reset before the product have a second product per step, and a launch for each.
#include "rnn/rnn.h"
#include "rnn/rnn_rows.cuh"

namespace brasa::cuda {

/// Where the state h of a step goes.
template <class T> struct HiddenOutput {
  T *y, *h_n;
  Exchange<T> exchange;
  int64_t width;

  BRASA_DEVICE_FN void put(const RnnParams& p, int64_t step, int64_t b, int64_t k, bool alive,
                           T h) const {
    const int64_t at = b * width + k;
    y[row_of(p, time_of(p, step), b) * width + k] = alive ? h : T(0);
    if (alive) h_n[at] = h;
    exchange.row(step + 1, b)[k] = alive ? h : h_n[at];
  }
};

template <class T> struct LstmStep {
  static constexpr int kColumns = 4, kParts = 1;
  RnnParams p;
  RnnForward<T> a;
  HiddenOutput<T> hidden;
  Exchange<T> m;  ///< what is projected
  Clipped<T> clipped;

  struct Operands {
    bool alive;
    T gate[4], c;
  };
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    Operands o{};
    const int64_t t = time_of(p, step), row = row_of(p, t, b) * 4 * p.hidden + u;
    o.alive = is_alive(p, t, b);
    o.c = a.c_n[b * p.hidden + u];
#pragma unroll
    for (int g = 0; g < 4; ++g) o.gate[g] = a.gates[row + g * p.hidden];
    return o;
  }

  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const T (&sum)[4],
                              const Operands& o) const {
    T h = 0;
    if (o.alive) {
      const T* const peephole = a.peephole ? a.peephole + u : nullptr;
      T v[4];
#pragma unroll
      for (int g = 0; g < 4; ++g) v[g] = o.gate[g] + sum[g];
      if (peephole) v[0] += peephole[0] * o.c, v[1] += peephole[p.hidden] * o.c;
      v[0] = clipped.sigmoid(v[0]), v[1] = clipped.sigmoid(v[1]), v[2] = clipped.tanh(v[2]);
      const T c = fma(v[1], o.c, v[0] * v[2]);
      if (peephole) v[3] += peephole[2 * p.hidden] * c;
      v[3] = clipped.sigmoid(v[3]);
      h = v[3] * vtanh(c);
      keep(step, b, u, v, c);
    }
    if (p.projected) {
      m.row(step, b)[u] = h;
    } else {
      hidden.put(p, step, b, u, o.alive, h);
    }
  }

  BRASA_DEVICE_FN void keep(int64_t step, int64_t b, int64_t u, const T (&gate)[4], T c) const {
    const int64_t row = row_of(p, time_of(p, step), b);
    a.c_n[b * p.hidden + u] = c;
    if (a.cells) a.cells[row * p.hidden + u] = c;
    if (!a.save) return;
#pragma unroll
    for (int g = 0; g < 4; ++g) a.gates[(row * 4 + g) * p.hidden + u] = gate[g];
  }
};

/// h = m W_hr^T
template <class T> struct ProjectionStep {
  static constexpr int kColumns = 4, kParts = 4;
  RnnParams p;
  HiddenOutput<T> hidden;

  struct Operands {};
  BRASA_DEVICE_FN Operands fetch(int64_t, int64_t, int64_t) const { return {}; }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t k, const T (&sum)[1],
                              const Operands&) const {
    hidden.put(p, step, b, k, is_alive(p, time_of(p, step), b), sum[0]);
  }
};

/// The three gates of a GRU's unit and the state before.
template <class T> struct GruOperands {
  bool alive;
  T gate[3], h;

  static BRASA_DEVICE_FN GruOperands fetch(const RnnParams& p, const RnnForward<T>& a, int64_t step,
                                           int64_t b, int64_t u) {
    GruOperands o{};
    const int64_t t = time_of(p, step), row = row_of(p, t, b) * 3 * p.hidden + u;
    o.alive = is_alive(p, t, b);
    o.h = a.h_n[b * p.hidden + u];
#pragma unroll
    for (int g = 0; g < 3; ++g) o.gate[g] = a.gates[row + g * p.hidden];
    return o;
  }
};

template <class T> struct GruStep {
  static constexpr int kColumns = 3, kParts = 1;
  RnnParams p;
  RnnForward<T> a;
  HiddenOutput<T> hidden;
  Clipped<T> clipped;

  using Operands = GruOperands<T>;
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    return Operands::fetch(p, a, step, b, u);
  }

  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const T (&sum)[3],
                              const Operands& o) const {
    T h = 0;
    if (o.alive) {
      const T r = clipped.sigmoid(o.gate[0] + sum[0]), z = clipped.sigmoid(o.gate[1] + sum[1]);
      const T v = a.b_hn ? sum[2] + a.b_hn[u] : sum[2];
      const T n = clipped.tanh(o.gate[2] + r * v);
      h = n + z * (o.h - n);
      const int64_t row = row_of(p, time_of(p, step), b);
      if (a.v) a.v[row * p.hidden + u] = v;
      if (a.save) {
        T* const gates = a.gates + row * 3 * p.hidden + u;
        gates[0] = r, gates[p.hidden] = z, gates[2 * p.hidden] = n;
      }
    }
    hidden.put(p, step, b, u, o.alive, h);
  }
};

/// r and z, and r h' for the second product.
template <class T> struct GruResetStep {
  static constexpr int kColumns = 2, kParts = 1;
  RnnParams p;
  RnnForward<T> a;
  Exchange<T> reset;
  Clipped<T> clipped;

  using Operands = GruOperands<T>;
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    return Operands::fetch(p, a, step, b, u);
  }

  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const T (&sum)[2],
                              const Operands& o) const {
    if (!o.alive) return;
    const T r = clipped.sigmoid(o.gate[0] + sum[0]);
    T* const gates = a.gates + row_of(p, time_of(p, step), b) * 3 * p.hidden + u;
    gates[0] = r;
    gates[p.hidden] = clipped.sigmoid(o.gate[1] + sum[1]);
    reset.row(step, b)[u] = r * o.h;
  }
};

/// n = tanh(G_n + (r h') W_hn^T) and h.
template <class T> struct GruNewStep {
  static constexpr int kColumns = 4, kParts = 4;
  RnnParams p;
  RnnForward<T> a;
  HiddenOutput<T> hidden;
  Clipped<T> clipped;

  using Operands = GruOperands<T>;
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    return Operands::fetch(p, a, step, b, u);
  }

  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const T (&sum)[1],
                              const Operands& o) const {
    const T n = clipped.tanh(o.gate[2] + sum[0]);
    if (o.alive) a.gates[(row_of(p, time_of(p, step), b) * 3 + 2) * p.hidden + u] = n;
    hidden.put(p, step, b, u, o.alive, n + o.gate[1] * (o.h - n));
  }
};

template <class T> struct SimpleStep {
  static constexpr int kColumns = 4, kParts = 4;
  RnnParams p;
  const T* gates;
  HiddenOutput<T> hidden;
  Clipped<T> clipped;

  struct Operands {
    bool alive;
    T gate;
  };
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    const int64_t t = time_of(p, step);
    return {is_alive(p, t, b), gates[row_of(p, t, b) * p.hidden + u]};
  }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const T (&sum)[1],
                              const Operands& o) const {
    const T v = o.gate + sum[0];
    hidden.put(p, step, b, u, o.alive,
               p.cell == RnnCell::rnn_relu ? clipped.relu(v) : clipped.tanh(v));
  }
};

// ----------------------------------------------------------------------------------------
// launchers

static ExchangeSizes forward_sizes(const RnnParams& p) {
  return {p.state, p.projected || p.cell == RnnCell::gru_reset_before ? p.hidden : 0};
}

template <class T> bool rnn_takes_inputs(const RnnParams&) {
  return false;
}

template <class T> size_t rnn_forward_workspace(const RnnParams& p, int) {
  return size_t(forward_sizes(p).elements(p.batch)) * sizeof(T);
}

template <class T>
static void lstm_forward(Context ctx, const RnnParams& p, const RnnForward<T>& a,
                         const Exchanges<T>& exchanges) {
  start_states(ctx, p, a.c0, a.c_n, p.hidden);
  const HiddenOutput<T> hidden{a.y, a.h_n, exchanges.states, p.state};
  const LstmStep<T> cell{p, a, hidden, exchanges.second, {T(p.clip)}};
  const StepProduct<T> gates(exchanges.states, p.hidden, p.state,
                             {a.w_hh, p.state, p.hidden * p.state, 1});
  if (!p.projected) return run_steps(ctx, gates, cell, p.steps);
  const StepProduct<T> projection(exchanges.second, p.state, p.hidden, {a.w_hr, p.hidden, 0, 1});
  for (int64_t step = 0; step < p.steps; ++step) {
    run_step(ctx, gates, cell, step);
    run_step(ctx, projection, ProjectionStep<T>{p, hidden}, step);
  }
}

template <class T>
static void gru_forward(Context ctx, const RnnParams& p, const RnnForward<T>& a,
                        const Exchanges<T>& exchanges) {
  const int64_t h = p.hidden;
  const HiddenOutput<T> hidden{a.y, a.h_n, exchanges.states, h};
  const Clipped<T> clipped{T(p.clip)};
  const StepProduct<T> gates(exchanges.states, h, h, {a.w_hh, h, h * h, 1});
  if (p.cell == RnnCell::gru)
    return run_steps(ctx, gates, GruStep<T>{p, a, hidden, clipped}, p.steps);
  const StepProduct<T> news(exchanges.second, h, h, {a.w_hh + 2 * h * h, h, 0, 1});
  for (int64_t step = 0; step < p.steps; ++step) {
    run_step(ctx, gates, GruResetStep<T>{p, a, exchanges.second, clipped}, step);
    run_step(ctx, news, GruNewStep<T>{p, a, hidden, clipped}, step);
  }
}

template <class T> void rnn_forward(Context ctx, const RnnParams& p, const RnnForward<T>& a) {
  const Exchanges<T> exchanges(ctx, p, forward_sizes(p));
  start_states(ctx, p, a.h0, a.h_n, p.state, exchanges.states);
  if (p.cell == RnnCell::lstm) return lstm_forward(ctx, p, a, exchanges);
  if (rnn_gates(p.cell) == 3) return gru_forward(ctx, p, a, exchanges);
  const StepProduct<T> product(exchanges.states, p.hidden, p.hidden, {a.w_hh, p.hidden, 0, 1});
  const HiddenOutput<T> hidden{a.y, a.h_n, exchanges.states, p.hidden};
  run_steps(ctx, product, SimpleStep<T>{p, a.gates, hidden, {T(p.clip)}}, p.steps);
}

BRASA_INSTANTIATE(rnn_takes_inputs, float, double)
BRASA_INSTANTIATE(rnn_forward_workspace, float, double)
BRASA_INSTANTIATE(rnn_forward, float, double)

}  // namespace brasa::cuda
