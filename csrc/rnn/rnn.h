// Recurrent layers: LSTM, GRU and the simple cell over all time steps, and their gradients.
//
// The product of the inputs, G = x W_ih^T + biases, is one call of matmul for all steps and comes
// in `gates`, or is formed here step by step (rnn_takes_inputs; the same bits); dx, dW_ih, dW_hh
// and dW_hr the caller forms from what the backward writes. With R = h' W_hh^T, where h' and c'
// are the states before the step:
//
//   LSTM   i = s(G_i + R_i + p_i c'), f = s(G_f + R_f + p_f c'), g = tanh(G_g + R_g),
//          c = f c' + i g, o = s(G_o + R_o + p_o c), m = o tanh(c), h = m or, projected, m W_hr^T
//   GRU    r = s(G_r + R_r), z = s(G_z + R_z), h = n + z (h' - n), with
//          reset after:   v = R_n + b_hn, n = tanh(G_n + r v)        (torch; G has no b_hn)
//          reset before:  n = tanh(G_n + (r h') W_hn^T)              (ONNX; G has b_hn)
//   RNN    h = tanh(G + R) or relu(G + R)
//
// s is the sigmoid. `clip` limits what s, tanh and relu are applied to (but not c of tanh(c)) to
// [-clip, clip]; the derivative is 0 where an activated gate equals its value at either limit.
//
// Backward, from the last step walked to the first, d. being gradients and d-. those before the
// activation; dh is dy plus what comes from the next step (dh_n at the last), dc likewise:
//
//   LSTM   dm = dh or dh W_hr; d-o = dm tanh(c) o (1 - o); dc += dm o (1 - tanh(c)^2) + d-o p_o;
//          d-i = dc g i (1 - i), d-f = dc c' f (1 - f), d-g = dc i (1 - g^2);
//          dc' = dc f + d-i p_i + d-f p_f, dh' = d-gates W_hh
//   GRU    d-z = dh (h' - n) z (1 - z), d-n = dh (1 - z) (1 - n^2), and with
//          reset after:   dv = d-n r, d-r = d-n v r (1 - r), dh' = dh z + (d-r, d-z, dv) W_hh
//          reset before:  u = d-n W_hn, d-r = u h' r (1 - r), dh' = dh z + u r + (d-r, d-z) W_rz
//   RNN    d- = dh (1 - h^2), or dh where h > 0; dh' = d- W_hh
//   peepholes: dp_i = sum over rows of d-i c', dp_f of d-f c', dp_o of d-o c
//
// Rows: (t, b) is row t row_step + b row_batch of `gates`, `cells`, `y` and all else that has T B
// rows: (T, B) order has row_step = B, row_batch = 1, (B, T) order row_step = 1, row_batch = T.
//
// Lengths: (t, b) is alive where t < lengths[b]. The steps are walked upwards, or downwards where
// `reverse` is set; at a dead row the states stay and y is 0, so that a reversed sample begins at
// its own last step with h0, and h_n, c_n are the states after its last living step. In the
// backward dead rows pass the gradients of the states on and read no dy; what is written for them
// is 0. The row before a living (t, b) is (t - 1, b), or (t + 1, b) when reversed, if that is a
// living row; else h' and c' are h0 and c0. A length outside [0, T] is refused on the CPU; on CUDA
// its sample's results are NaN.
//
// Kept for the backward: LSTM 4 H activated gates and c, GRU r, z, n and (reset after) v, RNN
// nothing; and y. tanh(c) is computed again.
//
// Rounding: R and the backward's products are FMA chains over ascending k in blocks of K
// (core/order.h), blocks added in order; G is added to R, a peephole by fma after it; c is
// fma(f, c', i g). The product of d-gates is added block by block to what does not pass through
// W_hh (GRU: dh z). With reset after, k runs over d-r, d-z and then, in blocks of its own, dv.
// Nothing depends on the number of steps in a call, on the batch or the threads: a sequence in
// pieces, or a sample alone, gives the same bits. Longest chain: min(K, 512) float32, 256 float64.
// CUDA adds K in 8 even slices, the backward and the simple cell in 32, each one chain.
//
// 16 bits (CUDA): arrays are T, products are made on tensor cores and added up in float32 in 8 even
// slices of K, the backward's and the simple cell's in 16. What is stored is rounded once: G, h
// where a product reads it, y, what is kept, the d-gates. Arithmetic is float32's, and so is what
// is carried from step to step (c; h of a GRU; dh and dc), beside rounded results: a sequence in
// pieces, which gets them rounded, is the whole but for that. Biases and peepholes are float32. A
// gate whose value was rounded to that at a limit counts as at the limit.
//
// CUDA (rnn_tile.cuh): one cooperative launch for all steps, with the weights in shared memory and
// a barrier of the grid between steps, where the blocks of all units fit on the GPU together: on an
// H100 up to about 1050 units. Otherwise, for one step, and in float64, a launch per step; with a
// projection, or the reset before the product, two.
//
// Floor: 2 T B G H P operations at the FMA peak, or T times the bytes of W_hh that L2 does not
// hold.
#pragma once

