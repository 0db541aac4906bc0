#include "bind/bind.h"
#include "ctc/ctc.h"

namespace brasa {
namespace {

/// log_probs (T, N, C) with the classes contiguous; targets (N, S) or one after the other; lengths
/// (N,).
CtcParams make_params(const ArrayView& log_probs, const In& targets, const In& input_lengths,
                      const In& target_lengths, int64_t longest, int64_t blank, bool zero_infinity,
                      int reduction) {
  require_rank(log_probs, 3);
  CtcParams p{};
  p.steps = log_probs.shape[0];
  p.samples = log_probs.shape[1];
  p.classes = log_probs.shape[2];
  p.step_stride = log_probs.strides[0];
  p.sample_stride = log_probs.strides[1];
  BRASA_REQUIRE(p.classes <= 1 || log_probs.size == 0 || log_probs.strides[2] == 1,
                "the classes must be neighbours in memory");
  for (const In* a : {&targets, &input_lengths, &target_lengths}) {
    require_dtype(*a, DType::int64);
    require_c_order(*a);
  }
  require_shape(input_lengths, p.samples);
  require_shape(target_lengths, p.samples);
  BRASA_REQUIRE(targets.rank == 1 || (targets.rank == 2 && targets.shape[0] == p.samples),
                "unexpected shape of targets " + shape_text(targets));
  p.targets = targets.as<const int64_t>();
  p.target_stride = targets.rank == 2 ? targets.shape[1] : -1;
  p.target_size = targets.size;
  p.input_lengths = input_lengths.as<const int64_t>();
  p.target_lengths = target_lengths.as<const int64_t>();
  // Not beyond what is in memory: sizes of scratch that are products with it cannot overflow then.
  BRASA_REQUIRE(longest >= 0 && longest <= p.steps && (longest <= targets.size || p.samples == 0),
                "unexpected length of the longest target");
  p.longest = longest;
  BRASA_REQUIRE(blank >= 0 && blank < p.classes, "blank: no such class");
  p.blank = blank;
  p.zero_infinity = zero_infinity;
  BRASA_REQUIRE(reduction >= 0 && reduction <= int(Reduction::mean), "unknown reduction");
  p.reduction = Reduction(reduction);
  return p;
}

void check_results(const CtcParams& p, const ArrayView& like, const ArrayView& losses,
                   const ArrayView& occupation) {
  require_same_dtype(like, losses);
  require_c_order(losses);
  BRASA_REQUIRE(losses.size == (p.reduction == Reduction::none ? p.samples : 1),
                "one number per sample, or one in all, needed, got " + shape_text(losses));
  if (is_none(occupation)) return;
  require_same_dtype(like, occupation);
  require_c_order(occupation);
  require_shape(occupation, p.samples, p.steps, p.longest + 1);
}

#if !defined(BRASA_FOR_CUDA)
/// Names the first label that is no class or the blank. Lengths are the operator's to check; the
/// kernel looks at them again.
void require_labels(const CtcParams& p, const In& targets) {
  const int64_t* label = p.targets;
  for (int64_t n = 0; n < p.samples; ++n) {
    const int64_t length = p.target_lengths[n];
    if (p.target_stride >= 0) label = p.targets + n * p.target_stride;
    if (length < 0 || length > p.target_size - (label - p.targets)) return;
    for (int64_t j = 0; j < length; ++j) {
      if (label[j] >= 0 && label[j] < p.classes && label[j] != p.blank) continue;
      const int64_t at = label + j - p.targets;
      const std::string place = targets.rank == 1 ? std::to_string(at) + ","
                                                  : std::to_string(n) + ", " + std::to_string(j);
      throw std::invalid_argument("targets: expected labels in [0, " + std::to_string(p.classes) +
                                  ") other than the blank " + std::to_string(p.blank) + ", got " +
                                  std::to_string(label[j]) + " at position (" + place + ")");
    }
    label += length;
  }
}
#endif

}  // namespace

void bind_ctc(py::module_& m) {
  m.def(
      "ctc_forward",
      [](In log_probs, In targets, In input_lengths, In target_lengths, int64_t longest,
         int64_t blank, bool zero_infinity, int reduction, Out losses, OptionalOut occupation) {
        const CtcParams p = make_params(log_probs, targets, input_lengths, target_lengths, longest,
                                        blank, zero_infinity, reduction);
        check_results(p, log_probs, losses, occupation);
#if !defined(BRASA_FOR_CUDA)
        require_labels(p, targets);
#endif
        Context ctx = make_context(log_probs);
        visit<float, double>(log_probs.dtype, [&]<class T>() {
          const Workspace workspace(
              ctx, device::ctc_forward_workspace<T>(p, bool(occupation), ctx.threads));
          const ReleaseGil gil(p.steps * p.samples * 64);
          device::ctc_forward<T>(ctx, log_probs.as<const T>(), p, losses.as<T>(),
                                 occupation ? occupation.as<T>() : nullptr);
        });
      },
      "log_probs"_a, "targets"_a, "input_lengths"_a, "target_lengths"_a, "longest"_a, "blank"_a,
      "zero_infinity"_a, "reduction"_a, "losses"_a, "occupation"_a);
  m.def(
      "ctc_backward",
      [](In dy, In targets, In input_lengths, In target_lengths, int64_t blank, int reduction,
         In occupation, Out dlog_probs) {
        require_rank(occupation, 3);
        const CtcParams p = make_params(dlog_probs, targets, input_lengths, target_lengths,
                                        occupation.shape[2] - 1, blank, false, reduction);
        check_results(p, dlog_probs, dy, occupation);
        const Context ctx = make_context(dlog_probs);
        const ReleaseGil gil(dlog_probs.size);
        visit<float, double>(dlog_probs.dtype, [&]<class T>() {
          device::ctc_backward<T>(ctx, dy.as<const T>(), p, occupation.as<const T>(),
                                  dlog_probs.as<T>());
        });
      },
      "dy"_a, "targets"_a, "input_lengths"_a, "target_lengths"_a, "blank"_a, "reduction"_a,
      "occupation"_a, "dlog_probs"_a);
}

}  // namespace brasa
