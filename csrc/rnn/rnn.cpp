#include "rnn/rnn.h"

#include "rnn/rnn_cells.h"
#include "rnn/rnn_scratch.h"

namespace brasa::cpu::BRASA_ISA {
namespace {

/// living(spots) for the vectors of units of a tile, dead(spot) for those of dead rows.
template <class T, class F, class D>
BRASA_INLINE void each_spot(const RnnParams& p, const Panels<T>& panels, int64_t panel, int64_t t,
                            int64_t first, int64_t count, T* tile, const F& living, const D& dead) {
  const int64_t gates = panels.weights.gates, width = panels.width(panel);
  Spots<T> spots;
  spots.count = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t b = first + i, row = row_of(p, t, b);
    const bool alive = is_alive(p, t, b);
    for (int64_t block = 0; block < panels.blocks(panel); ++block) {
      const int64_t unit = panels.first_unit(panel) + block * kLanes<T>;
      const int64_t left = panels.weights.units - unit;
      const Spot<T> at{b, row, unit, left < kLanes<T> ? left : kLanes<T>,
                       tile + i * width + block * gates * kLanes<T>};
      if (alive)
        spots.at[spots.count++] = at;
      else
        dead(at);
    }
  }
  living(spots);
}

/// The lines of a tile's gates arrive while the tile is multiplied: they lie far apart, where no
/// prefetcher follows. Only of a buffer too large for the cache; elsewhere it costs up to 4 %.
template <class T>
BRASA_INLINE void prefetch_gates(const ForwardCall<T>& f, int64_t panel, int64_t t, int64_t first,
                                 int64_t count) {
  if (!f.a.gates || !gates_are_far<T>(f.p)) return;
  const int64_t columns = f.gate_columns(), unit = f.gates.first_unit(panel);
  for (int64_t b = first; b < first + count; ++b) {
    const T* const gates = f.a.gates + row_of(f.p, t, b) * columns + unit;
    for (int64_t k = 0; k < rnn_gates(f.p.cell); ++k) __builtin_prefetch(gates + k * f.p.hidden, 1);
  }
}

/// G of a tile, where it is made here.
template <class T>
BRASA_INLINE void multiply_inputs(const ForwardCall<T>& f, int64_t panel, int64_t t, int64_t first,
                                  int64_t count, T* tile) {
  const int64_t columns = f.p.inputs, width = f.inputs.width(panel);
  multiply_rows<T>({f.a.x + row_of(f.p, t, first) * columns, f.p.row_batch * columns}, count,
                   f.inputs.panel(panel), width, columns, tile, width, false,
                   f.a.bias ? f.bias.panel(panel) : nullptr);
}

/// One product of the step with this member's panels, each tile's results given to `living` and
/// `dead`.
template <class T, class F, class D>
BRASA_INLINE void multiply_step(const ForwardCall<T>& f, const Member& me, const Panels<T>& panels,
                                Rows<T> from, int64_t t, const F& living, const D& dead) {
  const Range rows = me.rows(f.p.batch), mine = me.panels(panels.count);
  alignas(64) T tile[2 * kTileElements<T>];
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t most = max_tile_rows(int(panels.width(i) / kLanes<T>));
    each_tile(rows.begin, rows.end, most, [&](int64_t row, int64_t count) {
      prefetch_gates(f, i, t, row, count);
      if (f.p.inputs && &panels == &f.gates)
        multiply_inputs(f, i, t, row, count, tile + kTileElements<T>);
      multiply_rows<T>({from.first + row * from.stride, from.stride}, count, panels.panel(i),
                       panels.width(i), panels.depth, tile, panels.width(i), false);
      each_spot(f.p, panels, i, t, row, count, tile, living, dead);
    });
  }
}

/// The states before the s-th step walked. Without lengths they are rows of y: a line is then
/// written once, and taken over by the other cores once (LSTM T 50, B 32, H 256: 1 to 4 % faster
/// than with states of their own, which cores take from each other for writing as well).
template <class T> static Rows<T> states_before(const ForwardCall<T>& f, int64_t s) {
  const RnnParams& p = f.p;
  if (s == 0 || p.lengths) return {f.h[s % 2], f.state_columns()};
  return {f.a.y + row_of(p, time_of(p, s - 1), 0) * p.state, p.row_batch * p.state};
}

/// Of a dead row the state stays and y is 0.
template <class T>
BRASA_INLINE void hold_state(const ForwardCall<T>& f, const Spot<T>& at, const T* old, T* next) {
  put_state(f, at, next, Vec<T>{});
  store(next + at.b * f.state_columns() + at.unit, load(old));
}

template <class T, RnnCell kCell> static void walk(const ForwardCall<T>& f, const Member& me) {
  const RnnParams& p = f.p;
  constexpr bool kTwoProducts = kCell == RnnCell::gru_reset_before;
  const int64_t hidden_columns = f.hidden_columns();
  for (int64_t s = 0; s < p.steps; ++s) {
    const int64_t t = time_of(p, s);
    const Rows<T> old = states_before(f, s);
    T* const next = f.h[(s + 1) % 2];
    const auto finish = [&](const Spot<T>& at, Vec<T> h) { put_state(f, at, next, h); };
    const auto hold = [&](const Spot<T>& at) {
      hold_state(f, at, old.first + at.b * old.stride + at.unit, next);
    };

    const auto first = [&](const Spots<T>& spots) {
      if constexpr (kCell == RnnCell::lstm)
        lstm_cell(f, spots, [&](const Spot<T>& at, Vec<T> m) {
          if (p.projected)
            store(f.m + at.b * hidden_columns + at.unit, m);
          else
            finish(at, m);
        });
      else if constexpr (kTwoProducts)
        for (int i = 0; i < spots.count; ++i) gru_reset(f, spots.at[i], old);
      else if constexpr (kCell == RnnCell::gru)
        gru_cell(f, spots, old, finish);
      else
        simple_cell<T, kCell>(f, spots, finish);
    };
    multiply_step(f, me, f.gates, old, t, first, [&](const Spot<T>& at) {
      if (!kTwoProducts && !p.projected) hold(at);
    });
    me.meet();
    if (!kTwoProducts && !p.projected) continue;

    const auto second = [&](const Spots<T>& spots) {
      for (int i = 0; i < spots.count; ++i) {
        const Spot<T>& at = spots.at[i];
        if constexpr (kTwoProducts)
          finish(at, gru_candidate(f, at, old));
        else
          finish(at, load(at.product));
      }
    };
    multiply_step(f, me, f.second, {f.m, hidden_columns}, t, second, hold);
    me.meet();
  }
}

