// Connectionist temporal classification (Graves et al. 2006): the probability that a sequence of
// T distributions over C classes spells a target, summed over all alignments.
//
// A target l_0 ... l_S-1 is read with a blank before each label and after the last: the states are
// B_0, L_0, B_1, L_1 ... B_S. With p_t(c) = exp(log_probs[t, c]), a_t(s) the probability of all
// beginnings that stand at state s after step t and b_t(s) that of all ends from there on (without
// step t),
//
//   blanks   a_t(B_j) = p_t(blank) (a(B_j) + a(L_j-1))                             a = a_t-1
//   labels   a_t(L_j) = p_t(l_j)   (a(L_j) + a(B_j) + [l_j != l_j-1] a(L_j-1))
//   loss     -log Z,  Z = a_T-1(B_S) + a_T-1(L_S-1)
//   q_t(s)   = a_t(s) b_t(s) / Z                     dlog_probs[t, c] = -dy sum of q_t(s), s reads
//   c
//
// This is the derivative by the log-probabilities themselves, without the term p_t(c) that the
// softmax before them adds: it is sparse, and through log_softmax the two agree.
//
// A probability is a fraction in [1, 2) times 2^e, both held as T: the range of logarithms, but a
// sum costs two shifts of exponents in place of two exponentials and a logarithm, and a product of
// T steps is off by some 5 T units in its last place where a logarithm of size |loss| is off by as
// many units of |loss| (at a loss of 1,000 a thousand times as much). e is -inf for probability 0
// and NaN where a NaN came in; the fraction beside them means nothing. A log-probability below
// -10^6 counts as -inf.
//
// With `occupation` the forward pass goes back over the steps as well and leaves q_t there, blanks
// added up; the backward pass spreads it over the classes. So nothing is computed twice, and what
// is kept is T (S + 1) numbers a sample, not the exponents and fractions of a and b.
//
// Floor: one read of the target's log-probabilities, one write of dlog_probs. Between them a step
// waits for the one before it: samples are the threads' (CPU) or the blocks' (CUDA) work, and the
// states of a sample are the lanes'. A step forward takes 50 ns with 5 labels as with 40 (AVX-512).
// Rows of states are separate for blanks and labels, or every second exponential would be the
// blank's again.
#pragma once

#include "core/dispatch.h"
#include "loss/loss.h"

namespace brasa {

struct CtcParams {
  int64_t steps, samples, classes;
  int64_t step_stride, sample_stride;  ///< of log_probs and its gradient; classes are neighbours
  const int64_t* targets;
  int64_t target_stride;  ///< between samples, or -1: one after the other
  int64_t target_size;    ///< of all targets together
  const int64_t* input_lengths;
  const int64_t* target_lengths;
  int64_t longest;  ///< no target that fits into its steps is longer
  int64_t blank;
  bool zero_infinity;
  Reduction reduction;
};

}  // namespace brasa

/// losses: one per sample; or, where there is a reduction, one in all (of the mean, a sample's loss
/// is divided by its target's length). occupation: (samples, steps, 1 + longest), the blank first,
/// or null. A sample whose lengths or labels are out of range has loss NaN; one whose target cannot
/// be spelt has +inf, or 0 with `zero_infinity`.
BRASA_KERNEL(ctc_forward, const T* log_probs, CtcParams params, T* losses, T* occupation)
BRASA_FUNCTION(size_t, ctc_forward_workspace, const CtcParams& params, bool occupation, int threads)

/// dy: one per sample, or one in all where there is a reduction.
BRASA_KERNEL(ctc_backward, const T* dy, CtcParams params, const T* occupation, T* dlog_probs)
