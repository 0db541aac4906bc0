#include "dropout/dropout.h"

#include "core/parallel.h"
#include "core/random.h"

namespace brasa::cpu::BRASA_ISA {

/// Words drawn at a time: 4 KiB, in L1 until they are used.
constexpr int64_t kWords = 1024;
constexpr int64_t kDropoutGrain = 16 * kWords;

template <class T>
void dropout_forward(Context ctx, const T* x, T* y, int64_t n, DropoutParams params) {
  const uint64_t limit = philox::threshold(params.p);
  if (limit > 0xffffffffu) {
    parallel_for(ctx, n, kDropoutGrain, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) y[i] = T(0);
    });
    return;
  }
  const uint32_t threshold = uint32_t(limit);
  const T scale = T(1 / (1 - params.p));
  parallel_for(ctx, n, kDropoutGrain, [=](int64_t begin, int64_t end) {
    alignas(64) uint32_t words[kWords];
    for (int64_t i = begin; i < end; i += kWords) {
      const int64_t live = end - i < kWords ? end - i : kWords;
      philox_words(params.seed, params.offset + uint64_t(i / 4), (live + 31) / 32 * 32, words);
      for (int64_t k = 0; k < live; ++k) {
        const T kept = x[i + k] * scale;
        y[i + k] = words[k] < threshold ? T(0) : kept;
      }
    }
  });
}

BRASA_INSTANTIATE(dropout_forward, float, double)

}  // namespace brasa::cpu::BRASA_ISA
