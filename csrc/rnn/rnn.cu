// The recurrence forward on CUDA: cells for the steps of rnn_tile.cuh. Projections and the GRU with
// its reset before the product have a second product per step, and a launch for each.
#include "rnn/rnn.h"
#include "rnn/rnn_rows.cuh"

namespace brasa::cuda {

/// Where the state h of a step goes.
template <class T> struct HiddenOutput {
  T* y;
  Carried<T> state;
  Exchange<T> exchange;
  int64_t width;

  BRASA_DEVICE_FN void put(const RnnParams& p, int64_t step, int64_t b, int64_t k, bool alive,
                           Wide<T> h) const {
    const int64_t at = b * width + k;
    y[row_of(p, time_of(p, step), b) * width + k] = simt::narrow<T>(alive ? h : Wide<T>(0));
    if (alive) state.put(at, h);
    exchange.row(step + 1, b)[k] = simt::narrow<T>(alive ? h : state.get(at));
  }
};

template <class T> struct LstmStep {
  static constexpr int kSums = 4;
  static constexpr bool kAcross = false;
  using W = Wide<T>;
  RnnParams p;
  RnnForward<T> a;
  HiddenOutput<T> hidden;
  Carried<T> cell;
  Exchange<T> m;  ///< what is projected
  Clipped<T> clipped;

  struct Operands {
    bool alive;
    W gate[4], c;
  };
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    Operands o{};
    const int64_t t = time_of(p, step), row = row_of(p, t, b) * 4 * p.hidden + u;
    o.alive = is_alive(p, t, b);
    o.c = cell.get(b * p.hidden + u);
#pragma unroll
    for (int g = 0; g < 4; ++g) o.gate[g] = simt::widen(a.gates[row + g * p.hidden]);
    return o;
  }

  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const W (&sum)[4],
                              const Operands& o) const {
    W h = 0;
    if (o.alive) {
      const W* const peephole = a.peephole ? a.peephole + u : nullptr;
      W v[4];
#pragma unroll
      for (int g = 0; g < 4; ++g) v[g] = o.gate[g] + sum[g];
      if (peephole) v[0] += peephole[0] * o.c, v[1] += peephole[p.hidden] * o.c;
      v[0] = clipped.sigmoid(v[0]), v[1] = clipped.sigmoid(v[1]), v[2] = clipped.tanh(v[2]);
      const W c = fma(v[1], o.c, v[0] * v[2]);
      if (peephole) v[3] += peephole[2 * p.hidden] * c;
      v[3] = clipped.sigmoid(v[3]);
      h = v[3] * vtanh(c);
      keep(step, b, u, v, c);
    }
    if (p.projected) {
      m.row(step, b)[u] = simt::narrow<T>(h);
    } else {
      hidden.put(p, step, b, u, o.alive, h);
    }
  }

  BRASA_DEVICE_FN void keep(int64_t step, int64_t b, int64_t u, const W (&gate)[4], W c) const {
    const int64_t row = row_of(p, time_of(p, step), b);
    cell.put(b * p.hidden + u, c);
    if (a.cells) a.cells[row * p.hidden + u] = simt::narrow<T>(c);
    if (!a.save) return;
#pragma unroll
    for (int g = 0; g < 4; ++g) a.gates[(row * 4 + g) * p.hidden + u] = simt::narrow<T>(gate[g]);
  }
};

/// h = m W_hr^T
template <class T> struct ProjectionStep {
  static constexpr int kSums = 1;
  static constexpr bool kAcross = false;
  RnnParams p;
  HiddenOutput<T> hidden;

  struct Operands {};
  BRASA_DEVICE_FN Operands fetch(int64_t, int64_t, int64_t) const { return {}; }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t k, const Wide<T> (&sum)[1],
                              const Operands&) const {
    hidden.put(p, step, b, k, is_alive(p, time_of(p, step), b), sum[0]);
  }
};

/// The three gates of a GRU's unit and the state before.
template <class T> struct GruOperands {
  bool alive;
  Wide<T> gate[3], h;

  static BRASA_DEVICE_FN GruOperands fetch(const RnnParams& p, const RnnForward<T>& a,
                                           const Carried<T>& state, int64_t step, int64_t b,
                                           int64_t u) {
    GruOperands o{};
    const int64_t t = time_of(p, step), row = row_of(p, t, b) * 3 * p.hidden + u;
    o.alive = is_alive(p, t, b);
    o.h = state.get(b * p.hidden + u);
#pragma unroll
    for (int g = 0; g < 3; ++g) o.gate[g] = simt::widen(a.gates[row + g * p.hidden]);
    return o;
  }
};

template <class T> struct GruStep {
  static constexpr int kSums = 3;
  static constexpr bool kAcross = false;
  using W = Wide<T>;
  RnnParams p;
  RnnForward<T> a;
  HiddenOutput<T> hidden;
  Clipped<T> clipped;

  using Operands = GruOperands<T>;
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    return Operands::fetch(p, a, hidden.state, step, b, u);
  }

  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const W (&sum)[3],
                              const Operands& o) const {
    W h = 0;
    if (o.alive) {
      const W r = clipped.sigmoid(o.gate[0] + sum[0]), z = clipped.sigmoid(o.gate[1] + sum[1]);
      const W v = a.b_hn ? sum[2] + a.b_hn[u] : sum[2];
      const W n = clipped.tanh(o.gate[2] + r * v);
      h = n + z * (o.h - n);
      const int64_t row = row_of(p, time_of(p, step), b);
      if (a.v) a.v[row * p.hidden + u] = simt::narrow<T>(v);
      if (a.save) {
        T* const gates = a.gates + row * 3 * p.hidden + u;
        gates[0] = simt::narrow<T>(r), gates[p.hidden] = simt::narrow<T>(z);
        gates[2 * p.hidden] = simt::narrow<T>(n);
      }
    }
    hidden.put(p, step, b, u, o.alive, h);
  }
};

