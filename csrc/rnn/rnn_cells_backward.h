// The cells' gradients on a vector of hidden units of one row; what the symbols mean stands in
// rnn.h.
#pragma once

#include "core/vmath.h"
#include "rnn/rnn_panels.h"

namespace brasa::cpu::BRASA_ISA {

/// Derivatives from the activated value; 0 at the limits of `clip`.
template <class T> struct Derivatives {
  bool limited;
  Vec<T> sigmoid_low, sigmoid_high, tanh_high, relu_high;

  explicit Derivatives(double clip) : limited(clip < __builtin_inf()) {
    const Vec<T> high = value<Vec<T>>(limited ? clip : 1);
    sigmoid_low = vsigmoid(-high), sigmoid_high = vsigmoid(high);
    tanh_high = vtanh(high), relu_high = high;
  }
  BRASA_INLINE_MEMBER Vec<T> sigmoid(Vec<T> s) const {
    const Vec<T> d = s * (value<Vec<T>>(1) - s);
    return limited ? (((s == sigmoid_low) | (s == sigmoid_high)) ? Vec<T>{} : d) : d;
  }
  BRASA_INLINE_MEMBER Vec<T> tanh(Vec<T> h) const {
    const Vec<T> d = fma(-h, h, value<Vec<T>>(1));
    return limited ? (abs(h) == tanh_high ? Vec<T>{} : d) : d;
  }
  BRASA_INLINE_MEMBER Vec<T> relu(Vec<T> h, Vec<T> dh) const {
    const Vec<T> d = h > Vec<T>{} ? dh : (h != h ? h : Vec<T>{});
    return limited ? (h == relu_high ? Vec<T>{} : d) : d;
  }
};

/// All that a backward call works on. Rows of scratch are whole vectors.
template <class T> struct BackwardCall {
  RnnParams p;
  RnnBackward<T> a;
  Derivatives<T> derivative;
  Panels<T> state;   ///< W_hh or W_rz: from gates to the columns of h'
  Panels<T> second;  ///< W_hr (to m), or W_hn (to r h')
  T *dh, *dc;        ///< what comes from the next step

  int64_t state_columns() const { return padded<T>(p.state); }
  int64_t hidden_columns() const { return padded<T>(p.hidden); }
};

/// A vector of units in row (t, b); `live` of its lanes count.
struct BackwardSpot {
  int64_t t, b, row, unit, live;
  bool alive;
};

/// This row of an array of so many columns, at these units.
template <class T> BRASA_INLINE T* at_row(T* array, int64_t columns, const BackwardSpot& at) {
  return array + at.row * columns + at.unit;
}

template <class T>
BRASA_INLINE Vec<T> before(const BackwardCall<T>& f, const T* array, const T* initial,
                           int64_t columns, const BackwardSpot& at) {
  const T* from = state_before(f.p, array, initial, columns, at.t, at.b);
  return from ? read(from + at.unit, at.live) : Vec<T>{};
}

/// dh, of a living row.
template <class T>
BRASA_INLINE Vec<T> total_dh(const BackwardCall<T>& f, const BackwardSpot& at, const T* dh) {
  return f.a.dy ? load(dh) + read(at_row(f.a.dy, f.p.state, at), at.live) : load(dh);
}

template <class T>
BRASA_INLINE void keep_previous(const BackwardCall<T>& f, const BackwardSpot& at, Vec<T> h) {
  if (f.a.previous) write(at_row(f.a.previous, f.p.state, at), h, at.live);
}

template <class T>
BRASA_INLINE void lstm_backward_cell(const BackwardCall<T>& f, const BackwardSpot& at, Vec<T> dm) {
  const int64_t hidden = f.p.hidden;
  const T* const gates = at_row(f.a.gates, 4 * hidden, at);
  const auto gate = [&](int k) { return read(gates + k * hidden, at.live); };
  const auto peep = [&](int k) { return read(f.a.peephole + k * hidden + at.unit, at.live); };
  T* const dc = f.dc + at.b * f.hidden_columns() + at.unit;
  const Vec<T> i = gate(0), forget = gate(1), g = gate(2), o = gate(3);
  const Vec<T> cell = read(at_row(f.a.cells, hidden, at), at.live), squashed = vtanh(cell);
  const Vec<T> old = before(f, f.a.cells, f.a.c0, hidden, at);
  const auto& d = f.derivative;
  const Vec<T> d_o = dm * squashed * d.sigmoid(o);
  Vec<T> d_cell = fma(dm * o, fma(-squashed, squashed, value<Vec<T>>(1)), load(dc));
  if (f.a.peephole) d_cell = fma(d_o, peep(2), d_cell);
  const Vec<T> d_i = d_cell * g * d.sigmoid(i), d_f = d_cell * old * d.sigmoid(forget);
  const Vec<T> d_g = d_cell * i * d.tanh(g);
  Vec<T> d_old = d_cell * forget;
  if (f.a.peephole) d_old = fma(d_f, peep(1), fma(d_i, peep(0), d_old));
  store(dc, d_old);
  T* const to = at_row(f.a.dgates, 4 * hidden, at);
  write(to, d_i, at.live), write(to + hidden, d_f, at.live);
  write(to + 2 * hidden, d_g, at.live), write(to + 3 * hidden, d_o, at.live);
  if (f.a.m) write(at_row(f.a.m, hidden, at), o * squashed, at.live);
  if (f.a.dpeephole) {
    T* const terms = at_row(f.a.dpeephole, 3 * hidden, at);
    write(terms, d_i * old, at.live), write(terms + hidden, d_f * old, at.live);
    write(terms + 2 * hidden, d_o * cell, at.live);
  }
}

/// Returns what of dh' does not pass through W_hh.
template <class T>
BRASA_INLINE Vec<T> gru_backward_cell(const BackwardCall<T>& f, const BackwardSpot& at, Vec<T> dh,
                                      Vec<T> old) {
  const int64_t hidden = f.p.hidden;
  const T* const gates = at_row(f.a.gates, 3 * hidden, at);
  const Vec<T> z = read(gates + hidden, at.live), n = read(gates + 2 * hidden, at.live);
  const auto& d = f.derivative;
  const Vec<T> d_z = dh * (old - n) * d.sigmoid(z);
  const Vec<T> d_n = dh * (value<Vec<T>>(1) - z) * d.tanh(n);
  T* const to = at_row(f.a.dgates, 3 * hidden, at);
  write(to + hidden, d_z, at.live), write(to + 2 * hidden, d_n, at.live);
  if (f.p.cell == RnnCell::gru) {
    const Vec<T> r = read(gates, at.live), v = read(at_row(f.a.v, hidden, at), at.live);
    write(to, d_n * v * d.sigmoid(r), at.live);
    write(at_row(f.a.dv, hidden, at), d_n * r, at.live);
  }
  return dh * z;
}

/// Reset before, the second half: `u` is the gradient of r h'.
template <class T>
BRASA_INLINE void gru_backward_reset(const BackwardCall<T>& f, const BackwardSpot& at, Vec<T> u,
                                     T* dh) {
  const int64_t hidden = f.p.hidden;
  const Vec<T> r = read(at_row(f.a.gates, 3 * hidden, at), at.live);
  const Vec<T> old = before(f, f.a.y, f.a.h0, hidden, at);
  write(at_row(f.a.dgates, 3 * hidden, at), u * old * f.derivative.sigmoid(r), at.live);
  write(at_row(f.a.reset, hidden, at), r * old, at.live);
  store(dh, fma(u, r, load(dh)));
}

template <class T>
BRASA_INLINE void simple_backward_cell(const BackwardCall<T>& f, const BackwardSpot& at,
                                       Vec<T> dh) {
  const Vec<T> h = read(at_row(f.a.y, f.p.hidden, at), at.live);
  const auto& d = f.derivative;
  const Vec<T> dx = f.p.cell == RnnCell::rnn_tanh ? dh * d.tanh(h) : d.relu(h, dh);
  write(at_row(f.a.dgates, f.p.hidden, at), dx, at.live);
}

/// A dead row: zeros to each of `gates` parts of a row.
template <class T>
BRASA_INLINE void write_zeros(T* array, int64_t parts, int64_t columns, const BackwardSpot& at) {
  if (!array) return;
  for (int64_t i = 0; i < parts; ++i)
    write(at_row(array, parts * columns, at) + i * columns, Vec<T>{}, at.live);
}

}  // namespace brasa::cpu::BRASA_ISA
