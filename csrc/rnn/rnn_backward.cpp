#include "rnn/rnn.h"
#include "rnn/rnn_cells_backward.h"
#include "rnn/rnn_scratch.h"

namespace brasa::cpu::BRASA_ISA {
namespace {

/// dh' += what the gates of step t send back through W_hh, for a tile of rows and one panel.
template <class T>
static void multiply_gates(const BackwardCall<T>& f, int64_t t, int64_t row, int64_t count,
                           int64_t panel, T* dh) {
  const RnnParams& p = f.p;
  const int64_t gates = rnn_gates(p.cell) * p.hidden, first = row_of(p, t, row);
  const int64_t width = f.state.width(panel), columns = f.state_columns();
  const int64_t with_v = p.cell == RnnCell::gru ? p.hidden : 0, depth = f.state.depth - with_v;
  multiply_rows<T>({f.a.dgates + first * gates, p.row_batch * gates}, count, f.state.panel(panel),
                   width, depth, dh, columns, true);
  if (with_v)
    multiply_rows<T>({f.a.dv + first * with_v, p.row_batch * with_v}, count,
                     f.state.panel(panel) + depth * width, width, with_v, dh, columns, true);
}

/// The lines of the gates that a tile's units are computed from arrive while it is multiplied, as
/// in the forward.
template <class T>
BRASA_INLINE void prefetch_gates(const BackwardCall<T>& f, int64_t t, int64_t panel, int64_t first,
                                 int64_t count) {
  if (!f.a.gates || f.p.projected || !gates_are_far<T>(f.p)) return;
  const int64_t gates = rnn_gates(f.p.cell), hidden = f.p.hidden;
  for (int64_t b = first; b < first + count; ++b) {
    const int64_t row = row_of(f.p, t, b), unit = f.state.first_unit(panel);
    for (int64_t block = 0; block < f.state.blocks(panel); ++block) {
      const int64_t at = unit + block * kLanes<T>;
      for (int64_t k = 0; k < gates; ++k)
        __builtin_prefetch(f.a.gates + (row * gates + k) * hidden + at);
      if (f.a.dy) __builtin_prefetch(f.a.dy + row * hidden + at);
    }
  }
}

/// apply(spot, offset of its vector in the tile's row) for the units of a tile.
template <class T, class F>
BRASA_INLINE void each_unit(const BackwardCall<T>& f, const Panels<T>& panels, int64_t panel,
                            int64_t t, int64_t first, int64_t count, const F& apply) {
  for (int64_t b = first; b < first + count; ++b) {
    const bool alive = is_alive(f.p, t, b);
    for (int64_t block = 0; block < panels.blocks(panel); ++block) {
      const int64_t unit = panels.first_unit(panel) + block * kLanes<T>;
      const int64_t left = panels.weights.units - unit;
      apply(BackwardSpot{t, b, row_of(f.p, t, b), unit, left < kLanes<T> ? left : kLanes<T>, alive},
            (b - first) * panels.width(panel) + block * kLanes<T>);
    }
  }
}

/// The columns of h: dh of step t, from that of the step after it, and what follows from it at
/// once.
template <class T>
BRASA_INLINE void backward_of_state(const BackwardCall<T>& f, const BackwardSpot& at, T* dh) {
  const RnnParams& p = f.p;
  if (!at.alive) {
    write_zeros(f.a.previous, 1, p.state, at);
    if (p.projected) return write_zeros(f.a.dh, 1, p.state, at);
    write_zeros(f.a.dgates, rnn_gates(p.cell), p.hidden, at);
    write_zeros(f.a.dv, 1, p.hidden, at);
    write_zeros(f.a.dpeephole, 3, p.hidden, at);
    return;
  }
  const Vec<T> total = total_dh(f, at, dh), old = before(f, f.a.y, f.a.h0, p.state, at);
  keep_previous(f, at, old);
  Vec<T> around{};  // what of dh' does not pass through W_hh
  if (p.projected)
    write(at_row(f.a.dh, p.state, at), total, at.live);
  else if (p.cell == RnnCell::lstm)
    lstm_backward_cell(f, at, total);
  else if (rnn_gates(p.cell) == 3)
    around = gru_backward_cell(f, at, total, old);
  else
    simple_backward_cell(f, at, total);
  store(dh, around);
}

/// The second product of a step, where the cell has one: projected LSTM, or GRU with reset before.
template <class T> static void second_phase(const BackwardCall<T>& f, const Member& me, int64_t t) {
  const RnnParams& p = f.p;
  const Range rows = me.rows(p.batch), mine = me.panels(f.second.count);
  const int64_t columns = p.projected ? p.state : 3 * p.hidden;
  const T* const from = p.projected ? f.a.dh : f.a.dgates + 2 * p.hidden;
  alignas(64) T tile[kTileElements<T>];
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t width = f.second.width(i), most = max_tile_rows(int(width / kLanes<T>));
    each_tile(rows.begin, rows.end, most, [&](int64_t row, int64_t count) {
      multiply_rows<T>({from + row_of(p, t, row) * columns, p.row_batch * columns}, count,
                       f.second.panel(i), width, f.second.depth, tile, width, false);
      each_unit(f, f.second, i, t, row, count, [&](const BackwardSpot& at, int64_t offset) {
        if (!at.alive) {
          write_zeros(p.projected ? f.a.dgates : nullptr, 4, p.hidden, at);
          write_zeros(f.a.m, 1, p.hidden, at);
          write_zeros(f.a.reset, 1, p.hidden, at);
          write_zeros(p.projected ? f.a.dpeephole : nullptr, 3, p.hidden, at);
        } else if (p.projected) {
          lstm_backward_cell(f, at, load(tile + offset));
        } else {
          gru_backward_reset(f, at, load(tile + offset), f.dh + at.b * f.state_columns() + at.unit);
        }
      });
    });
  }
}

/// The products of the step walked after s, then step s itself; with s = -1 the products alone.
template <class T> static void state_phase(const BackwardCall<T>& f, const Member& me, int64_t s) {
  const RnnParams& p = f.p;
  const Range rows = me.rows(p.batch), mine = me.panels(f.state.count);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t most = max_tile_rows(int(f.state.width(i) / kLanes<T>));
    each_tile(rows.begin, rows.end, most, [&](int64_t row, int64_t count) {
      T* const dh = f.dh + row * f.state_columns() + f.state.first_unit(i);
      if (s >= 0) prefetch_gates(f, time_of(p, s), i, row, count);
      if (s + 1 < p.steps) multiply_gates(f, time_of(p, s + 1), row, count, i, dh);
      if (s < 0) return;
      each_unit(f, f.state, i, time_of(p, s), row, count, [&](const BackwardSpot& at, int64_t) {
        backward_of_state(f, at, f.dh + at.b * f.state_columns() + at.unit);
      });
    });
  }
}

