#include "bind/bind.h"
#include "loss/loss.h"
#if !defined(BRASA_FOR_CUDA)
#include "core/indices.h"
#endif

namespace brasa {
namespace {

/// Logits (N, C, spatial...), targets (N, spatial...) of integers or laid out as the logits, weight
/// (C,).
void check_operands(const In& logits, const In& targets, const OptionalIn& weight) {
  BRASA_REQUIRE(logits.rank >= 2, "logits need (N, C, ...), got " + shape_text(logits));
  require_dense(logits);
  if (targets.dtype == wide_of(logits.dtype)) {
    require_same_dense_layout(logits, targets);
  } else {
    BRASA_REQUIRE(targets.dtype == DType::int32 || targets.dtype == DType::int64,
                  "unexpected dtype of targets");
    require_rank(targets, logits.rank - 1);
    require_c_order(targets);
    for (int i = 0; i < targets.rank; ++i)
      BRASA_REQUIRE(targets.shape[i] == logits.shape[i ? i + 1 : 0],
                    "unexpected shape " + shape_text(targets));
  }
  if (!weight) return;
  require_dtype(weight, wide_of(logits.dtype));
  require_shape(weight, logits.shape[1]);
  require_c_order(weight);
}

template <class T>
CrossEntropyParams<T> make_params(const In& logits, const In& targets, const OptionalIn& weight,
                                  int64_t ignore_index, double label_smoothing,
                                  Reduction reduction) {
  CrossEntropyParams<T> p{};
  p.shape = {.outer = logits.shape[0], .n = logits.shape[1], .inner = 1};
  for (int i = 2; i < logits.rank; ++i) p.shape.inner *= logits.shape[i];
  if (is_channels_last(logits)) p.shape = {p.shape.outer * p.shape.inner, p.shape.n, 1};
  if (targets.dtype == DType::int64) p.classes.wide = targets.as<const int64_t>();
  if (targets.dtype == DType::int32) p.classes.narrow = targets.as<const int32_t>();
  if (targets.dtype == wide_of(logits.dtype)) p.probabilities = targets.as<const Wide<T>>();
  p.weight = weight ? weight.as<const Wide<T>>() : nullptr;
  p.ignore_index = ignore_index;
  p.label_smoothing = label_smoothing;
  p.reduction = reduction;
  return p;
}

Reduction reduction_of(int number) {
  BRASA_REQUIRE(number >= 0 && number <= int(Reduction::mean), "unknown reduction");
  return Reduction(number);
}

void check_per_position(const ArrayView& a, const In& logits, Reduction reduction) {
  require_dtype(a, wide_of(logits.dtype));
  require_c_order(a);
  const int64_t wanted =
      reduction == Reduction::none ? logits.size / std::max<int64_t>(logits.shape[1], 1) : 1;
  BRASA_REQUIRE(a.size == wanted,
                "one number per position, or one in all, needed, got " + shape_text(a));
}

void check_statistics(const ArrayView& a, const In& logits) {
  require_dtype(a, wide_of(logits.dtype));
  require_c_order(a);
  BRASA_REQUIRE(a.size == logits.size / logits.shape[1] * 2, "unexpected size of statistics");
}

void forward(In logits, In targets, OptionalIn weight, int64_t ignore_index, double label_smoothing,
             int reduction_number, Out losses, OptionalOut statistics, OptionalOut divisor) {
  const Reduction reduction = reduction_of(reduction_number);
  BRASA_REQUIRE(logits.rank < 2 || logits.shape[1] > 0, "logits: no class");
  check_operands(logits, targets, weight);
  check_per_position(losses, logits, reduction);
  if (statistics) check_statistics(statistics, logits);
  if (divisor) {
    require_dtype(divisor, wide_of(logits.dtype));
    BRASA_REQUIRE(divisor.size == 1, "unexpected size of divisor");
  }
#if !defined(BRASA_FOR_CUDA)
  if (targets.dtype != logits.dtype)
    require_indices("targets", targets, logits.shape[1], &ignore_index);
#endif
  Context ctx = make_context(logits);
  visit_floating(logits.dtype, [&]<class T>() {
    const auto params =
        make_params<T>(logits, targets, weight, ignore_index, label_smoothing, reduction);
    const Workspace workspace(ctx, device::cross_entropy_workspace<T>(params));
    const ReleaseGil gil(logits.size);
    device::cross_entropy_forward<T>(ctx, logits.as<const T>(), params, losses.as<Wide<T>>(),
                                     statistics ? statistics.as<Wide<T>>() : nullptr,
                                     divisor ? divisor.as<Wide<T>>() : nullptr);
  });
}

void backward(In dy, In logits, In targets, OptionalIn weight, int64_t ignore_index,
              double label_smoothing, int reduction_number, In statistics, In divisor,
              Out dlogits) {
  const Reduction reduction = reduction_of(reduction_number);
  BRASA_REQUIRE(logits.rank < 2 || logits.shape[1] > 0, "logits: no class");
  check_operands(logits, targets, weight);
  check_per_position(dy, logits, reduction);
  check_statistics(statistics, logits);
  require_dtype(divisor, wide_of(logits.dtype));
  BRASA_REQUIRE(divisor.size == 1, "unexpected size of divisor");
  require_same_dtype(logits, dlogits);
  require_same_dense_layout(logits, dlogits);
  const Context ctx = make_context(logits);
  const ReleaseGil gil(logits.size);
  visit_floating(logits.dtype, [&]<class T>() {
    const auto params =
        make_params<T>(logits, targets, weight, ignore_index, label_smoothing, reduction);
    device::cross_entropy_backward<T>(ctx, dy.as<const Wide<T>>(), logits.as<const T>(), params,
                                      statistics.as<const Wide<T>>(), divisor.as<const Wide<T>>(),
                                      dlogits.as<T>());
  });
}

}  // namespace

void bind_loss(py::module_& m) {
  m.def("cross_entropy_forward", &forward, "logits"_a, "targets"_a, "weight"_a, "ignore_index"_a,
        "label_smoothing"_a, "reduction"_a, "losses"_a, "statistics"_a, "divisor"_a);
  m.def("cross_entropy_backward", &backward, "dy"_a, "logits"_a, "targets"_a, "weight"_a,
        "ignore_index"_a, "label_smoothing"_a, "reduction"_a, "statistics"_a, "divisor"_a,
        "dlogits"_a);
}

}  // namespace brasa