template <class T> static void walk_cell(const ForwardCall<T>& f, const Member& me) {
  switch (f.p.cell) {
    case RnnCell::lstm:
      return walk<T, RnnCell::lstm>(f, me);
    case RnnCell::gru:
      return walk<T, RnnCell::gru>(f, me);
    case RnnCell::gru_reset_before:
      return walk<T, RnnCell::gru_reset_before>(f, me);
    case RnnCell::rnn_tanh:
      return walk<T, RnnCell::rnn_tanh>(f, me);
    case RnnCell::rnn_relu:
      return walk<T, RnnCell::rnn_relu>(f, me);
  }
}

template <class T> static ForwardCall<T> forward_call(const RnnParams& p, const RnnForward<T>& a) {
  const int64_t gates = rnn_gates(p.cell), square = p.hidden * p.state;
  const bool before = p.cell == RnnCell::gru_reset_before;
  const Weights<T> all{a.w_hh, before ? 2 : gates, p.hidden, p.state, square, p.state, 1};
  const Weights<T> second =
      before
          ? Weights<T>{a.w_hh ? a.w_hh + 2 * square : nullptr, 1, p.hidden, p.state, 0, p.state, 1}
          : Weights<T>{a.w_hr, 1, p.projected ? p.state : 0, p.hidden, 0, p.hidden, 1};
  const int64_t n = p.inputs;
  const Weights<T> inputs{a.w_ih, gates, p.hidden, n, p.hidden * n, n, 1};
  const Weights<T> bias{a.bias, gates, p.hidden, n ? 1 : 0, p.hidden, 1, 0};
  return {.p = p,
          .a = a,
          .gates = make_panels(all),
          .second = make_panels(second),
          .inputs = make_panels(inputs),
          .bias = make_panels(bias)};
}

/// Hands out the scratch; returns how much there is of it.
template <class T> static size_t place(ForwardCall<T>& f, void* workspace) {
  Scratch<T> scratch(workspace);
  const bool needs_m = f.p.projected || f.p.cell == RnnCell::gru_reset_before;
  f.gates.packed = scratch.take(f.gates.elements());
  f.second.packed = scratch.take(f.second.elements());
  f.inputs.packed = scratch.take(f.inputs.elements());
  f.bias.packed = scratch.take(f.bias.elements());
  f.h[0] = scratch.take(f.p.batch * f.state_columns());
  f.h[1] = scratch.take(f.p.lengths ? f.p.batch * f.state_columns() : 0);
  f.c = scratch.take(f.p.cell == RnnCell::lstm ? f.p.batch * f.hidden_columns() : 0);
  f.m = scratch.take(needs_m ? f.p.batch * f.hidden_columns() : 0);
  return scratch.bytes();
}

}  // namespace

template <class T> bool rnn_takes_inputs(const RnnParams& p) {
  if (p.cell == RnnCell::gru_reset_before || p.inputs == 0 || p.steps < kRnnInputSteps)
    return false;
  const int64_t bytes = rnn_weights(p) * int64_t(sizeof(T));
  return p.batch >= kRnnInputRows ? bytes <= kRnnInputBytes
                                  : p.batch > 1 && bytes <= kRnnInputNearBytes;
}

template <class T> size_t rnn_forward_workspace(const RnnParams& p, int) {
  ForwardCall<T> f = forward_call<T>(p, {});
  return place(f, nullptr);
}

template <class T> void rnn_forward(Context ctx, const RnnParams& p, const RnnForward<T>& a) {
  ForwardCall<T> f = forward_call(p, a);
  place(f, ctx.workspace);
  ctx.threads = rnn_team(p, ctx.threads);
  const int64_t state_columns = f.state_columns(), hidden_columns = f.hidden_columns();
  copy_rows(a.h0, p.batch, p.state, p.state, f.h[0], state_columns);
  if (a.c_n) copy_rows(a.c0, p.batch, p.hidden, p.hidden, f.c, hidden_columns);
  parallel_team(ctx, [&](int index, int size, Barrier barrier) {
    const Member me{index, size, shares_rows<T>(p, size), barrier};
    me.pack(f.gates);
    me.pack(f.second);
    me.pack(f.inputs);
    if (a.bias) me.pack(f.bias);
    if (size > 1) barrier();
    walk_cell(f, me);
  });
  const Rows<T> last = states_before(f, p.steps);
  copy_rows(last.first, p.batch, last.stride, p.state, a.h_n, p.state);
  if (a.c_n) copy_rows(f.c, p.batch, hidden_columns, p.hidden, a.c_n, p.hidden);
}

BRASA_INSTANTIATE(rnn_takes_inputs, float, double)
BRASA_INSTANTIATE(rnn_forward_workspace, float, double)
BRASA_INSTANTIATE(rnn_forward, float, double)

}  // namespace brasa::cpu::BRASA_ISA