#include "core/dispatch.h"
#include "core/half.h"

namespace brasa {

/// The cells, with what distinguishes their kernels: gru has its reset after the product.
enum class RnnCell : int8_t { lstm, gru, gru_reset_before, rnn_tanh, rnn_relu };

/// G: gates of a cell.
constexpr int64_t rnn_gates(RnnCell cell) {
  if (cell == RnnCell::lstm) return 4;
  return cell == RnnCell::gru || cell == RnnCell::gru_reset_before ? 3 : 1;
}

struct RnnParams {
  RnnCell cell;
  bool reverse;
  bool projected;  ///< h has P columns: `w_hr` is given. Only LSTM. Otherwise P = H
  int64_t steps, batch, hidden, state;  ///< T, B, H, P
  int64_t inputs;  ///< I where the forward is given x, W_ih and the bias; else 0
  int64_t row_step, row_batch;
  const int64_t* lengths;  ///< (B,), or null: all T
  double clip;             ///< infinity where nothing is limited
};

/// Arrays are C-contiguous and do not overlap; "or null" is said where an array may be absent.
template <class T> struct RnnForward {
  T* gates;           ///< (T B, G H): G; becomes the activated gates with `save`, else undefined.
                      ///< With inputs written only, and null without `save` or for the simple cell
  const T *x, *w_ih;  ///< (T B, I), (G H, I): with inputs
  const Wide<T>* bias;      ///< (G H,), or null: with inputs
  const T* w_hh;            ///< (G H, P)
  const Wide<T>* b_hn;      ///< (H,), or null: only for cell gru
  const T* w_hr;            ///< (P, H), or null
  const Wide<T>* peephole;  ///< (3, H) of i, f, o, or null: only for LSTM
  const T *h0, *c0;         ///< (B, P), (B, H), or null: 0
  T* y;                     ///< (T B, P)
  T* cells;                 ///< (T B, H), or null: c of every step; LSTM with `save`
  T* v;                     ///< (T B, H), or null: v of every step; cell gru with `save`
  T *h_n, *c_n;             ///< (B, P), (B, H; null but for LSTM)
  bool save;
};

/// What is read and written as above; `y`, `cells`, `gates` and `v` are the forward's. The second
/// half is written; dead rows become 0.
template <class T> struct RnnBackward {
  const T *dy, *dh_n, *dc_n;  ///< (T B, P), (B, P), (B, H), or null: 0
  const T *w_hh, *w_hr, *h0, *c0;
  const Wide<T>* peephole;
  const T *gates, *cells, *v, *y;  ///< gates is null for the simple cell

  // Null where the cell has none; previous, dh0 and dc0 also where nobody asks for them.
  T* dgates;     ///< (T B, G H): d-gates, in the order of the gates
  T* dv;         ///< (T B, H): dv; cell gru
  T* previous;   ///< (T B, P): h' of every row
  T* reset;      ///< (T B, H): r h' of every row; cell gru_reset_before
  T* dh;         ///< (T B, P): dh of every row; projected
  T* m;          ///< (T B, H): m of every row; projected
  T* dpeephole;  ///< (T B, 3 H): the terms of the sums above; with a peephole
  T *dh0, *dc0;  ///< (B, P), (B, H)
};

}  // namespace brasa

/// Whether a forward of these extents, `inputs` set, can be given x and is faster so than with G.
BRASA_FUNCTION(bool, rnn_takes_inputs, const RnnParams& params)

/// Bytes of scratch that the kernels below need with this many threads.
BRASA_FUNCTION(size_t, rnn_forward_workspace, const RnnParams& params, int threads)
BRASA_FUNCTION(size_t, rnn_backward_workspace, const RnnParams& params, int threads)

BRASA_KERNEL(rnn_forward, const RnnParams& params, const RnnForward<T>& arrays)
BRASA_KERNEL(rnn_backward, const RnnParams& params, const RnnBackward<T>& arrays)
