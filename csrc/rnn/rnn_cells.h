// The cells on a vector of hidden units of one row, after the product of the step.
#pragma once

#include "core/vmath.h"
#include "rnn/rnn_panels.h"

namespace brasa::cpu::BRASA_ISA {

/// All that a forward call works on. Rows of h, c and m in scratch are whole vectors, zeros behind.
template <class T> struct ForwardCall {
  RnnParams p;
  RnnForward<T> a;
  Panels<T> gates;         ///< W_hh, all gates of a vector of units side by side
  Panels<T> second;        ///< W_hr, or W_hn where the reset comes before its product
  Panels<T> inputs, bias;  ///< W_ih and the bias (a matrix of depth 1), as `gates`; with inputs
  T *h[2], *c, *m;  ///< states before and after a step by turns (with lengths); c; m, or r h'

  int64_t state_columns() const { return padded<T>(p.state); }
  int64_t hidden_columns() const { return padded<T>(p.hidden); }
  int64_t gate_columns() const { return rnn_gates(p.cell) * p.hidden; }
};

/// A vector of units in row (t, b); `live` of its lanes count. `product` has its gates kLanes
/// apart; the product of the inputs, where it is made here, lies a tile further.
template <class T> struct Spot {
  int64_t b, row, unit, live;
  T* product;
};

/// Of gate `gate`: G.
template <class T>
BRASA_INLINE Vec<T> input_of(const ForwardCall<T>& f, const Spot<T>& at, int64_t gate) {
  if (f.p.inputs) return load(at.product + kTileElements<T> + gate * kLanes<T>);
  return read(f.a.gates + at.row * f.gate_columns() + gate * f.p.hidden + at.unit, at.live);
}

/// The living vectors of a tile. Cells go over them in two passes, so that functions of several
/// vectors can be computed together; what the second needs waits in the products.
template <class T> struct Spots {
  Spot<T> at[kVectorsOfTile];
  int count;

  /// f<N>(first) for the spots in groups of N = kMost, the last ones in groups of 1.
  template <int kMost, class F> BRASA_INLINE_MEMBER void in_groups(const F& f) const {
    int i = 0;
    for (; i + kMost <= count; i += kMost) f.template operator()<kMost>(at + i);
    for (; i < count; ++i) f.template operator()<1>(at + i);
  }
};

template <class T> BRASA_INLINE Vec<T> limited(const RnnParams& p, Vec<T> x) {
  return p.clip < __builtin_inf() ? clamp(x, -p.clip, p.clip) : x;
}

/// y, and the state after the step where it is not y.
template <class T>
BRASA_INLINE void put_state(const ForwardCall<T>& f, const Spot<T>& at, T* next, Vec<T> h) {
  if (f.p.lengths) store(next + at.b * f.state_columns() + at.unit, h);
  write(f.a.y + at.row * f.p.state + at.unit, h, at.live);
}

/// The gates and c; the o before its activation waits.
template <class T> BRASA_INLINE void lstm_gates(const ForwardCall<T>& f, const Spot<T>& at) {
  const int64_t hidden = f.p.hidden;
  T* const gates = f.a.gates + at.row * 4 * hidden + at.unit;
  T* const c = f.c + at.b * f.hidden_columns() + at.unit;
  const auto before = [&](int gate) {
    return input_of(f, at, gate) + load(at.product + gate * kLanes<T>);
  };
  const auto peep = [&](int gate, Vec<T> x, Vec<T> cell) {
    if (!f.a.peephole) return x;
    return fma(read(f.a.peephole + gate * hidden + at.unit, at.live), cell, x);
  };
  const Vec<T> old = load(c);
  Vec<T> x[3] = {limited<T>(f.p, peep(0, before(0), old)), limited<T>(f.p, peep(1, before(1), old)),
                 limited<T>(f.p, before(2))};
  squash<1, SigmoidSteps, SigmoidSteps, TanhSteps>(x);
  const Vec<T> cell = fma(x[1], old, x[0] * x[2]);
  store(at.product + 3 * kLanes<T>, limited<T>(f.p, peep(2, before(3), cell)));
  store(c, cell);
  if (!f.a.save) return;
  for (int gate = 0; gate < 3; ++gate) write(gates + gate * hidden, x[gate], at.live);
  write(f.a.cells + at.row * hidden + at.unit, cell, at.live);
}

/// put(spot, m) for all.
template <class T, class F>
BRASA_INLINE void lstm_cell(const ForwardCall<T>& f, const Spots<T>& spots, const F& put) {
  const int64_t hidden = f.p.hidden;
  for (int i = 0; i < spots.count; ++i) lstm_gates(f, spots.at[i]);
  spots.template in_groups<2>([&]<int N>(const Spot<T>* at) {
    Vec<T> x[2 * N];
    for (int i = 0; i < N; ++i) {
      x[2 * i] = load(at[i].product + 3 * kLanes<T>);
      x[2 * i + 1] = load(f.c + at[i].b * f.hidden_columns() + at[i].unit);
    }
    squash<N, SigmoidSteps, TanhSteps>(x);
    for (int i = 0; i < N; ++i) {
      T* const o = f.a.gates + (at[i].row * 4 + 3) * hidden + at[i].unit;
      if (f.a.save) write(o, x[2 * i], at[i].live);
      put(at[i], x[2 * i] * x[2 * i + 1]);
    }
  });
}

/// h' at a spot.
template <class T> BRASA_INLINE Vec<T> state_at(Rows<T> old, const Spot<T>& at) {
  return read(old.first + at.b * old.stride + at.unit, at.live);
}

template <class T> BRASA_INLINE Vec<T> gru_state(Vec<T> z, Vec<T> n, Vec<T> old) {
  return fma(z, old - n, n);
}

/// r and z, which waits, as does n before its activation.
template <class T> BRASA_INLINE void gru_gates(const ForwardCall<T>& f, const Spot<T>& at) {
  const int64_t hidden = f.p.hidden;
  T* const gates = f.a.gates + at.row * 3 * hidden + at.unit;
  const auto gate = [&](int i) { return input_of(f, at, i); };
  Vec<T> v = load(at.product + 2 * kLanes<T>);
  if (f.a.b_hn) v += read(f.a.b_hn + at.unit, at.live);
  Vec<T> x[2] = {limited<T>(f.p, gate(0) + load(at.product)),
                 limited<T>(f.p, gate(1) + load(at.product + kLanes<T>))};
  squash<1, SigmoidSteps, SigmoidSteps>(x);
  store(at.product + kLanes<T>, x[1]);
  store(at.product + 2 * kLanes<T>, limited<T>(f.p, fma(x[0], v, gate(2))));
  if (!f.a.save) return;
  write(gates, x[0], at.live), write(gates + hidden, x[1], at.live);
  write(f.a.v + at.row * hidden + at.unit, v, at.live);
}

/// put(spot, h) for all.
template <class T, class F>
BRASA_INLINE void gru_cell(const ForwardCall<T>& f, const Spots<T>& spots, Rows<T> old,
                           const F& put) {
  const int64_t hidden = f.p.hidden;
  for (int i = 0; i < spots.count; ++i) gru_gates(f, spots.at[i]);
  spots.template in_groups<4>([&]<int N>(const Spot<T>* at) {
    Vec<T> n[N];
    for (int i = 0; i < N; ++i) n[i] = load(at[i].product + 2 * kLanes<T>);
    squash<N, TanhSteps>(n);
    for (int i = 0; i < N; ++i) {
      T* const kept = f.a.gates + (at[i].row * 3 + 2) * hidden + at[i].unit;
      if (f.a.save) write(kept, n[i], at[i].live);
      const Vec<T> before = state_at(old, at[i]);
      put(at[i], gru_state<T>(load(at[i].product + kLanes<T>), n[i], before));
    }
  });
}

/// Reset before: the first half of the step. z waits in the buffer of gates.
template <class T>
BRASA_INLINE void gru_reset(const ForwardCall<T>& f, const Spot<T>& at, Rows<T> old) {
  const int64_t hidden = f.p.hidden;
  T* const gates = f.a.gates + at.row * 3 * hidden + at.unit;
  const auto gate = [&](int i) {
    return read(gates + i * hidden, at.live) + load(at.product + i * kLanes<T>);
  };
  Vec<T> x[2] = {limited<T>(f.p, gate(0)), limited<T>(f.p, gate(1))};
  squash<1, SigmoidSteps, SigmoidSteps>(x);
  if (f.a.save) write(gates, x[0], at.live);
  write(gates + hidden, x[1], at.live);
  store(f.m + at.b * f.hidden_columns() + at.unit, x[0] * state_at(old, at));
}

template <class T>
BRASA_INLINE Vec<T> gru_candidate(const ForwardCall<T>& f, const Spot<T>& at, Rows<T> old) {
  const int64_t hidden = f.p.hidden;
  T* const gates = f.a.gates + at.row * 3 * hidden + at.unit;
  const Vec<T> z = read(gates + hidden, at.live);
  const Vec<T> n = vtanh(limited<T>(f.p, read(gates + 2 * hidden, at.live) + load(at.product)));
  if (f.a.save) write(gates + 2 * hidden, n, at.live);
  return gru_state<T>(z, n, state_at(old, at));
}

/// put(spot, h) for all.
template <class T, RnnCell kCell, class F>
BRASA_INLINE void simple_cell(const ForwardCall<T>& f, const Spots<T>& spots, const F& put) {
  spots.template in_groups<4>([&]<int N>(const Spot<T>* at) {
    Vec<T> x[N];
    for (int i = 0; i < N; ++i) {
      x[i] = limited<T>(f.p, input_of(f, at[i], 0) + load(at[i].product));
    }
    if constexpr (kCell == RnnCell::rnn_tanh) squash<N, TanhSteps>(x);
    for (int i = 0; i < N; ++i) {
      if constexpr (kCell == RnnCell::rnn_relu)
        x[i] = x[i] > Vec<T>{} ? x[i] : (x[i] != x[i] ? x[i] : Vec<T>{});
      put(at[i], x[i]);
    }
  });
}

}  // namespace brasa::cpu::BRASA_ISA