/// r and z, and r h' for the second product.
template <class T> struct GruResetStep {
  static constexpr int kSums = 2;
  static constexpr bool kAcross = false;
  using W = Wide<T>;
  RnnParams p;
  RnnForward<T> a;
  Carried<T> state;
  Exchange<T> reset;
  Clipped<T> clipped;

  using Operands = GruOperands<T>;
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    return Operands::fetch(p, a, state, step, b, u);
  }

  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const W (&sum)[2],
                              const Operands& o) const {
    if (!o.alive) return;
    const W r = clipped.sigmoid(o.gate[0] + sum[0]), z = clipped.sigmoid(o.gate[1] + sum[1]);
    T* const gates = a.gates + row_of(p, time_of(p, step), b) * 3 * p.hidden + u;
    gates[0] = simt::narrow<T>(r), gates[p.hidden] = simt::narrow<T>(z);
    reset.row(step, b)[u] = simt::narrow<T>(r * o.h);
  }
};

/// n = tanh(G_n + (r h') W_hn^T) and h.
template <class T> struct GruNewStep {
  static constexpr int kSums = 1;
  static constexpr bool kAcross = false;
  using W = Wide<T>;
  RnnParams p;
  RnnForward<T> a;
  HiddenOutput<T> hidden;
  Clipped<T> clipped;

  using Operands = GruOperands<T>;
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    return Operands::fetch(p, a, hidden.state, step, b, u);
  }

  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const W (&sum)[1],
                              const Operands& o) const {
    const W n = clipped.tanh(o.gate[2] + sum[0]);
    const int64_t row = row_of(p, time_of(p, step), b);
    if (o.alive) a.gates[(row * 3 + 2) * p.hidden + u] = simt::narrow<T>(n);
    hidden.put(p, step, b, u, o.alive, n + o.gate[1] * (o.h - n));
  }
};

template <class T> struct SimpleStep {
  static constexpr int kSums = 1;
  static constexpr bool kAcross = false;
  using W = Wide<T>;
  RnnParams p;
  const T* gates;
  HiddenOutput<T> hidden;
  Clipped<T> clipped;

  struct Operands {
    bool alive;
    W gate;
  };
  BRASA_DEVICE_FN Operands fetch(int64_t step, int64_t b, int64_t u) const {
    const int64_t t = time_of(p, step);
    return {is_alive(p, t, b), simt::widen(gates[row_of(p, t, b) * p.hidden + u])};
  }
  BRASA_DEVICE_FN void finish(int64_t step, int64_t b, int64_t u, const W (&sum)[1],
                              const Operands& o) const {
    const W v = o.gate + sum[0];
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
  return forward_sizes(p).bytes<T>(p);
}

template <class T>
static void lstm_forward(Context ctx, const RnnParams& p, const RnnForward<T>& a,
                         const HiddenOutput<T>& hidden, const Exchanges<T>& exchanges) {
  const Carried<T> c(exchanges.c, a.c_n);
  start_states(ctx, p, a.c0, c, p.hidden);
  const LstmStep<T> cell{p, a, hidden, c, exchanges.second, Clipped<T>(p)};
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
                        const HiddenOutput<T>& hidden, const Exchanges<T>& exchanges) {
  const int64_t h = p.hidden;
  const Clipped<T> clipped(p);
  const StepProduct<T> gates(exchanges.states, h, h, {a.w_hh, h, h * h, 1});
  if (p.cell == RnnCell::gru)
    return run_steps(ctx, gates, GruStep<T>{p, a, hidden, clipped}, p.steps);
  const StepProduct<T> news(exchanges.second, h, h, {a.w_hh + 2 * h * h, h, 0, 1});
  for (int64_t step = 0; step < p.steps; ++step) {
    run_step(ctx, gates, GruResetStep<T>{p, a, hidden.state, exchanges.second, clipped}, step);
    run_step(ctx, news, GruNewStep<T>{p, a, hidden, clipped}, step);
  }
}

template <class T> void rnn_forward(Context ctx, const RnnParams& p, const RnnForward<T>& a) {
  const Exchanges<T> exchanges(ctx, p, forward_sizes(p));
  const HiddenOutput<T> hidden{a.y, {exchanges.h, a.h_n}, exchanges.states, p.state};
  start_states(ctx, p, a.h0, hidden.state, p.state, exchanges.states);
  if (p.cell == RnnCell::lstm) return lstm_forward(ctx, p, a, hidden, exchanges);
  if (rnn_gates(p.cell) == 3) return gru_forward(ctx, p, a, hidden, exchanges);
  const StepProduct<T> product(exchanges.states, p.hidden, p.hidden, {a.w_hh, p.hidden, 0, 1});
  run_steps(ctx, product, SimpleStep<T>{p, a.gates, hidden, Clipped<T>(p)}, p.steps);
}

BRASA_INSTANTIATE(rnn_takes_inputs, float, double, float16, bfloat16)
BRASA_INSTANTIATE(rnn_forward_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(rnn_forward, float, double, float16, bfloat16)

}  // namespace brasa::cuda
