#include "bind/bind.h"
#include "shuffle/shuffle.h"

namespace brasa {
namespace {

/// Checks a small image and the large one of its sub-pixels.
ShuffleShape shuffle_shape(const ArrayView& small, const ArrayView& large, int64_t factor) {
  require_same_dtype(small, large);
  require_rank(small, 4);
  require_rank(large, 4);
  BRASA_REQUIRE(factor > 0, "the factor is not positive");
  const ShuffleShape s{large.shape[0], large.shape[1],
                       small.shape[2], small.shape[3],
                       factor,         is_channels_last(small) && is_channels_last(large)};
  require_shape(small, s.batch, checked_multiply(checked_multiply(s.channels, factor), factor),
                s.height, s.width);
  require_shape(large, s.batch, s.channels, checked_multiply(s.height, factor),
                checked_multiply(s.width, factor));
  BRASA_REQUIRE(s.channels_last || (is_c_order(small) && is_c_order(large)),
                "both arrays must be C-contiguous or both channels-last");
  return s;
}

}  // namespace

void bind_shuffle(py::module_& m) {
  m.def(
      "pixel_shuffle",
      [](In x, Out y, int64_t factor) {
        const ShuffleShape shape = shuffle_shape(x, y, factor);
        const Context ctx = make_context(x);
        const ReleaseGil gil(x.size);
        visit_floating(x.dtype, [&]<class T>() {
          device::pixel_shuffle<T>(ctx, x.as<const T>(), y.as<T>(), shape);
        });
      },
      "x"_a, "y"_a, "factor"_a);
  m.def(
      "pixel_unshuffle",
      [](In x, Out y, int64_t factor) {
        const ShuffleShape shape = shuffle_shape(y, x, factor);
        const Context ctx = make_context(x);
        const ReleaseGil gil(x.size);
        visit_floating(x.dtype, [&]<class T>() {
          device::pixel_unshuffle<T>(ctx, x.as<const T>(), y.as<T>(), shape);
        });
      },
      "x"_a, "y"_a, "factor"_a);
}

}  // namespace brasa
