#include <string>

#include "bind/bind.h"
#include "rnn/rnn.h"
#if !defined(BRASA_FOR_CUDA)
#include "core/indices.h"
#endif

namespace brasa {
namespace {

RnnCell cell_of(const std::string& name) {
  constexpr const char* kNames[] = {"lstm", "gru", "gru_reset_before", "tanh", "relu"};
  for (int i = 0; i < 5; ++i)
    if (name == kNames[i]) return RnnCell(i);
  throw std::invalid_argument("no recurrent cell is called " + name);
}

/// An optional operand of this shape and of the dtype of `like`.
template <class View, class... Extents>
void require_operand(const View& a, const ArrayView& like, Extents... extents) {
  if (is_none(a)) return;
  require_same_dtype(like, a);
  require_shape(a, extents...);
  require_c_order(a);
}

/// The same of what stays float32 beside 16 bits: biases and peepholes.
template <class... Extents>
void require_vector(const ArrayView& a, const ArrayView& like, Extents... extents) {
  if (is_none(a)) return;
  require_dtype(a, wide_of(like.dtype));
  require_shape(a, extents...);
  require_c_order(a);
}

/// The extents, from `rows` (T, B, ...) or (B, T, ...) and w_hh.
RnnParams make_params(RnnCell cell, const ArrayView& rows, const In& w_hh, const OptionalIn& w_hr,
                      const OptionalIn& lengths, bool reverse, bool batch_first, double clip) {
  require_rank(rows, 3);
  require_rank(w_hh, 2);
  RnnParams p{.cell = cell, .reverse = reverse, .projected = bool(w_hr), .clip = clip};
  p.steps = rows.shape[batch_first], p.batch = rows.shape[!batch_first];
  p.row_step = batch_first ? 1 : p.batch, p.row_batch = batch_first ? p.steps : 1;
  BRASA_REQUIRE(w_hh.shape[0] % rnn_gates(cell) == 0, "w_hh has no whole number of gates");
  p.hidden = w_hh.shape[0] / rnn_gates(cell), p.state = w_hh.shape[1];
  BRASA_REQUIRE(p.projected ? cell == RnnCell::lstm : p.state == p.hidden, "w_hh does not fit");
  BRASA_REQUIRE(clip > 0, "clip must be positive");
  require_operand(w_hh, w_hh, w_hh.shape[0], w_hh.shape[1]);
  require_operand(w_hr, w_hh, p.state, p.hidden);
  if (lengths) {
    require_dtype(lengths, DType::int64);
    require_shape(lengths, p.batch);
    require_c_order(lengths);
#if !defined(BRASA_FOR_CUDA)
    require_indices("lengths", lengths, p.steps + 1);
#endif
    p.lengths = lengths.as<const int64_t>();
  }
  checked_multiply(checked_multiply(p.steps * p.batch, w_hh.shape[0] + 64), 8 * (p.state + 64));
  return p;
}

/// An optional array of T B rows, laid out as `rows` is.
template <class View> void require_rows(const View& a, const ArrayView& rows, int64_t columns) {
  require_operand(a, rows, rows.shape[0], rows.shape[1], columns);
}

int64_t work_of(const RnnParams& p) {
  return p.steps * p.batch * rnn_gates(p.cell) * p.hidden * (p.inputs + p.state + 16) / 16;
}

bool takes_inputs(const RnnParams& p, const In& w_hh) {
  bool takes = false;
  visit_floating(w_hh.dtype, [&]<class T>() { takes = device::rnn_takes_inputs<T>(p); });
  return takes;
}

/// The operands of a forward that makes the products of the inputs itself; returns their columns.
int64_t inputs_of(const RnnParams& p, const OptionalIn& x, const OptionalIn& w_ih,
                  const OptionalIn& bias, const ArrayView& y) {
  const int64_t rows = rnn_gates(p.cell) * p.hidden;
  require_rank(x, 3);
  require_rows(x, y, x.shape[2]);
  require_operand(w_ih, y, rows, x.shape[2]);
  require_vector(bias, y, rows);
  checked_multiply(checked_multiply(rows, x.shape[2] + 64), 8);
  return x.shape[2];
}

void bind_forward(py::module_& m) {
  m.def(
      "rnn_takes_inputs",
      [](const std::string& cell, In x, In w_hh, bool batch_first) {
        require_rank(x, 3);
        require_rank(w_hh, 2);
        RnnParams p{.cell = cell_of(cell)};
        p.steps = x.shape[batch_first], p.batch = x.shape[!batch_first], p.inputs = x.shape[2];
        p.hidden = w_hh.shape[0] / rnn_gates(p.cell), p.state = w_hh.shape[1];
        return takes_inputs(p, w_hh);
      },
      "cell"_a, "x"_a, "w_hh"_a, "batch_first"_a);
  m.def(
      "rnn_forward",
      [](const std::string& cell, OptionalOut gates, OptionalIn x, OptionalIn w_ih, OptionalIn bias,
         In w_hh, OptionalIn b_hn, OptionalIn w_hr, OptionalIn peephole, OptionalIn h0,
         OptionalIn c0, OptionalIn lengths, Out y, OptionalOut cells, OptionalOut v, Out h_n,
         OptionalOut c_n, bool reverse, bool batch_first, double clip, bool save) {
        RnnParams p =
            make_params(cell_of(cell), y, w_hh, w_hr, lengths, reverse, batch_first, clip);
        const bool lstm = p.cell == RnnCell::lstm, gru = p.cell == RnnCell::gru;
        require_same_dtype(w_hh, y);
        require_rows(gates, y, w_hh.shape[0]);
        require_rows(y, y, p.state);
        require_rows(cells, y, p.hidden);
        require_rows(v, y, p.hidden);
        if (x) p.inputs = inputs_of(p, x, w_ih, bias, y);
        BRASA_REQUIRE(bool(gates) == (!x || (save && rnn_gates(p.cell) > 1)) &&
                          bool(w_ih) == bool(x) && (x || !bias) && (!x || takes_inputs(p, w_hh)),
                      "either the products of the inputs or the inputs are needed");
        require_vector(b_hn, w_hh, p.hidden);
        require_vector(peephole, w_hh, 3, p.hidden);
        require_operand(h0, w_hh, p.batch, p.state);
        require_operand(c0, w_hh, p.batch, p.hidden);
        require_operand(h_n, w_hh, p.batch, p.state);
        require_operand(c_n, w_hh, p.batch, p.hidden);
        BRASA_REQUIRE(bool(cells) == (lstm && save) && bool(v) == (gru && save) &&
                          bool(c_n) == lstm && (lstm || (!c0 && !peephole)) && (gru || !b_hn),
                      "an array is missing, or the cell has no such array");
        Context ctx = make_context(w_hh);
        visit_floating(w_hh.dtype, [&]<class T>() {
          const Workspace scratch(ctx, device::rnn_forward_workspace<T>(p, ctx.threads));
          const RnnForward<T> arrays{gates.as<T>(),      x.as<const T>(),
                                     w_ih.as<const T>(), bias.as<const Wide<T>>(),
                                     w_hh.as<const T>(), b_hn.as<const Wide<T>>(),
                                     w_hr.as<const T>(), peephole.as<const Wide<T>>(),
                                     h0.as<const T>(),   c0.as<const T>(),
                                     y.as<T>(),          cells.as<T>(),
                                     v.as<T>(),          h_n.as<T>(),
                                     c_n.as<T>(),        save};
          const ReleaseGil gil(work_of(p));
          device::rnn_forward<T>(ctx, p, arrays);
        });
      },
      "cell"_a, "gates"_a, "x"_a, "w_ih"_a, "bias"_a, "w_hh"_a, "b_hn"_a, "w_hr"_a, "peephole"_a,
      "h0"_a, "c0"_a, "lengths"_a, "y"_a, "cells"_a, "v"_a, "h_n"_a, "c_n"_a, "reverse"_a,
      "batch_first"_a, "clip"_a, "save"_a);
}

void bind_backward(py::module_& m) {
  m.def(
      "rnn_backward",
      [](const std::string& cell, OptionalIn dy, OptionalIn dh_n, OptionalIn dc_n, In w_hh,
         OptionalIn w_hr, OptionalIn peephole, OptionalIn h0, OptionalIn c0, OptionalIn lengths,
         OptionalIn gates, OptionalIn cells, OptionalIn v, In y, Out dgates, OptionalOut dv,
         OptionalOut previous, OptionalOut reset, OptionalOut dh, OptionalOut m,
         OptionalOut dpeephole, OptionalOut dh0, OptionalOut dc0, bool reverse, bool batch_first,
         double clip) {
        const RnnParams p =
            make_params(cell_of(cell), y, w_hh, w_hr, lengths, reverse, batch_first, clip);
        require_same_dtype(w_hh, y);
        const bool lstm = p.cell == RnnCell::lstm, gru = p.cell == RnnCell::gru;
        for (const ArrayView& a : {ArrayView(gates), ArrayView(dgates)})
          require_rows(a, y, w_hh.shape[0]);
        for (const ArrayView& a : {ArrayView(y), ArrayView(dy), ArrayView(previous), ArrayView(dh)})
          require_rows(a, y, p.state);
        for (const ArrayView& a :
             {ArrayView(cells), ArrayView(v), ArrayView(dv), ArrayView(reset), ArrayView(m)})
          require_rows(a, y, p.hidden);
        for (const ArrayView& a : {ArrayView(dh_n), ArrayView(h0), ArrayView(dh0)})
          require_operand(a, w_hh, p.batch, p.state);
        for (const ArrayView& a : {ArrayView(dc_n), ArrayView(c0), ArrayView(dc0)})
          require_operand(a, w_hh, p.batch, p.hidden);
        require_rows(dpeephole, y, 3 * p.hidden);
        require_vector(peephole, w_hh, 3, p.hidden);
        BRASA_REQUIRE(
            bool(gates) == (rnn_gates(p.cell) > 1) && bool(cells) == lstm && bool(v) == gru &&
                bool(dv) == gru && bool(reset) == (p.cell == RnnCell::gru_reset_before) &&
                bool(dh) == p.projected && bool(m) == p.projected &&
                bool(dpeephole) == bool(peephole) && (lstm || (!peephole && !c0 && !dc_n && !dc0)),
            "an array is missing, or the cell has no such array");
        Context ctx = make_context(w_hh);
        visit_floating(w_hh.dtype, [&]<class T>() {
          const Workspace scratch(ctx, device::rnn_backward_workspace<T>(p, ctx.threads));
          const RnnBackward<T> arrays{dy.as<const T>(),    dh_n.as<const T>(),
                                      dc_n.as<const T>(),  w_hh.as<const T>(),
                                      w_hr.as<const T>(),  h0.as<const T>(),
                                      c0.as<const T>(),    peephole.as<const Wide<T>>(),
                                      gates.as<const T>(), cells.as<const T>(),
                                      v.as<const T>(),     y.as<const T>(),
                                      dgates.as<T>(),      dv.as<T>(),
                                      previous.as<T>(),    reset.as<T>(),
                                      dh.as<T>(),          m.as<T>(),
                                      dpeephole.as<T>(),   dh0.as<T>(),
                                      dc0.as<T>()};
          const ReleaseGil gil(work_of(p));
          device::rnn_backward<T>(ctx, p, arrays);
        });
      },
      "cell"_a, "dy"_a, "dh_n"_a, "dc_n"_a, "w_hh"_a, "w_hr"_a, "peephole"_a, "h0"_a, "c0"_a,
      "lengths"_a, "gates"_a, "cells"_a, "v"_a, "y"_a, "dgates"_a, "dv"_a, "previous"_a, "reset"_a,
      "dh"_a, "m"_a, "dpeephole"_a, "dh0"_a, "dc0"_a, "reverse"_a, "batch_first"_a, "clip"_a);
}

}  // namespace

void bind_rnn(py::module_& m) {
  bind_forward(m);
  bind_backward(m);
}

}  // namespace brasa