template <class T> static void walk_back(const BackwardCall<T>& f, const Member& me) {
  const bool two_phases = f.p.projected || f.p.cell == RnnCell::gru_reset_before;
  for (int64_t s = f.p.steps - 1; s >= 0; --s) {
    state_phase(f, me, s);
    me.meet();
    if (!two_phases) continue;
    second_phase(f, me, time_of(f.p, s));
    me.meet();
  }
  if (f.a.dh0) state_phase(f, me, -1);
}

template <class T>
static BackwardCall<T> backward_call(const RnnParams& p, const RnnBackward<T>& a) {
  const bool before = p.cell == RnnCell::gru_reset_before;
  const int64_t hidden = p.hidden, depth = (before ? 2 : rnn_gates(p.cell)) * hidden;
  const Weights<T> state{a.w_hh, 1, p.state, depth, 0, 1, p.state};
  const Weights<T> second =
      before ? Weights<T>{a.w_hh ? a.w_hh + 2 * hidden * hidden : nullptr,
                          1,
                          hidden,
                          hidden,
                          0,
                          1,
                          hidden}
             : Weights<T>{a.w_hr, 1, p.projected ? hidden : 0, p.state, 0, 1, hidden};
  return {p, a, Derivatives<T>(p.clip), make_panels(state), make_panels(second), nullptr, nullptr};
}

template <class T> static size_t place(BackwardCall<T>& f, void* workspace) {
  Scratch<T> scratch(workspace);
  f.state.packed = scratch.take(f.state.elements());
  f.second.packed = scratch.take(f.second.elements());
  f.dh = scratch.take(f.p.batch * f.state_columns());
  f.dc = scratch.take(f.p.cell == RnnCell::lstm ? f.p.batch * f.hidden_columns() : 0);
  return scratch.bytes();
}

}  // namespace

template <class T> size_t rnn_backward_workspace(const RnnParams& p, int) {
  BackwardCall<T> f = backward_call<T>(p, {});
  return place(f, nullptr);
}

template <class T> void rnn_backward(Context ctx, const RnnParams& p, const RnnBackward<T>& a) {
  BackwardCall<T> f = backward_call(p, a);
  place(f, ctx.workspace);
  ctx.threads = rnn_team(p, ctx.threads);
  const int64_t state_columns = f.state_columns(), hidden_columns = f.hidden_columns();
  const bool has_cells = p.cell == RnnCell::lstm;
  copy_rows(a.dh_n, p.batch, p.state, p.state, f.dh, state_columns);
  if (has_cells) copy_rows(a.dc_n, p.batch, p.hidden, p.hidden, f.dc, hidden_columns);
  parallel_team(ctx, [&](int index, int size, Barrier barrier) {
    const Member me{index, size, shares_rows<T>(p, size), barrier};
    me.pack(f.state);
    me.pack(f.second);
    if (size > 1) barrier();
    walk_back(f, me);
  });
  if (a.dh0) copy_rows(f.dh, p.batch, state_columns, p.state, a.dh0, p.state);
  if (a.dc0) copy_rows(f.dc, p.batch, hidden_columns, p.hidden, a.dc0, p.hidden);
}

BRASA_INSTANTIATE(rnn_backward_workspace, float, double)
BRASA_INSTANTIATE(rnn_backward, float, double)

}  // namespace brasa::cpu::BRASA_ISA
