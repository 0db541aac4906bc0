// The cells on a vector of hidden units of one row, after the product of the step.
#pragma once

#include "core/vmath.h"
#include "rnn/rnn_panels.h"

namespace brasa::cpu::BRASA_ISA {

/// All that a forward call works on. Rows of h, c and m in scratch are whole vectors, zeros behind.
template <class T> struct ForwardCall {
  RnnParams p;
  RnnForward<T> a;
  Panels<T> gates;   ///< W_hh, all gates of a vector of units side by side
  Panels<T> second;  ///< W_hr, or W_hn where the reset comes before its product
  T *h[2], *c, *m;   ///< states before and after a step by turns; c; m, or r h'

  int64_t state_columns() const { return padded<T>(p.state); }
  int64_t hidden_columns() const { return padded<T>(p.hidden); }
  int64_t gate_columns() const { return rnn_gates(p.cell) * p.hidden; }
};

/// A vector of units in row (t, b); `live` of its lanes count.
struct Spot {
  int64_t b, row, unit, live;
};

template <class T> BRASA_INLINE Vec<T> limited(const RnnParams& p, Vec<T> x) {
  return p.clip < __builtin_inf() ? clamp(x, -p.clip, p.clip) : x;
}

/// The state after the step, and y.
template <class T>
BRASA_INLINE void put_state(const ForwardCall<T>& f, const Spot& at, T* next, Vec<T> h) {
  store(next + at.b * f.state_columns() + at.unit, h);
  write(f.a.y + at.row * f.p.state + at.unit, h, at.live);
}

/// `product` has the gates kLanes apart. Returns m.
template <class T>
BRASA_INLINE Vec<T> lstm_cell(const ForwardCall<T>& f, const Spot& at, const T* product) {
  const int64_t hidden = f.p.hidden;
  T* const gates = f.a.gates + at.row * 4 * hidden + at.unit;
  T* const c = f.c + at.b * f.hidden_columns() + at.unit;
  const auto before = [&](int gate) {
    return read(gates + gate * hidden, at.live) + load(product + gate * kLanes<T>);
  };
  const auto peep = [&](int gate, Vec<T> x, Vec<T> cell) {
    if (!f.a.peephole) return x;
    return fma(read(f.a.peephole + gate * hidden + at.unit, at.live), cell, x);
  };
  const Vec<T> old = load(c);
  const Vec<T> i = vsigmoid(limited<T>(f.p, peep(0, before(0), old)));
  const Vec<T> forget = vsigmoid(limited<T>(f.p, peep(1, before(1), old)));
  const Vec<T> g = vtanh(limited<T>(f.p, before(2)));
  const Vec<T> cell = fma(forget, old, i * g);
  const Vec<T> o = vsigmoid(limited<T>(f.p, peep(2, before(3), cell)));
  store(c, cell);
  if (f.a.save) {
    write(gates, i, at.live), write(gates + hidden, forget, at.live);
    write(gates + 2 * hidden, g, at.live), write(gates + 3 * hidden, o, at.live);
    write(f.a.cells + at.row * hidden + at.unit, cell, at.live);
  }
  return o * vtanh(cell);
}

template <class T> BRASA_INLINE Vec<T> gru_state(Vec<T> z, Vec<T> n, Vec<T> old) {
  return fma(z, old - n, n);
}

template <class T>
BRASA_INLINE Vec<T> gru_cell(const ForwardCall<T>& f, const Spot& at, const T* product,
                             const T* old) {
  const int64_t hidden = f.p.hidden;
  T* const gates = f.a.gates + at.row * 3 * hidden + at.unit;
  const auto gate = [&](int i) { return read(gates + i * hidden, at.live); };
  Vec<T> v = load(product + 2 * kLanes<T>);
  if (f.a.b_hn) v += read(f.a.b_hn + at.unit, at.live);
  const Vec<T> r = vsigmoid(limited<T>(f.p, gate(0) + load(product)));
  const Vec<T> z = vsigmoid(limited<T>(f.p, gate(1) + load(product + kLanes<T>)));
  const Vec<T> n = vtanh(limited<T>(f.p, fma(r, v, gate(2))));
  if (f.a.save) {
    write(gates, r, at.live), write(gates + hidden, z, at.live);
    write(gates + 2 * hidden, n, at.live);
    write(f.a.v + at.row * hidden + at.unit, v, at.live);
  }
  return gru_state<T>(z, n, load(old));
}

/// Reset before: the first half of the step. z waits in the buffer of gates.
template <class T>
BRASA_INLINE void gru_reset(const ForwardCall<T>& f, const Spot& at, const T* product,
                            const T* old) {
  const int64_t hidden = f.p.hidden;
  T* const gates = f.a.gates + at.row * 3 * hidden + at.unit;
  const auto gate = [&](int i) {
    return read(gates + i * hidden, at.live) + load(product + i * kLanes<T>);
  };
  const Vec<T> r = vsigmoid(limited<T>(f.p, gate(0)));
  const Vec<T> z = vsigmoid(limited<T>(f.p, gate(1)));
  if (f.a.save) write(gates, r, at.live);
  write(gates + hidden, z, at.live);
  store(f.m + at.b * f.hidden_columns() + at.unit, r * load(old));
}

template <class T>
BRASA_INLINE Vec<T> gru_candidate(const ForwardCall<T>& f, const Spot& at, const T* product,
                                  const T* old) {
  const int64_t hidden = f.p.hidden;
  T* const gates = f.a.gates + at.row * 3 * hidden + at.unit;
  const Vec<T> z = read(gates + hidden, at.live);
  const Vec<T> n = vtanh(limited<T>(f.p, read(gates + 2 * hidden, at.live) + load(product)));
  if (f.a.save) write(gates + 2 * hidden, n, at.live);
  return gru_state<T>(z, n, load(old));
}

template <class T, RnnCell kCell>
BRASA_INLINE Vec<T> simple_cell(const ForwardCall<T>& f, const Spot& at, const T* product) {
  const Vec<T> x =
      limited<T>(f.p, read(f.a.gates + at.row * f.p.hidden + at.unit, at.live) + load(product));
  if constexpr (kCell == RnnCell::rnn_tanh) return vtanh(x);
  return x > Vec<T>{} ? x : (x != x ? x : Vec<T>{});
}

}  // namespace brasa::cpu::BRASA_ISA
